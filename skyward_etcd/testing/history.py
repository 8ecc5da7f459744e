"""What concurrent callers saw of a collection, and what a check of it says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

__all__ = ["EMPTY", "Operation", "Verdict", "not_known", "one_by_one", "paragraph", "singles"]


class _Empty(Enum):
    EMPTY = "EMPTY"

    def __repr__(self) -> str:
        return self.value


EMPTY: Final = _Empty.EMPTY
"""The result of a queue's ``get`` that found no item. A ``None`` is an item."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call as its caller saw it: ``call`` and ``arguments`` as in the program, times from one clock, in any unit.

    ``returned=None``: the outcome is unknown. It may have happened at any time after ``invoked``, or never, with any
    result. One operation precedes another if it returned *before* the other was invoked; at equal times they overlap.
    """

    process: str
    call: str
    arguments: tuple[Any, ...]
    result: Any
    invoked: float
    returned: float | None

    def __post_init__(self) -> None:
        if self.returned is not None and self.returned < self.invoked:
            raise ValueError(f"{self.call} of {self.process} returned before it was invoked")

    @property
    def is_unknown(self) -> bool:
        """Whether its outcome is unknown."""
        return self.returned is None

    @property
    def until(self) -> float:
        """The last moment at which it can have happened."""
        return math.inf if self.returned is None else self.returned

    def __str__(self) -> str:
        arguments = ", ".join(map(repr, self.arguments))
        result = "?" if self.is_unknown else repr(self.result)
        until = "" if self.is_unknown else f" {round(self.until, 6)}"
        return f"[{round(self.invoked, 6)} ..{until}] {self.process}: {self.call}({arguments}) -> {result}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check found: true in a condition only if the history is linearizable, and its text says why not."""

    ok: bool | None
    """``None``: undecided within the limit."""
    reason: str
    """The explanation, in lines for a reader."""
    linearized: tuple[Operation, ...] = ()
    """An order that explains the history, part by part; if there is none, the longest that was found."""
    stuck: tuple[Operation, ...] = ()
    """If there is none: the operations that could have come next, which overlap, and of which none is possible."""

    def __bool__(self) -> bool:
        return self.ok is True

    def __str__(self) -> str:
        return self.reason


def one_by_one(history: Iterable[Operation]) -> list[Operation]:
    """Take each ``put_many`` and ``get_many`` as so many ``put`` and ``get``, in any order while it ran.

    A ``get_many`` that returned fewer items than it asked for has also found the queue `EMPTY`.
    """
    return [single for operation in history for single in singles(operation)]


def singles(operation: Operation) -> Iterator[Operation]:
    """Take one operation item by item, in its order."""
    match operation.call, operation.arguments:
        case "put_many", (items, *_):
            for item in items:
                yield replace(operation, call="put", arguments=(item,), result=None)
        case "get_many", (n, *_):
            results: Sequence[Any] = [None] * n if operation.is_unknown else operation.result
            for result in (*results, EMPTY)[:n]:
                yield replace(operation, call="get", arguments=(), result=result)
        case _:
            yield operation


def paragraph(title: str, operations: Sequence[Operation]) -> list[str]:
    """Return a title and a line for each operation; nothing at all if there are none."""
    return [f"  {title}", *(f"    {operation}" for operation in operations)] if operations else []


def not_known(operation: Operation) -> ValueError:
    """Return the error for a call that a checker has no rule for."""
    return ValueError(f"no rule for {operation.call!r} in {operation}")
