"""The fault lab: an etcd cluster and its clients on a network of their own, to kill, pause, cut off and heal.

What breaks here breaks as it does on real machines: processes get signals, networks lose packets. Everything ends with
the lab, and the lab with this process, however that ends; several labs may be open at once.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skyward_etcd.cluster import binary
from skyward_etcd.cluster.binary import Verdict, grade
from skyward_etcd.cluster.member import Member, MemberSpec
from skyward_etcd.cluster.membership import Membership
from skyward_etcd.cluster.process import Supervised, launch
from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.testing.network import Network, network
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire

__all__ = ["FaultLab"]

_OPERATOR = "operator"
_PAUSE_S = 0.05
"""Between two looks at a condition."""


class FaultLab:
    """A cluster of ``members`` members and some clients; for ``with``.

    Members are named m1, m2 …; ``clients`` are names for the places of processes that use the cluster. There is one
    more, ``operator``, from which the lab itself looks at the members: cut off only what is named.

    Args:
        members: how many.
        clients: names of the clients' places.
        etcd: the binary; by default the one that a pool would take.
        durable: write to the disk before acknowledging.
        kind: of the network: ``namespaces`` or ``proxies``; by default the former where it is to be had.
        directory: the parent of the lab's own; by default the one for temporary files.
    """

    def __init__(
        self,
        *,
        members: int = 3,
        clients: Sequence[str] = ("c1", "c2"),
        etcd: str | Path | None = None,
        durable: bool = False,
        kind: str | None = None,
        directory: str | Path | None = None,
    ) -> None:
        self.members: dict[str, Member] = {}
        """The members that belong to the cluster, running or not."""
        self.clients = tuple(clients)
        self._size = members
        self._choice = etcd
        self._durable = durable
        self._kind = kind
        self._parent = directory
        self._planned = 0
        self._leaving = contextlib.ExitStack()

    # ---- its life

    def start(self) -> None:
        """Make the network, start the members and wait until all are well.

        Raises:
            BinaryNotFound, UnsafeEtcd, PoolError: there is no etcd for this, or it could not be started.
        """
        with contextlib.ExitStack() as leaving:
            self.etcd = binary.find(self._choice, durable=self._durable, members=self._size)
            self.directory = Path(tempfile.mkdtemp(prefix="skyward-faults-", dir=self._parent))
            leaving.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.network: Network = network(self._kind)
            leaving.callback(self.network.close)
            for client in (_OPERATOR, *self.clients):
                self.network.add_client(client)
            founders = [self.plan() for _ in range(self._size)]
            peers = {spec.name: spec.peer_url for spec in founders}
            leaving.callback(self._kill_all)
            for spec in founders:
                self.start_member(replace(spec, initial_cluster=peers, state="new"))
            for name, member in self.members.items():
                with self.network.inside(name):
                    member.wait_ready()
            self._leaving = leaving.pop_all()

    def close(self) -> None:
        """End everything. May be called twice."""
        self._leaving.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- its clients

    def endpoints(self, client: str, members: Iterable[str] | None = None) -> list[str]:
        """Return ``host:port`` of the members (all of them by default), as this client reaches them."""
        return self.network.endpoints(client, list(members or self.members))

    def inside(self, client: str) -> contextlib.AbstractContextManager[None]:
        """Let what this thread starts and connects in the block be at this client's place."""
        return self.network.inside(client)

    def launch(self, client: str, command: Sequence[str | Path], **options: Any) -> Supervised:
        """Start a process at a client's place; it ends with the lab. Options are those of `cluster.process.launch`."""
        with self.inside(client):
            process = launch(command, **options)
        self._leaving.callback(process.kill)
        return process

    # ---- faults of members

    def kill(self, *names: str) -> None:
        """SIGKILL: the process is gone, and what it had given to the kernel is on its disk."""
        for name in names:
            self.members[name].kill()

    def pause(self, name: str) -> None:
        """SIGSTOP: it does nothing, its connections stay."""
        self.members[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.members[name].send_signal(signal.SIGCONT)

    def terminate(self, name: str) -> None:
        """SIGTERM: it hands over, and ends."""
        self.members[name].stop()

    def bring_back(self, *names: str) -> None:
        """Start members again from their disks; replace them where the release loses acknowledged writes by that."""
        unsafe = grade(self.etcd.version, durable=True, members=self._size).verdict is Verdict.REFUSED
        for name in names:
            if unsafe:
                self.replace(name)
            else:
                with self.network.inside(name):
                    self.members[name].start()
                self._runs(name)

    def replace(self, name: str) -> str:
        """Let a fresh member take the place of one that is dead for good; return its name."""
        self.members.pop(name).kill()
        fresh = self.plan()
        living = dict(zip(self.members, self.endpoints(_OPERATOR), strict=True))
        membership = Membership({**living, name: "127.0.0.1:1"})
        membership.lost(name)
        # The membership asks the newcomer too, where the operator reaches it.
        (endpoint,) = self.endpoints(_OPERATOR, [fresh.name])
        seen = replace(fresh, client_url=f"http://{endpoint}")

        def start(spec: MemberSpec) -> None:
            self.start_member(replace(spec, client_url=fresh.client_url))

        try:
            with self.inside(_OPERATOR):
                membership.replace(seen, start)
        finally:
            membership.close()
        return fresh.name

    def next_name(self) -> str:
        """Return the name that the next member will have: its directory has the same."""
        return f"m{self._planned + 1}"

    def plan(self) -> MemberSpec:
        """Return the spec of one more member, whose peers are still to be filled in."""
        name = self.next_name()
        self._planned += 1
        addresses = self.network.add_member(name)
        return MemberSpec(
            name,
            self.directory / name,
            addresses.client_url,
            addresses.peer_url,
            {},
            self.directory.name,
            state="existing",
            durable=self._durable,
            listen_peer_url=addresses.listen_peer_url,
            restarts=False,  # but by us: its disk goes when we go
        )

    def start_member(self, spec: MemberSpec) -> None:
        """Start a member of the cluster; do not wait for it."""
        member = self.members[spec.name] = Member(self.etcd, spec)
        with self.network.inside(spec.name):
            member.start()
        self._runs(spec.name)

    # ---- faults of the network

    def cut_off(self, name: str) -> None:
        """Lose all between this node and all others, silently: connections are half-open."""
        others = [other for other in self._nodes() if other != name]
        self.network.lose([name], others)
        self.network.lose(others, [name])

    def split(self, *groups: Sequence[str]) -> None:
        """Lose all between nodes of different groups. Who is in no group reaches everybody."""
        for group, other in itertools.permutations(groups, 2):
            self.network.lose(group, other)

    def heal(self) -> None:
        """Mend the network."""
        self.network.heal()

    # ---- looking

    def ask(self, name: str, method: Any, request: Any, *, timeout_s: float = 1.0) -> Any:
        """Send one request to one member, from the operator's place.

        Raises:
            SkywardEtcdError: what it says, or that it says nothing.
        """
        with self.inside(_OPERATOR):
            wire = Wire(self.endpoints(_OPERATOR, [name]))
            try:
                return wire.call(method, request, timeout_s=timeout_s)
            finally:
                wire.close()

    def leader(self, *, among: Sequence[str] = (), within_s: float = 20.0) -> str:
        """Return the name of the member that leads; wait for one."""
        found = self.until(lambda: self._leader(among or list(self.members)), "a leader", within_s=within_s)
        return str(found)

    def follower(self) -> str:
        """Return the name of a member that does not lead."""
        leader = self.leader()
        return next(name for name in self.members if name != leader)

    def leads(self) -> str | None:
        """Return the name of the member that leads now, if any says so."""
        return self._leader(list(self.members))

    def require_healthy(self, *, within_s: float = 30.0) -> None:
        """Wait until every member answers, follows the same leader, raises no alarm, and has the same data.

        Raises:
            TimeoutError: it does not come to that in time; what was seen last, and the members' last words.
        """
        problem = ["nobody was asked yet"]

        def is_well() -> bool:
            problem[0] = self._problem()
            return not problem[0]

        self.until(is_well, lambda: f"a healthy cluster: {problem[0]}\n{self._last_words()}", within_s=within_s)

    def until(self, condition: Callable[[], Any], what: str | Callable[[], str], *, within_s: float = 30.0) -> Any:
        """Wait for a condition, and return what it returned.

        Raises:
            TimeoutError: it did not come in time.
        """
        deadline = time.monotonic() + within_s
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"within {within_s:g} s there was not {what if isinstance(what, str) else what()}")
            time.sleep(_PAUSE_S)
        return found

    # ---- inside

    def _nodes(self) -> list[str]:
        return [*self.members, *self.clients]

    def _runs(self, name: str) -> None:
        pid = self.members[name].pid
        if pid is not None:
            self.network.runs(name, pid)

    def _kill_all(self) -> None:
        for member in self.members.values():
            member.kill()

    def _leader(self, among: Sequence[str]) -> str | None:
        for name in among:
            with contextlib.suppress(SkywardEtcdError):
                status = self.ask(name, methods.STATUS, pb.StatusRequest())
                if status.leader == status.header.member_id:
                    return name
        return None

    def _last_words(self) -> str:
        return "\n".join(f"{name}:\n{member.log_tail()}" for name, member in self.members.items())

    def _problem(self) -> str:
        """Say why the cluster is not healthy; nothing if it is."""
        try:
            # A linearizable read at each: it waits until the member has all that was committed before.
            read = pb.RangeRequest(key=b"-", count_only=True)
            revision = min(self.ask(name, methods.RANGE, read).header.revision for name in self.members)
            statuses = {name: self.ask(name, methods.STATUS, pb.StatusRequest()) for name in self.members}
            alarms = self.ask(next(iter(self.members)), methods.ALARM, pb.AlarmRequest()).alarms
            hashes = self._hashes(revision)
        except SkywardEtcdError as error:
            return str(error)
        if len({status.leader for status in statuses.values()}) > 1 or not all(s.leader for s in statuses.values()):
            return f"leaders: { {name: f'{status.leader:x}' for name, status in statuses.items()} }"
        if alarms:
            return f"alarms: {alarms}"
        if len(set(hashes.values())) > 1:
            return f"different data at revision {revision}: {hashes}"
        return ""

    def _hashes(self, revision: int) -> Mapping[str, tuple[int, int]]:
        asked = pb.HashKVRequest(revision=revision)
        replies = {name: self.ask(name, methods.HASH_KV, asked) for name in self.members}
        return {name: (reply.compact_revision, reply.hash) for name, reply in replies.items()}
