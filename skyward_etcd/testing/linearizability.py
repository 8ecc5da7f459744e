"""Whether what concurrent callers saw can be explained by one order of their calls, each at one moment while it ran.

`check` searches for such an order and shows it, or shows where every order ends; the same history always gets the
same verdict. `check_queue_by_revision` decides long queue histories, whose order of commitment etcd tells, in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from skyward_etcd.testing.history import EMPTY, Operation, Verdict, one_by_one, paragraph
from skyward_etcd.testing.queue_order import check_queue_by_revision
from skyward_etcd.testing.sequential import (
    IMPOSSIBLE,
    CounterModel,
    DictModel,
    LockModel,
    Model,
    QueueModel,
    SetModel,
)

__all__ = [
    "EMPTY",
    "IMPOSSIBLE",
    "CounterModel",
    "DictModel",
    "LockModel",
    "Model",
    "Operation",
    "QueueModel",
    "SetModel",
    "Verdict",
    "check",
    "check_queue_by_revision",
    "one_by_one",
]

State = TypeVar("State", bound=Hashable)


def check(model: Model[State], history: Iterable[Operation], *, limit: int = 1_000_000) -> Verdict:
    """Decide whether a history is linearizable (Herlihy and Wing, 1990), and explain.

    The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993): take one by one whatever
    could have come next, go back where nothing is possible; with Lowe's memory ("Testing for linearizability", 2017)
    of the configurations, what was taken and the state it led to, that were met before. Parts are checked one by
    one, which decides the whole (Horn and Kroening, "Faster linearizability checking via P-compositionality", 2015).
    As in Knossos and Porcupine, the time is about linear for some callers at once and some unknown outcomes, and
    exponential in their numbers at worst: ``limit`` bounds the configurations of each part, and what it does not let
    be decided is undecided.
    """
    parts: dict[Hashable, list[Operation]] = {}
    for operation in sorted(history, key=lambda operation: operation.invoked):
        parts.setdefault(model.part(operation), []).append(operation)
    linearized: list[Operation] = []
    undecided: list[Verdict] = []
    for part, operations in parts.items():
        verdict = _Search(model, operations).run(limit, where="" if part is None else f" (part {part!r})")
        if verdict.ok is False:
            return verdict
        if verdict.ok is None:
            undecided.append(verdict)
        linearized += verdict.linearized
    return undecided[0] if undecided else Verdict(ok=True, reason="linearizable", linearized=tuple(linearized))


class _Configuration(NamedTuple, Generic[State]):
    """What was taken up to here, and the state it led to; operations are numbered as they were invoked."""

    front: int
    """All of known outcome before this number were taken,"""
    ahead: int
    """and those of these bits, counted from ``front``,"""
    happened: int
    """and those of unknown outcome of these bits."""
    state: State

    @property
    def taken(self) -> int:
        """How many of known outcome were taken."""
        return self.front + self.ahead.bit_count()

    def take(self, number: int, state: State) -> _Configuration[State]:
        """Take one of known outcome."""
        front, ahead = self.front, self.ahead | 1 << number - self.front
        while ahead & 1:
            front, ahead = front + 1, ahead >> 1
        return _Configuration(front, ahead, self.happened, state)


class _Search(Generic[State]):
    """The search for an order of one part's operations."""

    def __init__(self, model: Model[State], operations: Sequence[Operation]) -> None:
        self.model = model
        self.known = [operation for operation in operations if not operation.is_unknown]
        self.unknown = [operation for operation in operations if operation.is_unknown]
        self.reads = [model.reads(operation) for operation in self.known]
        self.twin = self._twins()
        self.seen: dict[tuple[int, int, State], list[int]] = {}
        self.met = 0

    def run(self, limit: int, *, where: str) -> Verdict:
        configuration = furthest = _Configuration(0, 0, 0, self.model.initial())
        order: list[Operation] = []
        longest: list[Operation] = []
        trail = [(configuration, self._following(configuration))]
        while configuration.front < len(self.known):
            configuration, following = trail[-1]
            for operation, after in following:  # goes on where it stopped when we were here before
                if self._is_new(after):
                    order.append(operation)
                    trail.append((after, self._following(after)))
                    configuration = after
                    break
            else:
                if configuration.taken >= furthest.taken:
                    furthest, longest = configuration, order.copy()
                trail.pop()
                if not trail:
                    return self._stuck(furthest, longest, where)
                order.pop()
            if self.met > limit:
                reason = f"undecided{where}: {limit} configurations of {len(self.known)} operations were not enough"
                return Verdict(ok=None, reason=reason, linearized=tuple(longest))
        return Verdict(ok=True, reason="linearizable", linearized=tuple(order))

    def _is_new(self, here: _Configuration[State]) -> bool:
        """Tell whether none was met that could do all that this one can: the same, and no more has happened in it."""
        alike = self.seen.setdefault((here.front, here.ahead, here.state), [])
        if any(happened & here.happened == happened for happened in alike):
            return False
        alike.append(here.happened)
        self.met += 1
        return True

    def _following(self, here: _Configuration[State]) -> Iterator[tuple[Operation, _Configuration[State]]]:
        """Take each operation that can come next and is possible.

        What only reads is taken before all others, without an alternative. Those with unknown outcomes come last: what
        does not need them is not tried with them.
        """
        numbers = list(self._next(here))
        for number in numbers:
            if self.reads[number] and self.model.step(here.state, self.known[number]) is not IMPOSSIBLE:
                yield self.known[number], here.take(number, here.state)
                return
        for number in numbers:
            after = self.model.step(here.state, self.known[number])
            if after is not IMPOSSIBLE:
                yield self.known[number], here.take(number, after)
        for number in self._perhaps(here, horizon=min(self.known[number].until for number in numbers)):
            after = self.model.step(here.state, self.unknown[number])
            if after is not IMPOSSIBLE and after != here.state:  # without effect, it can as well not have happened
                yield self.unknown[number], here._replace(happened=here.happened | 1 << number, state=after)

    def _next(self, here: _Configuration[State]) -> Iterator[int]:
        """Number those that were invoked before any of the others had returned."""
        horizon = math.inf
        for number in range(here.front, len(self.known)):
            operation = self.known[number]
            if operation.invoked > horizon:
                return
            if not here.ahead >> number - here.front & 1:
                horizon = min(horizon, operation.until)
                yield number

    def _perhaps(self, here: _Configuration[State], horizon: float) -> Iterator[int]:
        """Number those that may happen now; of those that have the same effect, the one that was invoked first."""
        for number, operation in enumerate(self.unknown):
            if operation.invoked > horizon:
                return
            twin = self.twin[number]
            if not here.happened >> number & 1 and (twin is None or here.happened >> twin & 1):
                yield number

    def _twins(self) -> list[int | None]:
        """For each operation of unknown outcome, find the last one before that has the same effect."""
        last: dict[Hashable, int] = {}
        twins: list[int | None] = []
        for number, operation in enumerate(self.unknown):
            effect = self.model.effect(operation)
            twins.append(last.get(effect))
            last[effect] = number
        return twins

    def _stuck(self, furthest: _Configuration[State], order: Sequence[Operation], where: str) -> Verdict:
        stuck = sorted((self.known[number] for number in self._next(furthest)), key=lambda operation: operation.until)
        perhaps = [self.unknown[number] for number in self._perhaps(furthest, stuck[0].until)]
        lines = [
            f"not linearizable{where}: the longest order explains {furthest.taken} of {len(self.known)} operations",
            *paragraph("its last operations:", order[-4:]),
            f"  the state after them: {furthest.state!r}",
            *paragraph("what could come next; none leads on:", stuck),
            *paragraph("what may have happened besides; none helps:", perhaps),
        ]
        return Verdict(ok=False, reason="\n".join(lines), linearized=tuple(order), stuck=tuple(stuck))
