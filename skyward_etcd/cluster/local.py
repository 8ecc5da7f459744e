"""A cluster on this machine that outlives the command which starts it: for development.

A process of its own keeps the members and nothing else; it is found by what it has recorded of itself, never by a name,
and its members end with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from skyward_etcd import config
from skyward_etcd.cluster import binary, private
from skyward_etcd.cluster.bootstrap import LocalCluster, check_size, claim, has_plan, planned
from skyward_etcd.cluster.member import Member
from skyward_etcd.errors import PoolError, SkywardEtcdError

__all__ = ["Running", "down", "running", "size", "up"]

_RECORD = "running.json"
_LOG = "up.log"
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Running:
    """What a keeper has recorded of itself."""

    pid: int
    started: str
    """The boot, and the moment in it at which the process began: no other process of this id has both."""
    endpoints: Sequence[str]
    version: str
    durable: bool


def up(
    directory: Path, *, members: int = 3, durable: bool = True, etcd: Path | None = None, timeout_s: float = 60.0
) -> Running:
    """Start a cluster and leave it running; if one runs there already, return that one.

    Raises:
        BinaryNotFound, UnsafeEtcd: there is no etcd for it.
        PoolError: it could not be started, or one of another size runs there.
        ValueError: a cluster cannot have so many members.
    """
    check_size(members)
    there = running(directory)
    if there is not None:
        if len(there.endpoints) != members:
            raise PoolError(f"a cluster of {len(there.endpoints)} members runs in {directory}: take it down first")
        return there
    chosen = binary.find(etcd, durable=durable, members=members)  # what is wrong with it shows here
    private.directory(directory)
    command = [sys.executable, "-m", "skyward_etcd.cluster.local", str(directory), str(members), str(chosen.path)]
    with private.opened(directory / _LOG, "ab") as log:
        keeper = subprocess.Popen(
            [*command, *(() if durable else ("--ephemeral",))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=config.environment_without_secrets(),
        )
    deadline = time.monotonic() + timeout_s
    while (there := running(directory)) is None or there.pid != keeper.pid:
        if keeper.poll() is not None:
            raise PoolError(f"the cluster was not started:\n{_tail(directory / _LOG)}")
        if time.monotonic() > deadline:
            keeper.kill()
            keeper.wait()
            raise PoolError(f"the cluster was not ready after {timeout_s:g} s:\n{_tail(directory / _LOG)}")
        time.sleep(0.02)
    keeper.returncode = 0  # it lives on, and is nobody's to wait for
    return there


def down(directory: Path, *, timeout_s: float = 20.0) -> bool:
    """End the cluster that runs in a directory; its data stay if it is durable. False: none runs there."""
    there = running(directory)
    if there is None:
        return False
    try:
        process = os.pidfd_open(there.pid)
    except ProcessLookupError:
        return False
    try:
        if _began(there.pid) != there.started:  # since we looked, its id has become another's
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
            ended, _, _ = select.select([process], [], [], timeout_s)
            if not ended:
                signal.pidfd_send_signal(process, signal.SIGKILL)  # its members end with it all the same
                select.select([process], [], [], timeout_s)
    finally:
        os.close(process)
    (directory / _RECORD).unlink(missing_ok=True)
    return True


def running(directory: Path) -> Running | None:
    """Return the cluster that runs in a directory, if one does."""
    try:
        found = Running(**json.loads((directory / _RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if _began(found.pid) == found.started else None


def size(directory: Path, default: int = 3) -> int:
    """Return how many members the cluster in a directory has, running or kept; else the default."""
    there = running(directory)
    if there is not None:
        return len(there.endpoints)
    return len(planned(directory)) if has_plan(directory) else default


def _began(pid: int) -> str:
    """Return when a process began, in words that no other process has; nothing if there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot}:{fields[19]}"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


# ---- the keeper


def _keep(directory: Path, members: int, etcd: Path, *, durable: bool) -> None:
    """Run a cluster until SIGTERM. Members that die start again from their disks, if they may."""
    told = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        told.set()

    signal.signal(signal.SIGTERM, end)
    with contextlib.ExitStack() as stack:
        if not durable:
            stack.enter_context(claim(directory))
        cluster = stack.enter_context(LocalCluster(members, etcd=etcd, durable=directory if durable else None))
        version = binary.spell(cluster.members[0].etcd.version)
        me = Running(os.getpid(), _began(os.getpid()), cluster.endpoints, version, durable)
        private.write(directory / _RECORD, json.dumps(asdict(me)).encode())
        stack.callback((directory / _RECORD).unlink, missing_ok=True)
        while not told.wait(_LOOK_S):
            for member in cluster.members if durable else ():
                _start_again(member)


def _start_again(member: Member) -> None:
    if not member.alive:
        try:
            member.start()
        except SkywardEtcdError as error:
            sys.stderr.write(f"{member.spec.name}: {error}\n")
        else:
            sys.stderr.write(f"{member.spec.name} had ended, and is started again\n")


def _main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("members", type=int)
    parser.add_argument("etcd", type=Path)
    parser.add_argument("--ephemeral", action="store_true")
    told = parser.parse_args()
    try:
        _keep(told.directory, told.members, told.etcd, durable=not told.ephemeral)
    except SkywardEtcdError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
