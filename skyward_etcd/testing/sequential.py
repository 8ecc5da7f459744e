"""What each collection does when it is called by one after the other: what a concurrent history is measured by.

Calls, arguments and results are those of the collections' own methods.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, TypeVar

from skyward_etcd.collections.dict import ABSENT
from skyward_etcd.testing.history import EMPTY, Operation, not_known

__all__ = ["IMPOSSIBLE", "CounterModel", "DictModel", "Impossible", "LockModel", "Model", "QueueModel", "SetModel"]


class Impossible(Enum):
    """The type of `IMPOSSIBLE`."""

    IMPOSSIBLE = "IMPOSSIBLE"

    def __repr__(self) -> str:
        return self.value


IMPOSSIBLE: Final = Impossible.IMPOSSIBLE
"""What `Model.step` returns when the operation cannot have had its result in that state."""

State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """What a collection does when it is called by one after the other."""

    def initial(self) -> State:
        """Return the state before the first operation."""
        ...

    def step(self, state: State, operation: Operation) -> State | Impossible:
        """Return the state after the operation, or `IMPOSSIBLE` if it cannot have had its result in this state.

        If its outcome is unknown, any result is possible.
        """
        ...

    def part(self, operation: Operation) -> Hashable:  # noqa: ARG002 - for models that have parts
        """Name the part, for example the key, that the operation is about. Each part is checked by itself."""
        return None

    def effect(self, operation: Operation) -> Hashable:
        """Name what it does apart from its result: of operations with equal effects, any may stand for another."""
        return operation.call, operation.arguments

    def reads(self, operation: Operation) -> bool:  # noqa: ARG002 - for models that have such operations
        """Tell whether an operation with this result changes nothing in any state: it need not be tried late."""
        return False


@dataclass(frozen=True, slots=True)
class DictModel(Model[Hashable]):
    """A dict, entry by entry: ``get``, ``contains``, ``set``, ``delete``, ``pop``, ``setdefault``, ``compare_and_set``.

    As in the calls themselves, an entry that is not there is ``None`` unless the arguments contain a default. Values
    must be hashable.
    """

    start: Hashable = ABSENT
    """Each entry's value before the first operation."""

    def initial(self) -> Hashable:
        """Return the value that each entry starts with."""
        return self.start

    def part(self, operation: Operation) -> Hashable:
        """Name the key."""
        key: Hashable = operation.arguments[0]
        return key

    def reads(self, operation: Operation) -> bool:
        """Tell whether it only looked, or found nothing to change."""
        found_nothing = operation.call in ("delete", "compare_and_set") and operation.result is False
        return operation.call in ("get", "contains") or found_nothing

    def step(self, state: Hashable, operation: Operation) -> Hashable:
        """Return the entry's value, or ``ABSENT``, after the operation."""
        arguments: tuple[Hashable, ...] = operation.arguments[1:]
        there = state is not ABSENT
        # For what takes a default: the value that is found.
        found = state if there else arguments[0] if arguments else None
        match operation.call:
            case "set":
                expected, after = operation.result, arguments[0]
            case "get":
                expected, after = found, state
            case "contains":
                expected, after = there, state
            case "delete":
                expected, after = there, ABSENT
            case "pop":
                expected, after = found, ABSENT
            case "setdefault":
                expected, after = found, found
            case "compare_and_set":
                expected, after = (True, arguments[1]) if state == arguments[0] else (False, state)
            case _:
                raise not_known(operation)
        return _if_result(operation, expected, after)


@dataclass(frozen=True, slots=True)
class CounterModel(Model[int]):
    """A counter: ``increment(n=1)`` and ``decrement(n=1)`` to the new total, ``value()``, ``reset(value=0)``."""

    start: int = 0

    def initial(self) -> int:
        """Return the total that it starts with."""
        return self.start

    def reads(self, operation: Operation) -> bool:
        """Tell whether it only looked."""
        return operation.call == "value"

    def step(self, state: int, operation: Operation) -> int | Impossible:
        """Return the total after the operation."""
        match operation.call:
            case "value":
                return _if_result(operation, state, state)
            case "increment" | "decrement":
                n = operation.arguments[0] if operation.arguments else 1
                total = state + n if operation.call == "increment" else state - n
                return _if_result(operation, total, total)
            case "reset":
                return operation.arguments[0] if operation.arguments else 0
            case _:
                raise not_known(operation)


@dataclass(frozen=True, slots=True)
class SetModel(Model[bool]):
    """A set, member by member: ``add`` and ``discard`` tell whether they changed it, ``contains``."""

    def initial(self) -> bool:
        """Return that nothing is a member."""
        return False

    def part(self, operation: Operation) -> Hashable:
        """Name the member."""
        member: Hashable = operation.arguments[0]
        return member

    def reads(self, operation: Operation) -> bool:
        """Tell whether it only looked, or found nothing to change."""
        return operation.call == "contains" or operation.result is False

    def step(self, state: bool, operation: Operation) -> bool | Impossible:  # noqa: FBT001 - the state
        """Return whether it is a member after the operation."""
        match operation.call:
            case "contains":
                return _if_result(operation, state, state)
            case "add":
                return _if_result(operation, not state, True)
            case "discard":
                return _if_result(operation, state, False)
            case _:
                raise not_known(operation)


@dataclass(frozen=True, slots=True)
class LockModel(Model[tuple[str | None, int]]):
    """A lock with fencing tokens: one holder at most, and each hold's token is greater than all before.

    ``acquire()`` to the token, or to anything but a number if it was not to be had in time; ``release()`` or
    ``release(token)`` to ``None``, or to ``False`` (or the error's name) if the hold was lost before; ``expire()``
    where the process's session may have ended, which frees what it holds. An ``acquire`` whose outcome is unknown is a
    hold if it happened: whatever gives it up in the end (the session's end, the clean-up after the call) is to be in
    the history too, as an ``expire``.
    """

    def initial(self) -> tuple[str | None, int]:
        """Return that nobody holds it."""
        return None, 0

    def effect(self, operation: Operation) -> Hashable:
        """Name the caller too: it is who holds the lock."""
        return operation.process, operation.call, operation.arguments

    def step(self, state: tuple[str | None, int], operation: Operation) -> tuple[str | None, int] | Impossible:
        """Return who holds the lock after the operation, and the newest token."""
        holder, newest = state
        match operation.call:
            case "acquire" if operation.is_unknown:
                # A token that nobody saw was at least the next one; to assume more would only exclude later ones.
                return (operation.process, newest + 1) if holder is None else IMPOSSIBLE
            case "acquire" if not isinstance(operation.result, int):
                return state  # not acquired in time
            case "acquire":
                is_free = holder is None and operation.result > newest
                return (operation.process, operation.result) if is_free else IMPOSSIBLE
            case "release":
                is_held = holder == operation.process and operation.arguments in ((), (newest,))
                may_be = operation.is_unknown or is_held == (operation.result in (None, True))
                return ((None, newest) if is_held else state) if may_be else IMPOSSIBLE
            case "expire":
                return (None, newest) if holder == operation.process else state
            case _:
                raise not_known(operation)


@dataclass(frozen=True, slots=True)
class QueueModel(Model[tuple[Hashable, ...]]):
    """A short first-in-first-out queue: ``put(item)``, ``put_many(items)``, ``get()``, ``get_many(n)``.

    A ``get`` results in the first item or `EMPTY`, a ``get_many`` in all items up to ``n``; the ``_many`` are atomic.
    Where a collection promises less, check ``one_by_one(history)``. Items must be hashable.
    """

    start: tuple[Hashable, ...] = ()

    def initial(self) -> tuple[Hashable, ...]:
        """Return the items that it starts with."""
        return self.start

    def effect(self, operation: Operation) -> Hashable:
        """Name the call and its items, which may come as a list."""
        if operation.call == "put_many":
            return operation.call, tuple(operation.arguments[0])
        return operation.call, operation.arguments

    def reads(self, operation: Operation) -> bool:
        """Tell whether it found nothing to take."""
        return operation.call == "get" and operation.result is EMPTY

    def step(self, state: tuple[Hashable, ...], operation: Operation) -> tuple[Hashable, ...] | Impossible:
        """Return the items after the operation."""
        match operation.call:
            case "put":
                return (*state, operation.arguments[0])
            case "put_many":
                return (*state, *operation.arguments[0])
            case "get":
                return _if_result(operation, state[0] if state else EMPTY, state[1:])
            case "get_many":
                n: int = operation.arguments[0]
                may_be = operation.is_unknown or tuple(operation.result) == state[:n]
                return state[n:] if may_be else IMPOSSIBLE
            case _:
                raise not_known(operation)


def _if_result(operation: Operation, expected: object, after: State) -> State | Impossible:
    return after if operation.is_unknown or operation.result == expected else IMPOSSIBLE
