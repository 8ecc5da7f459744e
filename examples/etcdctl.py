"""Look at the collections with etcd's own tool: keys and most values are readable text."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import skyward_etcd as sky
from skyward_etcd.active import current
from skyward_etcd.cluster import binary


def show(endpoints: Sequence[str], prefix: str) -> None:
    """Print what ``etcdctl get --prefix`` says."""
    etcdctl = binary.find().path.with_name("etcdctl")
    command = [str(etcdctl), f"--endpoints={','.join(endpoints)}", "get", "--prefix", prefix]
    shown = subprocess.run(
        command, env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, text=True, errors="replace", check=True
    )
    lines = shown.stdout.splitlines()
    for key, value in zip(lines[::2], lines[1::2], strict=True):
        print(f"{key}  {value}")


def main() -> None:
    """Fill one collection of each kind, and look."""
    with sky.Compute(nodes=1) as pool:
        pool.dict("settings").update({"lr": 0.001, ("layer", 2): [256, 128]}, note=None)
        pool.set("labels").update(["cat", "dog"])
        pool.counter("images").increment(42)
        pool.queue("to do").put_many([{"path": "/data/1.png"}, {"path": "/data/2.png"}])
        with pool.lock("checkpoint"):
            show(current().endpoints, "/skyward/default/")


if __name__ == "__main__":
    main()
