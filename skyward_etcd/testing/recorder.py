"""Records what callers see of a collection, for the checkers: every call with its times and its outcome."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from skyward_etcd.errors import (
    BrokenBarrier,
    HoldLost,
    LockTimeout,
    NoSpace,
    NotHeld,
    OutcomeUnknown,
    SkywardEtcdError,
    Unavailable,
)
from skyward_etcd.testing.history import Operation

__all__ = ["Recorder"]

_ANSWERS = (LockTimeout, NotHeld, HoldLost, BrokenBarrier)
"""Errors that are results: they are recorded by their names."""


class Recorder:
    """Passes each `Operation` to ``tell`` when it has ended. Times are those of the machine's monotonic clock.

    A call that raised is recorded as what it means: an error that is an answer (a `LockTimeout`) by its name as the
    result; `OutcomeUnknown`, `Unavailable`, `NoSpace` and a cancellation as unknown; everything else did not happen,
    and is not recorded. The error is raised on.
    """

    def __init__(self, tell: Callable[[Operation], None]) -> None:
        self._tell = tell

    def call(self, process: str, call: str, arguments: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Make a call and record it."""
        invoked = time.monotonic()
        try:
            result = make()
        except BaseException as error:
            self._failed(process, call, arguments, invoked, error)
            raise
        self._tell(Operation(process, call, arguments, _plain(result), invoked, time.monotonic()))
        return result

    async def call_async(self, process: str, call: str, arguments: tuple[Any, ...], made: Awaitable[Any]) -> Any:
        """`call`, for what is awaited."""
        invoked = time.monotonic()
        try:
            result = await made
        except BaseException as error:
            self._failed(process, call, arguments, invoked, error)
            raise
        self._tell(Operation(process, call, arguments, _plain(result), invoked, time.monotonic()))
        return result

    def _failed(
        self, process: str, call: str, arguments: tuple[Any, ...], invoked: float, error: BaseException
    ) -> None:
        if isinstance(error, _ANSWERS):
            self._tell(Operation(process, call, arguments, type(error).__name__, invoked, time.monotonic()))
        # `Unavailable.maybe_applied` is about the last request only: a wait at a barrier that could not hear whether it
        # passed has arrived with an earlier one.
        # The write with which the quota is reached is applied *and* answered with NoSpace (etcd's quotaApplierV3).
        elif isinstance(error, OutcomeUnknown | Unavailable | NoSpace) or not isinstance(error, SkywardEtcdError):
            self._tell(Operation(process, call, arguments, None, invoked, None))


def _plain(result: Any) -> Any:
    """Return a hold's token for the hold: the models reckon with tokens."""
    return getattr(result, "token", result)
