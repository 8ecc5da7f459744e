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
    result; `OutcomeUnknown`, `NoSpace`, a cancellation, and an `Unavailable` that may have been applied, as unknown;
    everything else did not happen, and is not recorded. The error is raised on.
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
        # An eventual dict asks for no proof: its NoSpace may be the one with which the quota was reached.
        elif _leaves_it_open(error) or not isinstance(error, SkywardEtcdError):
            self._tell(Operation(process, call, arguments, None, invoked, None))


def _leaves_it_open(error: BaseException) -> bool:
    return isinstance(error, OutcomeUnknown | NoSpace) or (isinstance(error, Unavailable) and error.maybe_applied)


def _plain(result: Any) -> Any:
    """Return a hold's token for the hold: the models reckon with tokens."""
    return getattr(result, "token", result)
