"""The collections inside Dask's workers: each joins a cluster that runs already, once, by a plugin of its own.

``skyward-etcd up`` starts a cluster on this machine; SKYWARD_ETCD_ENDPOINTS says where it is.
"""

from __future__ import annotations

import contextlib
from typing import Any

from distributed import Client, LocalCluster, WorkerPlugin

import skyward_etcd as sky

SHARDS = 12


class Collections(WorkerPlugin):
    """Give each worker a session for as long as it lives. ``endpoints``: those of SKYWARD_ETCD_ENDPOINTS, if None."""

    name = "skyward-etcd"

    def __init__(self, endpoints: list[str] | None = None) -> None:
        self.endpoints = endpoints

    def setup(self, worker: Any) -> None:
        """Join; a worker that cannot says so to whoever registers the plugin."""
        del worker
        self._open = contextlib.ExitStack()
        self._open.enter_context(sky.connect(self.endpoints))

    def teardown(self, worker: Any) -> None:
        """Give back what the worker holds."""
        del worker
        self._open.close()


def train(shard: int) -> int:
    """Claim what nobody has claimed, and tell the best result; each total is told to one task only."""
    if not sky.set("shards seen").add(shard):
        return 0
    with sky.lock("telling the best", timeout=30) as hold:
        best = hold.guard(sky.dict("best"))
        if best.get("score", -1) < shard % 7:
            best.update({"score": shard % 7, "shard": shard})
    return sky.counter("shards done").increment()


def main() -> None:
    """Train each shard, and each twice: as a scheduler that loses a worker does."""
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as client:
        client.register_plugin(Collections())
        totals = client.gather(client.map(train, [*range(SHARDS), *range(SHARDS)], pure=False))
    with sky.connect():
        print(f"totals: {sorted(totals)[SHARDS:]}, best score {sky.dict('best')['score']}")
        assert sorted(totals) == [0] * SHARDS + list(range(1, SHARDS + 1))


if __name__ == "__main__":
    main()
