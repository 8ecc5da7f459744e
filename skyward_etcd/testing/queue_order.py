"""Whether a long history of a queue is linearizable: etcd's revisions tell the order of the puts, one pass decides."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skyward_etcd.testing.history import EMPTY, Operation, Verdict, not_known, paragraph, singles

__all__ = ["check_queue_by_revision"]


def check_queue_by_revision(
    history: Iterable[Operation], revisions: Mapping[Any, int], *, remaining: Collection[Any] = ()
) -> Verdict:
    """Decide whether a history of a queue is linearizable when the order of its puts is known, in O(n log n).

    Calls and results are those of `QueueModel`, the ``_many`` taken item by item; all items must differ.
    ``revisions`` has the ``create_revision`` of every item that was ever committed (what a watch on the queue saw, or
    a dump), ``remaining`` the items that are left at the end. The check is exact: each acknowledged put is committed
    once and in the order of real time, its item is got once at most, after all older ones, and lost never; what is
    gone without a known taker was taken by a get of unknown outcome, if there is one for it; a get finds `EMPTY` only
    if there was such a moment.

    Raises:
        ValueError: two puts have equal items.
    """
    operations = sorted(history, key=lambda operation: operation.invoked)
    try:
        record = _Record(operations, remaining)
        record.check_items(revisions)
        passages = record.passages(revisions)
        _check_calls(passages, record.puts)
        _check_calls(passages, record.gets)
        _check_order(passages)
        _check_empty(passages, record)
    except _ViolationError as violation:
        lines = paragraph("these do not fit:", violation.operations)
        reason = "\n".join([f"not linearizable: {violation}", *lines])
        return Verdict(ok=False, reason=reason, stuck=tuple(violation.operations))
    return Verdict(ok=True, reason="linearizable")


class _ViolationError(Exception):
    """What is wrong, and the operations that show it."""

    def __init__(self, reason: str, *operations: Operation) -> None:
        super().__init__(reason)
        self.operations = operations


@dataclass(slots=True)
class _Passage:
    """One item's way through the queue: it came while ``put`` ran, and went while ``get`` ran (``None``: it stayed)."""

    item: Any
    put: Operation
    get: Operation | None
    came_by: float = math.inf
    """The last moment at which it can have come: before all younger ones."""
    went_from: float = math.inf
    """The first moment at which it can have gone: after all older ones."""

    @property
    def gone_from(self) -> float:
        """The first moment at which its get can have taken it."""
        return math.inf if self.get is None else self.get.invoked


class _Record:
    """Who put and who got which item."""

    def __init__(self, operations: Sequence[Operation], remaining: Collection[Any]) -> None:
        self.remaining = frozenset(remaining)
        self.puts: dict[Any, Operation] = {}
        self.gets: dict[Any, Operation] = {}
        self.losing_gets: list[Operation] = []
        self.empty_gets: list[tuple[Operation, Any]] = []
        for operation in operations:
            last: Any = EMPTY  # what the same call took before it found nothing more
            for single in singles(operation):
                self._note(single, operation, last)
                last = single.result

    def _note(self, single: Operation, operation: Operation, last: Any) -> None:
        match single.call:
            case "put":
                item = single.arguments[0]
                if item in self.puts:
                    raise ValueError(f"{item!r} is put twice: only different items can be told apart")
                self.puts[item] = operation
            case "get" if single.is_unknown:
                self.losing_gets.append(operation)
            case "get" if single.result is EMPTY:
                self.empty_gets.append((operation, last))
            case "get":
                if single.result in self.gets:
                    raise _ViolationError(f"{single.result!r} was got twice", self.gets[single.result], operation)
                self.gets[single.result] = operation
            case _:
                raise not_known(operation)

    def check_items(self, revisions: Mapping[Any, int]) -> None:
        """Compare what was put, committed, got and left."""
        for item, get in self.gets.items():
            if item not in self.puts:
                raise _ViolationError(f"{item!r} was got, and never put", get)
            if item in self.remaining:
                raise _ViolationError(f"{item!r} was got, and is still there", self.puts[item], get)
        for item, put in self.puts.items():
            if item not in revisions and (not put.is_unknown or item in self.gets):
                raise _ViolationError(f"{item!r} was never committed", put, *self._get_of(item))
        for item in (*revisions, *self.remaining):
            if item not in self.puts or item not in revisions:
                raise _ViolationError(f"{item!r} is in the queue, and was never put")

    def passages(self, revisions: Mapping[Any, int]) -> list[_Passage]:
        """Give every item its put and its get, in the order of commitment.

        Who took an item that is gone is not known: the oldest goes to the unknown get that was invoked first, which
        leaves the most room to all others.
        """
        # Items of one revision were put by one put_many, and `puts` has them in its order.
        position = {item: number for number, item in enumerate(self.puts)}
        takers = iter(self.losing_gets)
        passages: list[_Passage] = []
        for item in sorted(revisions, key=lambda item: (revisions[item], position[item])):
            get = self.gets.get(item)
            if get is None and item not in self.remaining:
                get = next(takers, None)
                if get is None:
                    raise _ViolationError(f"{item!r} is lost: it was put, nobody got it, it is gone", self.puts[item])
            passages.append(_Passage(item, self.puts[item], get))
        return passages

    def _get_of(self, item: Any) -> Sequence[Operation]:
        return [self.gets[item]] if item in self.gets else []


def _check_calls(passages: Sequence[_Passage], calls: Mapping[Any, Operation]) -> None:
    """See whether the items of one call, which are in its order in ``calls``, were committed in that order."""
    position = {item: number for number, item in enumerate(calls)}
    last: dict[int, int] = {}  # by identity: operations with lists as arguments have no hash
    for passage in passages:
        if passage.item in calls:
            call = calls[passage.item]
            if last.get(id(call), -1) > position[passage.item]:
                raise _ViolationError("one call has its items in another order than they were committed", call)
            last[id(call)] = position[passage.item]


def _check_order(passages: Sequence[_Passage]) -> None:
    """Let every item come and go as early as real time and its elders allow, and see whether that is early enough.

    On the way it notes, for each item, how early it can go and how late it can come.
    """
    came, last_to_come = -math.inf, None
    went, last_to_go = -math.inf, None
    for passage in passages:
        if last_to_come is None or passage.put.invoked > came:
            came, last_to_come = passage.put.invoked, passage
        if passage.put.until < came:
            reason = f"{last_to_come.item!r} was committed before {passage.item!r}, whose put had ended before"
            raise _ViolationError(reason, passage.put, last_to_come.put)
        if passage.get is not None and passage.get.until < came:
            reason = f"{passage.item!r} was got before it, or an older item, was put"
            raise _ViolationError(reason, passage.get, last_to_come.put)
        if last_to_go is None or passage.gone_from > went:
            went, last_to_go = passage.gone_from, passage
        if passage.get is not None and (last_to_go.get is None or passage.get.until < went):
            reason = f"{passage.item!r} was taken before {last_to_go.item!r}, which is older"
            raise _ViolationError(reason, passage.get, last_to_go.get or last_to_go.put)
        passage.went_from = max(went, came)
    came_by = math.inf
    for passage in reversed(passages):
        came_by = passage.came_by = min(came_by, passage.put.until)


def _check_empty(passages: Sequence[_Passage], record: _Record) -> None:
    """See whether there was a moment without items in each get that found none.

    That every item comes as late and goes as early as it can is possible for all at once. Both times grow from item
    to item, so that of all the items that have come by a moment, the last one goes last.
    """
    came_by = [passage.came_by for passage in passages]
    went_from = {passage.item: passage.went_from for passage in passages}
    for get, last in record.empty_gets:
        moment = max(get.invoked, went_from.get(last, -math.inf))
        while came := bisect_left(came_by, moment):
            there = passages[came - 1]
            if there.went_from <= moment:
                break
            moment = there.went_from
            if moment > get.until:
                raise _ViolationError(f"the queue was not empty: {there.item!r} was there", there.put, get)
