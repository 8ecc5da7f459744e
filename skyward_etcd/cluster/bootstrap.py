"""Plan a cluster, and start its founders together.

Static bootstrap: every member is told the whole list, under a token that no other cluster has. Never two members.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from skyward_etcd.cluster import binary, private
from skyward_etcd.cluster.lifeline import SCRATCH
from skyward_etcd.cluster.member import Member, MemberSpec, PortTaken, require_space
from skyward_etcd.errors import PoolError

__all__ = [
    "LocalCluster",
    "check_size",
    "claim",
    "drop_plan",
    "free_ports",
    "has_plan",
    "newcomer",
    "plan",
    "planned",
    "replan",
    "start_all",
    "voters",
]

_PLAN = "cluster.json"


def voters(nodes: int, *, spot: bool = False) -> int:
    """Return how many of a pool's nodes run a member: 1 below 3 nodes, else 3, and 5 of 7 or more spot nodes.

    Never 2: two members fail when either does, so they are less safe than one. Five survive two losses at a time.

    Raises:
        ValueError: ``nodes`` is less than 1.
    """
    if nodes < 1:
        raise ValueError(f"a pool has at least one node, not {nodes}")
    if nodes < 3:
        return 1
    return 5 if spot and nodes >= 7 else 3


def plan(members: int, directory: Path, *, durable: bool = False) -> list[MemberSpec]:
    """Plan a cluster on this machine, with its data under ``directory``, on ports that are free now.

    A durable cluster has one plan for life, kept in its directory: members are known to each other by their addresses.

    Raises:
        ValueError: the number of members is even or less than 1.
        PoolError: the directory holds a cluster of another size.
    """
    check_size(members)
    if durable and (kept := _load(directory)):
        if len(kept) != members:
            raise PoolError(f"{directory} holds a cluster of {len(kept)} members, not {members}")
        return kept
    urls = [f"http://127.0.0.1:{port}" for port in free_ports(2 * members)]
    cluster = {f"m{number}": urls.pop() for number in range(1, members + 1)}
    token = secrets.token_hex(8)
    specs = [
        MemberSpec(name, directory / name, urls.pop(), peer_url, cluster, token, durable=durable, restarts=durable)
        for name, peer_url in cluster.items()
    ]
    if durable:
        _save(directory, specs)
    return specs


def check_size(members: int) -> None:
    """Make sure that a cluster may have so many members.

    Raises:
        ValueError: the number is even or less than 1.
    """
    if members < 1 or members % 2 == 0:
        raise ValueError(f"a cluster has 1, 3 or 5 members, not {members}: an even one is less safe, not more")


def newcomer(name: str, directory: Path, token: str) -> MemberSpec:
    """Plan a member that joins a running cluster on this machine, on ports that are free now.

    Name and directory are its own: no member before had them. Whom it joins, `membership` fills in.
    """
    client, peer = free_ports(2)
    urls = (f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}")
    return MemberSpec(name, directory / name, *urls, {}, token, state="existing")


def planned(directory: Path) -> list[MemberSpec]:
    """Return the plan of the durable cluster in a directory.

    Raises:
        PoolError: there is none.
    """
    kept = _load(directory)
    if kept is None:
        raise PoolError(f"there is no durable cluster in {directory}: it has no {_PLAN}")
    return kept


def has_plan(directory: Path) -> bool:
    """Tell whether a directory holds a durable cluster."""
    return (directory / _PLAN).exists()


def drop_plan(directory: Path) -> None:
    """Forget a durable cluster that has never been started."""
    (directory / _PLAN).unlink(missing_ok=True)


def replan(directory: Path, specs: Sequence[MemberSpec]) -> None:
    """Let a durable cluster go on with these members, at once and as a whole."""
    _save(directory, specs)


@contextlib.contextmanager
def claim(directory: Path) -> Generator[None, None, None]:
    """Keep a durable cluster's directory to ourselves, as long as this process lives.

    Raises:
        PoolError: somebody else has it.
    """
    private.directory(directory)
    with private.opened(directory / "lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PoolError(f"the durable cluster in {directory} is in use by another pool") from None
        yield


def start_all(members: Sequence[Member], timeout_s: float = 30.0) -> None:
    """Start members side by side and wait until all are ready; if one fails, none is left running.

    Raises:
        PortTaken: one of their ports was taken meanwhile: plan again.
        PoolError: one exited, or they are not ready in time.
    """
    deadline = time.monotonic() + timeout_s
    _require_space(members)
    try:
        for member in members:
            member.start()
        waiting = list(members)
        while waiting := [member for member in waiting if not member.ready()]:
            if time.monotonic() > deadline:
                name, tail = waiting[0].spec.name, waiting[0].log_tail()
                raise PoolError(f"etcd member {name} not ready after {timeout_s:g} s; the end of its log:\n{tail}")
            time.sleep(0.01)
    except BaseException:
        for member in members:
            member.kill()
        raise


def _require_space(members: Sequence[Member]) -> None:
    """Look at the room for all of them at once: each alone would find enough."""
    fresh = Counter(member.spec.data_dir.parent for member in members if not member.spec.data_dir.exists())
    for directory, count in fresh.items():
        require_space(directory, count)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that the kernel will give to nobody who does not ask for them, for a minute.

    A port that is free when we look may be anybody's when etcd starts. So each gets a connection that its own side
    closes: what remains of it (TIME_WAIT) keeps the port out of the kernel's choice, and lets a server that names the
    port have it.
    """
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(count):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # with SO_REUSEADDR
            client = stack.enter_context(socket.create_connection(server.getsockname()))
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)  # the end of file: the server's side has closed first
            ports.append(server.getsockname()[1])
        return ports


class LocalCluster:
    """A cluster of 1 or 3 members on this machine, for ``with``; gone with this process, however that ends.

    ``durable`` names a directory: what was written is safe on the disk there, and is found again by the next cluster
    with the same directory. Without it the data goes with the cluster.
    """

    def __init__(
        self, members: int = 1, *, etcd: binary.Etcd | str | Path | None = None, durable: str | Path | None = None
    ) -> None:
        self.members: list[Member] = []
        self._count = members
        self._choice = etcd.path if isinstance(etcd, binary.Etcd) else etcd
        self._durable = Path(durable).absolute() if durable is not None else None
        self._held = contextlib.ExitStack()

    @property
    def endpoints(self) -> list[str]:
        """``host:port`` of every member."""
        return [member.spec.endpoint for member in self.members]

    def start(self, timeout_s: float = 30.0) -> None:
        """Start the members and wait until they are ready.

        Raises:
            BinaryNotFound: there is no etcd.
            UnsafeEtcd: the etcd to be had cannot keep what this cluster promises.
            PoolError: it could not be started, for the reason given.
        """
        etcd = binary.find(self._choice, durable=self._durable is not None, members=self._count)
        with contextlib.ExitStack() as held:
            if self._durable:
                held.enter_context(claim(self._durable))
                self.members = _start(etcd, self._count, self._durable, durable=True, timeout_s=timeout_s)
            else:
                directory = Path(tempfile.mkdtemp(prefix=SCRATCH))
                held.callback(shutil.rmtree, directory, ignore_errors=True)
                self.members = _start(etcd, self._count, directory, durable=False, timeout_s=timeout_s)
            self._held = held.pop_all()

    def stop(self) -> None:
        """End all members: a durable cluster closes its files, of another nothing is kept."""
        for member in self.members:
            if self._durable:
                member.stop()
            else:
                member.kill()
        self._held.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _start(
    etcd: binary.Etcd, count: int, directory: Path, *, durable: bool, timeout_s: float, attempts: int = 5
) -> list[Member]:
    """Plan and start, with new ports if somebody was quicker than we; a cluster with data keeps its addresses."""
    kept = durable and has_plan(directory)
    members = [Member(etcd, spec) for spec in plan(count, directory, durable=durable)]
    try:
        start_all(members, timeout_s)
    except PortTaken:
        if kept or attempts == 1:
            raise
        drop_plan(directory)
        for member in members:  # those that did start know the old addresses
            shutil.rmtree(member.spec.data_dir, ignore_errors=True)
        return _start(etcd, count, directory, durable=durable, timeout_s=timeout_s, attempts=attempts - 1)
    return members


def _save(directory: Path, specs: Sequence[MemberSpec]) -> None:
    """Write the plan before anything is started by it, so that no data is ever without its plan."""
    private.directory(directory)
    urls = {spec.name: [spec.client_url, spec.peer_url] for spec in specs}
    private.write(directory / _PLAN, json.dumps({"token": specs[0].token, "members": urls}, indent=1).encode())


def _load(directory: Path) -> list[MemberSpec] | None:
    try:
        saved = json.loads((directory / _PLAN).read_text())
    except FileNotFoundError:
        return None
    cluster = {name: peer_url for name, (_, peer_url) in saved["members"].items()}
    return [
        MemberSpec(name, directory / name, client_url, peer_url, cluster, saved["token"], durable=True, restarts=True)
        for name, (client_url, peer_url) in saved["members"].items()
    ]
