"""The cluster's members on the pool's nodes: which node runs which, and a fresh one where one is lost.

The pool is the one place that changes its cluster's members, and it changes one at a time.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from skyward_etcd.cluster import bootstrap, recovery
from skyward_etcd.cluster.binary import Etcd, Verdict, grade, spell
from skyward_etcd.cluster.member import MemberSpec
from skyward_etcd.cluster.membership import Membership
from skyward_etcd.errors import QuorumLost
from skyward_etcd.pool.handle import NodeHandle
from skyward_etcd.session import recovered

__all__ = ["Members"]

_log = logging.getLogger("skyward_etcd.pool")

_LONGEST_PAUSE_S = 30.0
"""Between two attempts to replace a member, when there is no room for it or the like."""


class Members:
    """The members of one pool, on its first nodes. ``by_node`` says which node begins with which; None: it gets one.

    ``on_change`` is called when they have changed, and ``on_end`` with the reason when their majority is lost for good.
    Both come from threads of the pool's.
    """

    def __init__(
        self,
        etcd: Etcd,
        by_node: Mapping[int, MemberSpec | None],
        *,
        new_directory: Callable[[], Path],
        on_change: Callable[[], None],
        on_end: Callable[[QuorumLost], None],
        numbers: Iterator[int] | None = None,
    ) -> None:
        founders = [member for member in by_node.values() if member]
        self.etcd = etcd
        self._by_node = dict(by_node)
        """Those nodes that have a member; None where it is lost and not replaced yet."""
        self._membership = Membership({member.name: member.endpoint for member in founders}, size=len(by_node))
        self._token, self._sockets = founders[0].token, founders[0].sockets
        self._numbers = numbers or itertools.count(len(founders) + 1)
        self._new_directory = new_directory
        self._on_change = on_change
        self._on_end = on_end
        self._vacant: queue.SimpleQueue[NodeHandle | None] = queue.SimpleQueue()
        self._failures = 0
        self._closing = threading.Event()
        self._guard = threading.Lock()
        self._coordinator: threading.Thread | None = None

    def of(self, node: int) -> MemberSpec | None:
        """Return the member that a node has to start with, if it has one."""
        return self._by_node.get(node)

    def endpoints(self, node: int | None = None) -> tuple[str, ...]:
        """Return the endpoints of the members, as it suits a node: its own first, and those without one spread out."""
        members = [(index, member.endpoint) for index, member in self._by_node.items() if member]
        if not members or node is None:
            return tuple(endpoint for _, endpoint in members)
        first = next((place for place, (index, _) in enumerate(members) if index == node), node % len(members))
        return tuple(endpoint for _, endpoint in (*members[first:], *members[:first]))

    def node_lost(self, node: int, reason: str) -> bool:
        """Take note that a node has died, and say whether the cluster goes on.

        A member that restarts from its disk will do so with the next node; any other is lost.
        """
        member = self._by_node.get(node)
        return (member is not None and member.restarts) or self.member_lost(node, reason)

    def member_lost(self, node: int, reason: str) -> bool:
        """Take note that a node's member is lost for good, and say whether the cluster goes on."""
        with self._guard:
            member = self._by_node.get(node)
            if member and not member.durable:
                self._by_node[node] = None
        if member is None:
            return True
        self._membership.lost(member.name)
        try:
            self._membership.require_majority()
        except QuorumLost as error:
            self._end(f"{reason}{self._why_not_restarted(member)}; {error}")
            return False
        return True

    def fill(self, node: NodeHandle) -> None:
        """Give a node a fresh member in the place of a lost one, if it is to have one. Does not wait for it."""
        if self._by_node.get(node.index, _NONE_WANTED) is not None:
            return
        self._vacant.put(node)
        with self._guard:
            if self._coordinator is None:
                self._coordinator = threading.Thread(target=self._fill_all, name="members", daemon=True)
                self._coordinator.start()

    def recover(self, nodes: Mapping[int, NodeHandle]) -> Members:
        """Make a new cluster from the newest data that members of the lost one have; return its members.

        It begins with one member, on the node of those data; `fill` gives the other nodes theirs. Nobody knows of it
        yet. If this fails, and the data are still there, it can be tried again.

        Raises:
            QuorumLost: no member is left.
            PoolError: it was not possible, for the reason given.
            Unavailable: the member with these data does not give them.
        """
        living = {member.endpoint: nodes[node] for node, member in self._by_node.items() if member and node in nodes}
        endpoint, _ = recovery.newest(living)
        directory = self._new_directory()
        try:
            recovery.save(endpoint, directory / "snapshot")
            member = self._restored(directory / "snapshot", living[endpoint])
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        recovered.make_fit(member.endpoint)
        return Members(
            self.etcd,
            {**dict.fromkeys(self._by_node), living[endpoint].index: member},
            new_directory=self._new_directory,
            on_change=self._on_change,
            on_end=self._on_end,
            numbers=self._numbers,
        )

    def _restored(self, snapshot: Path, node: NodeHandle) -> MemberSpec:
        """Have a node run a member with the data of a snapshot: the only one of a new cluster."""
        fresh = replace(self._newcomer(secrets.token_hex(8)), state="new")
        fresh = replace(fresh, initial_cluster={fresh.name: fresh.peer_url})
        recovery.restore(self.etcd, snapshot, fresh)
        node.start_member(self.etcd, fresh)
        return fresh

    def _newcomer(self, token: str) -> MemberSpec:
        return bootstrap.newcomer(f"m{next(self._numbers)}", self._new_directory(), token, self._sockets)

    def close(self) -> None:
        """Change nothing any more; what is under way is given up."""
        self._closing.set()
        self._membership.close()
        self._vacant.put(None)

    # --- inside: the coordinator's thread

    def _fill_all(self) -> None:
        for node in iter(self._vacant.get, None):
            if not self._closing.is_set() and node.alive and self._by_node[node.index] is None:
                self._fill(node)

    def _fill(self, node: NodeHandle) -> None:
        fresh = self._newcomer(self._token)
        try:
            self._membership.replace(fresh, partial(node.start_member, self.etcd), check=node.check_member)
            self._by_node[node.index] = fresh
            node.check_member()  # it may have died just before it had its place, when nobody knew whose it is
        except QuorumLost as error:
            self._end(str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, the others go on, and another attempt may do better
            self._membership.lost(fresh.name)
            self._by_node[node.index] = None
            if node.alive and not self._closing.is_set():
                self._try_again(node, error)
        else:
            self._failures = 0
            _log.info("%s has a fresh etcd member, %s", node.name, fresh.name)
            self._on_change()

    def _try_again(self, node: NodeHandle, error: Exception) -> None:
        _log.warning("the member of %s is not replaced yet: %s", node.name, error)
        self._failures += 1
        self._closing.wait(min(_LONGEST_PAUSE_S, 2.0**self._failures / 4))
        self._vacant.put(node)

    def _end(self, reason: str) -> None:
        if self._closing.is_set():
            return
        if any(self._by_node.values()):
            way_out = "pool.recover() makes a new one from what is left, without what only the lost members knew"
        else:
            way_out = "and no member is left to recover it from: the pool is at its end"
        self._on_end(QuorumLost(f"{reason}: the cluster is lost; {way_out}", maybe_applied=False))

    def _why_not_restarted(self, member: MemberSpec) -> str:
        """Say what a sounder release would have saved: the only member may restart from its disk."""
        verdict = grade(self.etcd.version, durable=True, members=1)
        if len(member.initial_cluster) > 1 or verdict.verdict is not Verdict.REFUSED:
            return ""
        return f", and etcd {spell(self.etcd.version)} is not started again from its disk: {verdict.reason}"


_NONE_WANTED = object()
