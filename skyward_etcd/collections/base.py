"""What every collection is: a name, and the session behind which its operations run."""

from __future__ import annotations

import json
import math
import numbers
import operator
import os
import time
from typing import ClassVar, Literal, Self, SupportsIndex, TypeVar, get_args

from skyward_etcd.ops.layout import Kind, check_name
from skyward_etcd.ops.proof import Guard
from skyward_etcd.session.session import Session

__all__ = ["Collection", "Consistency", "check_consistency", "check_count", "check_timeout", "guarded", "who"]

Consistency = Literal["eventual", "strong"]


def check_consistency(consistency: object) -> Consistency:
    """Return the level if it is one.

    Raises:
        ValueError: it is neither ``"eventual"`` nor ``"strong"``.
    """
    if consistency is None:
        return "eventual"
    if consistency in get_args(Consistency):
        return consistency  # type: ignore[return-value]
    raise ValueError(f'consistency={consistency!r}: it is "eventual" (the default) or "strong"')


def check_timeout(timeout: object) -> float | None:
    """Return a duration in seconds if it is one.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative or not a number.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):  # numpy's numbers are some too
        raise TypeError(f"timeout is in seconds, or None to wait for ever, not {timeout!r}")
    try:
        seconds = float(timeout)
    except OverflowError:  # 10**400
        seconds = math.inf if timeout == abs(timeout) else -math.inf
    if not seconds >= 0:
        raise ValueError(f"timeout={timeout!r}: it is in seconds from 0, or None to wait for ever")
    return seconds


def check_count(n: object, *, what: str) -> int:
    """Return a number if it is a whole one from 1.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is less than 1.
    """
    if isinstance(n, bool) or not isinstance(n, SupportsIndex):
        raise TypeError(f"{what} is a whole number, not {n!r}")
    try:
        number = operator.index(n)
    except TypeError:  # an array of several
        raise TypeError(f"{what} is a whole number, not {n!r}") from None
    if number < 1:
        raise ValueError(f"{what} is at least 1, not {number}")
    return number


def who(node: str, **more: int) -> bytes:
    """Return what a key says of the process that writes it, for operators: node, pid, and since when it is there."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"node": node, "pid": os.getpid(), "since": since, **more}).encode()


class Collection:
    """A handle: only a name. It may be shared by threads and tasks, and made again at no cost."""

    kind: ClassVar[Kind]
    is_data: ClassVar[bool] = False
    """Whether it stores what it is given: its reads have levels, and its writes may be guarded by a hold."""

    def __init__(self, session: Session, name: str, *, consistency: Consistency | None = "eventual") -> None:
        self.name = check_name(name, what=f"a {self.kind}'s name")
        self.consistency = check_consistency(consistency)
        self._session = session
        self._run = session.run
        self._run_async = session.run_async
        self._prefix = session.layout.collection(self.kind, name)
        self._what = f"{self.kind} {name!r}"
        self.guard: Guard | None = None
        """What must hold for what is written through this handle."""

    def __copy__(self) -> Self:
        return self  # a name has no state to copy

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @property
    def _strong(self) -> bool:
        return self.consistency == "strong"

    def __repr__(self) -> str:
        return f"<{self._what}, {self.consistency}>" if self.is_data else f"<{self._what}>"


C = TypeVar("C", bound=Collection)


def guarded(collection: C, guard: Guard) -> C:
    """Return a handle of the same collection whose writes are refused once the guard does not hold.

    Raises:
        TypeError: this kind of collection knows no such writes.
    """
    if not collection.is_data:
        raise TypeError(f"{collection!r}: only what is written to a dict, set or counter can be guarded by a hold")
    handle = object.__new__(type(collection))
    handle.__dict__.update(collection.__dict__)
    handle.guard = guard
    return handle
