"""Which pool ``sky`` stands for: the one whose ``with`` block the code is in."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from skyward_etcd.errors import NotConnected
from skyward_etcd.pool.function import FunctionFuture, PendingFunction, PendingFunctionGroup, Target

__all__ = ["Sky", "activated", "active_pool", "sky"]

T = TypeVar("T")
R = TypeVar("R")

_active: ContextVar[Target | None] = ContextVar("skyward_etcd_pool", default=None)
_open: list[Target] = []
_guard = threading.Lock()


class Sky:
    """The active pool, as a target: ``call >> sky`` is ``call >> pool`` inside ``with Compute(…) as pool``."""

    def run(self, pending: PendingFunction[T], /) -> T:
        """Run on one node of the active pool."""
        return active_pool().run(pending)

    def run_async(self, pending: PendingFunction[T], /) -> FunctionFuture[T]:
        """Run on one node of the active pool, without waiting."""
        return active_pool().run_async(pending)

    def broadcast(self, pending: PendingFunction[T], /) -> list[T]:
        """Run on every node of the active pool."""
        return active_pool().broadcast(pending)

    def run_parallel(self, group: PendingFunctionGroup[R], /) -> R:
        """Run a group on the active pool."""
        return active_pool().run_parallel(group)

    def __repr__(self) -> str:
        pool = _active.get() or (_open[-1] if _open else None)
        return f"<sky: {pool!r}>" if pool else "<sky: no active pool>"


sky = Sky()


def active_pool() -> Target:
    """Return the pool that ``sky`` stands for here: this context's, else the one opened last in this process.

    Raises:
        NotConnected: there is none.
    """
    pool = _active.get() or (_open[-1] if _open else None)
    if pool is None:
        raise NotConnected("no pool is active here: send the function from inside `with Compute(...) as pool:`")
    return pool


@contextmanager
def activated(pool: Target) -> Generator[None]:
    """Make ``sky`` mean ``pool`` inside the block, also in threads started there, which have no context of ours."""
    token = _active.set(pool)
    with _guard:
        _open.append(pool)
    try:
        yield
    finally:
        with _guard:
            _open.remove(pool)
        try:
            _active.reset(token)
        except ValueError:
            _active.set(None)  # left in another task than entered, as asynchronous fixtures are
