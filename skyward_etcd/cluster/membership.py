"""Change the members of a running cluster: one at a time, from one place, and never at the quorum's cost.

A member that is dead for good is removed, and a fresh one joins as a learner, which has no vote until it has caught up.
Each step begins with a look at the list of the members. So a step whose answer was lost is not taken twice, and what an
earlier attempt left half-done is finished or undone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from skyward_etcd.cluster.member import MemberSpec
from skyward_etcd.errors import EtcdError, PermissionDenied, PoolError, QuorumLost, SkywardEtcdError, Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Tls, Wire
from skyward_etcd.wire.methods import (
    MEMBER_ADD,
    MEMBER_LIST,
    MEMBER_PROMOTE,
    MEMBER_REMOVE,
    MOVE_LEADER,
    RANGE,
    STATUS,
)

__all__ = [
    "Add",
    "Await",
    "Heard",
    "Listed",
    "Membership",
    "Promote",
    "Remove",
    "Start",
    "Step",
    "hand_over",
    "hear",
    "next_step",
]

_log = logging.getLogger("skyward_etcd.cluster")

_CALL_S = 1.0
"""One request. A cluster without a leader drops a change of its members without a word, so we ask again soon."""
_NEARLY = 0.9
_NO_MACHINE = ("No route to host", "unreachable")
"""What the kernel says of a neighbour that has not answered it either."""
_PAUSE_S = 0.1
"""Between two looks. We wait for a condition, not for a server that has too much to do."""


class Membership:
    """The members of one cluster, for the one place that changes them. May be used by several threads.

    ``living`` are the client endpoints of all its members, by name; it is to have ``size`` of them, if not so many.
    Construct without I/O; `close` when done.
    """

    def __init__(self, living: Mapping[str, str], *, size: int | None = None, tls: Tls | None = None) -> None:
        self._size = size or len(living)
        self._living = dict(living)
        self._dead: set[str] = set()
        self._tls = tls
        self._wire = Wire(tuple(living.values()), tls=tls)
        self._guard = threading.Lock()
        self._changing = threading.Lock()
        self._closing = threading.Event()

    @property
    def living(self) -> Mapping[str, str]:
        """The endpoints of the members that have a vote and are not lost, by name."""
        with self._guard:
            return dict(self._living)

    def listed(self) -> list[Listed]:
        """Return the members as the quorum knows them, learners too. Two round trips.

        Raises:
            Unavailable, EtcdError: it was not to be had now.
        """
        return self._list()

    def lost(self, name: str) -> None:
        """Take note that a member is dead for good: it never runs again, not even from its disk.

        A change that is under way reckons with it from its next step on.
        """
        with self._guard:
            self._dead.add(name)
            self._living.pop(name, None)
            self._follow()

    def require_majority(self) -> None:
        """Check that the members that are not lost can be a majority, whether they answer now or not.

        Raises:
            QuorumLost: no member is left, or each one that is left knows that they are too few.
        """
        lost = QuorumLost(f"0 of the cluster's {self._size} members left is no majority")
        for endpoint in self.living.values():
            try:
                _check_quorum(self._own_list(endpoint), self._dead)
            except QuorumLost as error:
                lost = error
            except (EtcdError, Unavailable):  # it does not say: it may know better
                return
            else:
                return
        raise lost

    def replace(
        self,
        fresh: MemberSpec,
        start: Callable[[MemberSpec], None],
        *,
        check: Callable[[], None] = lambda: None,
        timeout_s: float = 60.0,
    ) -> None:
        """Let a fresh member take the place of a lost one; return when it has a vote, and serves.

        Replacements take turns. One that fails leaves no member behind that has a vote and does not run: what was begun
        is undone now, or by the next one. The fresh member then counts as lost: end it, and come back with another.

        Args:
            fresh: name, addresses and directory, which no member before ever had. The peers are filled in here.
            start: starts the member that it is given, and returns when that runs.
            check: raises if the member has ended since.
            timeout_s: for everything. etcd wants all members to be connected for 5 s before it lets another in.

        Raises:
            QuorumLost: the members that are not lost are no majority. Nothing was touched.
            PoolError: not done in time, for the reason given; nobody is lost; or the membership is closed.
        """
        try:
            with self._changing:
                self._bring_in_or_undo(fresh, start, check, time.monotonic() + timeout_s)
        finally:
            self._close_if_told()

    def remove(self, name: str, *, timeout_s: float = 10.0) -> None:
        """Take a member off the list with no other in its place: one that is dead, or one too many.

        Done when the list is without it, whoever has taken it off.

        Raises:
            PoolError: not done in time, for the reason given.
        """
        deadline = time.monotonic() + timeout_s
        try:
            with self._changing:
                self._remove(name, deadline)
        finally:
            self._close_if_told()

    def close(self) -> None:
        """Make no more replacements, and give up one that is under way, without waiting for that."""
        self._closing.set()
        self._close_if_told()

    # --- inside

    def _close_if_told(self) -> None:
        """Close the connection, once nobody uses it."""
        if self._closing.is_set() and self._changing.acquire(blocking=False):
            self._changing.release()
            self._wire.close()

    def _remove(self, name: str, deadline: float) -> None:
        problem: Exception | None = None
        while not self._closing.is_set() and time.monotonic() < deadline:
            try:
                found = next((member for member in self._list() if member.name == name), None)
                if found is None:
                    return
                self._call(MEMBER_REMOVE, pb.MemberRemoveRequest(ID=found.id))
            except PermissionDenied:
                raise
            except (EtcdError, Unavailable) as error:  # what has come of it, the next list tells
                problem = error
                self._closing.wait(_PAUSE_S)
        raise PoolError(f"etcd member {name} could not be removed in time: {problem}") from problem

    def _bring_in_or_undo(
        self, fresh: MemberSpec, start: Callable[[MemberSpec], None], check: Callable[[], None], deadline: float
    ) -> None:
        try:
            self._bring_in(fresh, start, check, deadline)
        except BaseException as error:
            self.lost(fresh.name)
            if not isinstance(error, QuorumLost):
                self._undo(fresh)
            raise
        with self._guard:
            self._living[fresh.name] = fresh.endpoint
            self._follow()

    def _bring_in(
        self, fresh: MemberSpec, start: Callable[[MemberSpec], None], check: Callable[[], None], deadline: float
    ) -> None:
        started = False
        problem: Exception | None = None
        self.require_majority()
        while True:
            if self._closing.is_set():
                raise PoolError(f"etcd member {fresh.name} was called off")
            if time.monotonic() > deadline:
                raise PoolError(f"etcd member {fresh.name} could not join in time: {problem}") from problem
            if started:
                check()
            try:
                step = next_step(self._list(), fresh, dead=self._dead, size=self._size, started=started)
                self._take(step, fresh)
            except (QuorumLost, PermissionDenied):
                raise
            except (EtcdError, Unavailable) as error:  # what has come of it, the next list tells
                _log.debug("etcd member %s: %s", fresh.name, error)
                problem = error
                self.require_majority()
                self._closing.wait(_PAUSE_S)
                continue
            _log.debug("etcd member %s: %s", fresh.name, step)
            if isinstance(step, Start):
                start(replace(fresh, initial_cluster=step.initial_cluster, state="existing"))
                started = True
            if isinstance(step, Await):
                return

    def _take(self, step: Step, fresh: MemberSpec) -> None:
        match step:
            case Remove(member=member):
                self._call(MEMBER_REMOVE, pb.MemberRemoveRequest(ID=member.id))
            case Add():
                self._call(MEMBER_ADD, pb.MemberAddRequest(peerURLs=[fresh.peer_url], isLearner=True))
            case Start():
                self._check_known_to_all(fresh)
            case Promote(member=member):
                self._call(MEMBER_PROMOTE, pb.MemberPromoteRequest(ID=member.id))
            case Await():
                if self._ask(fresh.endpoint, STATUS, pb.StatusRequest()).isLearner:
                    raise Unavailable(f"etcd member {fresh.name} has not heard of its vote yet")

    def _check_known_to_all(self, fresh: MemberSpec) -> None:
        """A newcomer asks any peer for the list, and exits if it is not on it: one may not have heard of it yet."""
        for endpoint in self.living.values():
            if all(member.peer_url != fresh.peer_url for member in self._own_list(endpoint)):
                raise Unavailable(f"{endpoint} has not heard of etcd member {fresh.name} yet")

    def _undo(self, fresh: MemberSpec) -> None:
        """Take a learner that did not make it off the list. If that is not to be had now, the next change does it."""
        with contextlib.suppress(SkywardEtcdError):
            for member in self._list():
                if member.learner and member.peer_url == fresh.peer_url:
                    self._take(Remove(member), fresh)

    def _list(self) -> list[Listed]:
        """Return the list of the members as the quorum knows it."""
        # etcd 3.4 answers with what the member that was asked knows. A linearizable read before brings it up to date.
        read = self._call(RANGE, pb.RangeRequest(key=b"health", keys_only=True))
        reply = self._call(MEMBER_LIST, pb.MemberListRequest(linearizable=True))
        if reply.header.member_id != read.header.member_id:
            raise Unavailable("two members have answered: which of them is up to date is not known")
        return _listed(reply)

    def _own_list(self, endpoint: str) -> list[Listed]:
        """Return the list as one member knows it, quorum or not."""
        return _listed(self._ask(endpoint, MEMBER_LIST, pb.MemberListRequest(linearizable=False)))

    def _call(self, method: Any, request: Any) -> Any:
        return self._wire.call(method, request, timeout_s=_CALL_S)

    def _ask(self, endpoint: str, method: Any, request: Any) -> Any:
        with contextlib.closing(Wire((endpoint,), tls=self._tls)) as wire:
            return wire.call(method, request, timeout_s=_CALL_S)

    def _follow(self) -> None:
        if self._living:
            self._wire.follow(tuple(self._living.values()))


# --- what to do next: decided by the list alone


@dataclass(frozen=True, slots=True)
class Listed:
    """A member as the cluster lists it."""

    id: int
    name: str
    """Empty until it has started for the first time."""
    peer_url: str
    learner: bool


@dataclass(frozen=True, slots=True)
class Remove:
    """Take a member off the list: a dead one, or a learner that an earlier attempt has left."""

    member: Listed


@dataclass(frozen=True, slots=True)
class Add:
    """Put the fresh member on the list, as a learner."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start the fresh member with exactly these peers."""

    initial_cluster: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Promote:
    """Give the fresh member its vote."""

    member: Listed


@dataclass(frozen=True, slots=True)
class Await:
    """It has its vote. Wait until it knows."""


Step = Remove | Add | Start | Promote | Await


def next_step(listed: Sequence[Listed], fresh: MemberSpec, *, dead: Collection[str], size: int, started: bool) -> Step:
    """Return what brings a cluster of ``size`` members nearer to having ``fresh`` and none of the ``dead``.

    Raises:
        QuorumLost: the members that are not dead are no majority.
        PoolError: all members are there, and one more would be an even number.
    """
    _check_quorum(listed, dead)
    # A machine that is replaced may leave its address to the next: its member, which has a name, is another's.
    mine = next(
        (member for member in listed if member.peer_url == fresh.peer_url and member.name in ("", fresh.name)), None
    )
    for member in listed:
        # etcd takes one learner at a time: one that is not ours is what an earlier attempt has left.
        if member is not mine and (member.learner or member.name in dead):
            return Remove(member)
    if mine is None:
        if len(listed) >= size:
            raise PoolError(f"the cluster has its {size} members: {', '.join(member.name for member in listed)}")
        return Add()
    if not mine.learner:
        return Await()
    if not started:
        return Start({fresh.name if member is mine else member.name: member.peer_url for member in listed})
    return Promote(mine)


def _check_quorum(listed: Sequence[Listed], dead: Collection[str]) -> None:
    voters = [member.name for member in listed if not member.learner]
    left = sum(name not in dead for name in voters)
    if left <= len(voters) // 2:
        raise QuorumLost(f"{left} of the cluster's {len(voters)} members left is no majority")


def _listed(reply: Any) -> list[Listed]:
    return [Listed(one.ID, one.name, one.peerURLs[0], one.isLearner) for one in reply.members]


# --- one member


class Heard(Enum):
    """What a member had to say."""

    ANSWER = auto()
    REFUSAL = auto()
    """Its machine at least is there."""
    NOTHING = auto()


def hear(endpoint: str, *, tls: Tls | None = None) -> Heard:
    """Ask a member for anything at all, quorum or not. Takes a second at most."""
    deadline = time.monotonic() + _CALL_S * _NEARLY
    try:
        with contextlib.closing(Wire((endpoint,), tls=tls)) as wire:
            wire.call(STATUS, pb.StatusRequest(), timeout_s=_CALL_S)
    except SkywardEtcdError as error:
        is_gone = time.monotonic() > deadline or any(words in str(error) for words in _NO_MACHINE)
        return Heard.NOTHING if is_gone else Heard.REFUSAL
    return Heard.ANSWER


def hand_over(endpoint: str, *, tls: Tls | None = None) -> bool:
    """Let another member lead if the one at this endpoint does, and return whether another does now.

    To be called before a member is stopped, and long before it is removed: the others then need no election, and
    clients see a gap of milliseconds. (Of a write that comes in just then, etcd may say nothing: its client asks
    again when its time is up.) Takes some seconds at most.
    """
    with contextlib.suppress(SkywardEtcdError), contextlib.closing(Wire((endpoint,), tls=tls)) as wire:
        status = wire.call(STATUS, pb.StatusRequest(), timeout_s=_CALL_S)
        if status.leader != status.header.member_id:
            return bool(status.leader)
        listed = _listed(wire.call(MEMBER_LIST, pb.MemberListRequest(linearizable=False), timeout_s=_CALL_S))
        for heir in [member for member in listed if not member.learner and status.leader != member.id]:
            with contextlib.suppress(EtcdError, Unavailable):  # it is gone itself: ask the next one
                wire.call(MOVE_LEADER, pb.MoveLeaderRequest(targetID=heir.id), timeout_s=_CALL_S)
                return True
    return False
