"""Plan a cluster, and start its founders together.

Static bootstrap: every member is told the whole list, under a token that no other cluster has. Never two members.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from skyward_etcd.cluster import binary, private
from skyward_etcd.cluster.lifeline import SCRATCH, SOCKETS
from skyward_etcd.cluster.member import Member, MemberSpec, require_space
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
    "sockets_of",
    "start_all",
    "voters",
]

_PLAN = "cluster.json"
_LONGEST_PATH = 88
"""Bytes of a directory for sockets: the address of one has 104 on some systems, and a member's name comes after it."""
_SHORT = "/tmp"  # noqa: S108 - there may be a longer TMPDIR; what is in the way there, and not ours, is refused


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
    """Plan a cluster on this machine, with its data under ``directory``, and sockets that only this user can reach.

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
    urls = {name: _urls(name) for name in (f"m{number}" for number in range(1, members + 1))}
    specs = _specs(directory, urls, secrets.token_hex(8), durable=durable)
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


def newcomer(name: str, directory: Path, token: str, sockets: Path | None = None) -> MemberSpec:
    """Plan a member that joins a running cluster on this machine, which has its ``sockets`` there, or begins another.

    Name and directory are its own: no member before had them. Whom it joins, `membership` fills in.
    """
    place = directory.absolute() / name
    return MemberSpec(name, place, *_urls(name), {}, token, state="existing", sockets=sockets or sockets_of(directory))


def sockets_of(directory: Path) -> Path:
    """Return where the sockets are of a cluster that has its data in a directory: there, unless its path is too long.

    It is made when the first member starts, and goes with the cluster.
    """
    place = directory.absolute() / SOCKETS
    if len(os.fsencode(place)) <= _LONGEST_PATH:
        return place
    mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    return Path(_SHORT, f"{SCRATCH}{os.getuid()}-{mark}")


def _urls(name: str) -> tuple[str, str]:
    """Return the client's and the peers' URL of a member: the names of sockets, with etcd's own ports' numbers.

    No release that was tried (3.4.23, 3.5.1, 3.5.16) takes a path there.
    """
    return f"unix://{name}:2379", f"unix://{name}:2380"


def _specs(directory: Path, urls: Mapping[str, tuple[str, str]], token: str, *, durable: bool) -> list[MemberSpec]:
    cluster = {name: peer_url for name, (_, peer_url) in urls.items()}
    plain = MemberSpec("", directory, "", "", cluster, token, durable=durable, restarts=durable)
    return [
        replace(
            plain,
            name=name,
            data_dir=directory.absolute() / name,
            client_url=client_url,
            peer_url=peer_url,
            sockets=sockets_of(directory) if client_url.startswith("unix:") else None,
        )
        for name, (client_url, peer_url) in urls.items()
    ]


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
        """``unix:///path`` of every member's socket. Only this user, and root, can reach it."""
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
                directory = self._durable
                held.enter_context(claim(directory))
            else:
                directory = Path(tempfile.mkdtemp(prefix=SCRATCH))
                held.callback(shutil.rmtree, directory, ignore_errors=True)
            held.callback(shutil.rmtree, sockets_of(directory), ignore_errors=True)
            specs = plan(self._count, directory, durable=self._durable is not None)
            self.members = [Member(etcd, spec) for spec in specs]
            start_all(self.members, timeout_s)
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
    return _specs(directory, saved["members"], saved["token"], durable=True)
