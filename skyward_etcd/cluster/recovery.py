"""Make a new cluster from what a lost one has left: the newest data that a surviving member has.

A member that has lost its majority still tells what it has, and its whole data, though nothing can be written. A new
cluster begins with that under another id and token, so that members of the old one can never mix with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from skyward_etcd.cluster.binary import Etcd, spell
from skyward_etcd.cluster.member import MemberSpec, data_directory, require_space
from skyward_etcd.errors import PoolError, QuorumLost, SkywardEtcdError
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.methods import STATUS

__all__ = ["newest", "restore", "save"]

_CALL_S = 3.0
_SAVE_S = 300.0


def newest(endpoints: Iterable[str]) -> str:
    """Return which of these members has the highest revision. They need no majority to tell.

    Raises:
        QuorumLost: none of them answers.
    """
    revisions: dict[str, int] = {}
    for endpoint in endpoints:
        with contextlib.suppress(SkywardEtcdError), contextlib.closing(Wire((endpoint,))) as wire:
            revisions[endpoint] = wire.call(STATUS, pb.StatusRequest(), timeout_s=_CALL_S).header.revision
    if not revisions:
        raise QuorumLost("no member of the cluster is left: there is nothing to recover from", maybe_applied=False)
    return max(revisions, key=lambda endpoint: revisions[endpoint])


def save(etcd: Etcd, endpoint: str, file: Path) -> None:
    """Write all the data of one member into a file, checked by its hash.

    Raises:
        PoolError: that was not possible, for the reason given.
    """
    file.unlink(missing_ok=True)
    _run(_tool(etcd, "etcdctl"), f"--endpoints={endpoint}", "snapshot", "save", file)


def restore(etcd: Etcd, file: Path, spec: MemberSpec) -> None:
    """Give a member that has never run the data of a file. Its spec says of which new cluster it is one.

    Raises:
        PoolError: that was not possible, for the reason given.
    """
    require_space(spec.data_dir, 1)
    spec.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    peers = ",".join(f"{name}={url}" for name, url in spec.initial_cluster.items())
    _run(
        _tool(etcd, "etcdutl" if etcd.version >= (3, 6, 0) else "etcdctl"),  # which could do it until then
        *("snapshot", "restore", file),
        f"--data-dir={data_directory(spec)}",
        f"--name={spec.name}",
        f"--initial-cluster={peers}",
        f"--initial-cluster-token={spec.token}",
        f"--initial-advertise-peer-urls={spec.peer_url}",
    )


def _tool(etcd: Etcd, name: str) -> Path:
    """Return the program of this name that lies beside etcd, else the one on PATH."""
    beside = etcd.path.parent / name
    found = beside if beside.exists() else shutil.which(name)
    if found is None:
        raise PoolError(
            f"to recover a cluster, {name} is needed beside {etcd.path} (etcd {spell(etcd.version)}), or on PATH: "
            "`skyward-etcd fetch` brings it; Debian's package is etcd-client"
        )
    return Path(found)


def _run(*command: str | Path) -> None:
    # As for a member: a tool takes nothing from ETCDCTL_... variables but the version of the interface.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "ETCDCTL_"))}
    environment["ETCDCTL_API"] = "3"
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SAVE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PoolError(f"the cluster could not be recovered: {error}") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise PoolError(f"the cluster could not be recovered: {command[0]} ended with {done.returncode}:\n{said}")
