"""``@sky.function``: a call that is written down now and runs on a pool's nodes when it is sent there.

Nothing runs until an operator says where: ``>>`` one node, ``>`` one node without waiting, ``@`` every node,
``&`` side by side.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, TypeVarTuple, cast, overload

__all__ = ["FunctionFuture", "PendingFunction", "PendingFunctionGroup", "Target", "function", "gather"]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")


class FunctionFuture(Future[T]):
    """What ``call > pool`` gives: a future that can be awaited too."""

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


class Target(Protocol):
    """Where a pending function can be sent: a pool, or ``sky``, the active one."""

    def run(self, pending: PendingFunction[T], /) -> T:
        """Run on one node."""
        ...

    def run_async(self, pending: PendingFunction[T], /) -> FunctionFuture[T]:
        """Run on one node, without waiting."""
        ...

    def broadcast(self, pending: PendingFunction[T], /) -> list[T]:
        """Run on every node."""
        ...

    def run_parallel(self, group: PendingFunctionGroup[R], /) -> R:
        """Run a group side by side."""
        ...


@dataclass(frozen=True, slots=True)
class PendingFunction(Generic[T_co]):
    """A call that has not run yet: what a ``@sky.function`` returns.

    ``timeout`` is the longest it may run on the node, in seconds, None for as long as it takes. ``retries`` is how many
    more times it may be started when the node under it dies: at most ``retries + 1`` runs, so give it to functions
    that may safely run twice.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    timeout: float | None = None
    retries: int | None = None

    def with_timeout(self, timeout: float) -> PendingFunction[T_co]:
        """Return the same call with another limit, in seconds.

        Raises:
            ValueError: ``timeout`` is not positive.
        """
        return replace(self, timeout=checked_timeout(timeout))

    def __rshift__(self, target: Target | ModuleType) -> T_co:
        """``call >> pool``: run on one node and return the result."""
        return resolve(target).run(self)

    def __gt__(self, target: Target | ModuleType) -> FunctionFuture[T_co]:
        """``call > pool``: run on one node, and return a future at once, which can be awaited too."""
        return resolve(target).run_async(self)

    def __matmul__(self, target: Target | ModuleType) -> list[T_co]:
        """``call @ pool``: run on every node, and return the results in the order of the nodes."""
        return resolve(target).broadcast(self)

    @overload
    def __and__(self, other: PendingFunction[U]) -> PendingFunctionGroup[tuple[T_co, U]]: ...
    @overload
    def __and__(self, other: PendingFunctionGroup[tuple[*Ts]]) -> PendingFunctionGroup[tuple[T_co, *Ts]]: ...

    def __and__(self, other: PendingFunction[Any] | PendingFunctionGroup[Any]) -> PendingFunctionGroup[Any]:
        """``a & b``: run side by side."""
        match other:
            case PendingFunctionGroup():
                return replace(other, items=(self, *other.items))
            case _:
                return PendingFunctionGroup((self, other))

    def __repr__(self) -> str:
        return f"<pending {name_of(self.fn)}>"


@dataclass(frozen=True, slots=True)
class PendingFunctionGroup(Generic[R_co]):
    """Calls that run side by side: ``a() & b()`` or ``gather(a(), b())``.

    Sent to a pool, a group gives a tuple with one result a call; with ``stream`` an iterator over the results, in the
    order of the calls if ``ordered``, else as they come. ``timeout`` bounds the whole group, in seconds.
    """

    items: tuple[PendingFunction[Any], ...]
    stream: bool = False
    ordered: bool = True
    timeout: float | None = None

    def with_timeout(self, timeout: float) -> PendingFunctionGroup[R_co]:
        """Return the same group with a limit for all of it together, in seconds.

        Raises:
            ValueError: ``timeout`` is not positive.
        """
        return replace(self, timeout=checked_timeout(timeout))

    def __rshift__(self, target: Target | ModuleType) -> R_co:
        """``group >> pool``: run all, and return the results in the order of the calls."""
        return resolve(target).run_parallel(self)

    @overload
    def __and__(
        self: PendingFunctionGroup[tuple[*Ts]], other: PendingFunction[U]
    ) -> PendingFunctionGroup[tuple[*Ts, U]]: ...
    @overload
    def __and__(self, other: PendingFunctionGroup[Any]) -> PendingFunctionGroup[tuple[Any, ...]]: ...

    def __and__(self, other: PendingFunction[Any] | PendingFunctionGroup[Any]) -> PendingFunctionGroup[Any]:
        """``group & call``, ``group & group``: one larger group."""
        more = other.items if isinstance(other, PendingFunctionGroup) else (other,)
        return replace(self, items=(*self.items, *more))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[PendingFunction[Any]]:
        return iter(self.items)


@overload
def gather(
    a: PendingFunction[T], b: PendingFunction[U], /, *, stream: Literal[False] = False, ordered: bool = True
) -> PendingFunctionGroup[tuple[T, U]]: ...
@overload
def gather(
    a: PendingFunction[T],
    b: PendingFunction[U],
    c: PendingFunction[V],
    /,
    *,
    stream: Literal[False] = False,
    ordered: bool = True,
) -> PendingFunctionGroup[tuple[T, U, V]]: ...
@overload
def gather(
    a: PendingFunction[T],
    b: PendingFunction[U],
    c: PendingFunction[V],
    d: PendingFunction[W],
    /,
    *,
    stream: Literal[False] = False,
    ordered: bool = True,
) -> PendingFunctionGroup[tuple[T, U, V, W]]: ...
@overload
def gather(
    *pendings: PendingFunction[T], stream: Literal[False] = False, ordered: bool = True
) -> PendingFunctionGroup[tuple[T, ...]]: ...
@overload
def gather(
    *pendings: PendingFunction[T], stream: Literal[True], ordered: bool = True
) -> PendingFunctionGroup[Iterator[T]]: ...
@overload
def gather(*pendings: PendingFunction[T], stream: bool, ordered: bool = True) -> PendingFunctionGroup[Any]: ...


def gather(*pendings: PendingFunction[Any], stream: bool = False, ordered: bool = True) -> PendingFunctionGroup[Any]:
    """Group calls to run side by side: ``gather(*calls) >> pool`` gives a tuple.

    With ``stream=True`` it gives an iterator instead, which yields each result as soon as it is there: in the order
    of the calls, or in the order of completion with ``ordered=False``.

    >>> @sky.function
    ... def square(x: int) -> int:
    ...     return x * x
    >>> with sky.Compute(nodes=2) as pool:
    ...     sky.gather(square(2), square(3)) >> pool
    ...     sum(sky.gather(*map(square, range(10)), stream=True, ordered=False) >> pool)
    (4, 9)
    285
    """
    return PendingFunctionGroup(pendings, stream=stream, ordered=ordered)


class _Decorator(Protocol):
    """``@function(timeout=…)``, waiting for its function."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, PendingFunction[T]]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Callable[P, PendingFunction[T]]: ...


@overload
def function(fn: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, PendingFunction[T]]: ...
@overload
def function(fn: Callable[P, T], /) -> Callable[P, PendingFunction[T]]: ...
@overload
def function(*, timeout: float | None = None, retries: int | None = None) -> _Decorator: ...


def function(
    fn: Callable[..., Any] | None = None, /, *, timeout: float | None = None, retries: int | None = None
) -> Any:
    """Make a function run on a pool's nodes: calling it returns a ``PendingFunction`` and runs nothing yet.

    Use it bare, or with ``timeout`` (seconds that one run may take, no limit by default) and ``retries`` (how many
    more times it may be started when its node dies under it). Coroutine functions run on the node's event loop, and
    a generator function's call gives an iterator over what it yields.

    >>> @sky.function
    ... def square(x: int) -> int:
    ...     return x * x
    >>> with sky.Compute(nodes=2) as pool:
    ...     square(7) >> pool  # on one node
    ...     square(7) @ pool  # on every node
    ...     (square(7) > pool).result()  # on one node; the future is there at once
    ...     (square(2) & square(3)) >> pool  # side by side
    49
    [49, 49]
    49
    (4, 9)

    Raises:
        TypeError: what is decorated cannot be called.
        ValueError: ``timeout`` is not positive, or ``retries`` is negative.
    """
    limit = None if timeout is None else checked_timeout(timeout)
    if retries is not None and retries < 0:
        raise ValueError(f"retries is how many times a lost call may be started again: 0 or more, not {retries!r}")
    if fn is None:
        return functools.partial(_remote, timeout=limit, retries=retries)
    return _remote(fn, timeout=limit, retries=retries)


def rewrapped(fn: Callable[..., Any], decorate: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """Apply ``decorate`` to the function that will run on the node, on whichever side of ``@function`` it stands."""
    options: dict[str, Any] | None = getattr(fn, "__sky_function__", None)
    if options is None:
        return decorate(fn)
    return _remote(decorate(cast("Any", fn).__wrapped__), **options)


def checked_timeout(timeout: float) -> float:
    """Return ``timeout`` if it is a positive number of seconds."""
    if not timeout > 0:
        raise ValueError(f"a timeout is a positive number of seconds, not {timeout!r}")
    return float(timeout)


def name_of(fn: Callable[..., Any]) -> str:
    """The name that errors and progress lines call a function by."""
    return getattr(fn, "__qualname__", None) or repr(fn)


def resolve(target: object) -> Target:
    """The pool meant by what stands on the right of an operator.

    Raises:
        TypeError: it is neither a pool, ``sky``, nor a module that has ``sky``.
    """
    if isinstance(target, ModuleType):
        target = getattr(target, "sky", target)
    if not callable(getattr(target, "run_parallel", None)):
        raise TypeError(
            f"a function can be sent to a pool, to sky, or to the module imported as sky, not to {target!r}"
        )
    return cast("Target", target)


def _remote(fn: Callable[..., T], *, timeout: float | None, retries: int | None) -> Callable[..., PendingFunction[T]]:
    if not callable(fn):
        raise TypeError(f"@function decorates a function, not {fn!r}")

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> PendingFunction[T]:
        return PendingFunction(fn, args, kwargs, timeout, retries)

    cast("Any", call).__sky_function__ = {"timeout": timeout, "retries": retries}
    return call
