"""Exceptions and values on their way between processes: of their own type, with the traceback of their origin.

Whatever does not pickle becomes an error that names it.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

import cloudpickle

from skyward_etcd.errors import PoolError, UnsupportedType
from skyward_etcd.pool.protocol import RemoteFailure

__all__ = ["RemoteTraceback", "capture", "dumps", "loads", "revive"]


class RemoteTraceback(Exception):
    """The cause of an exception raised on a node: the traceback, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def dumps(value: object, what: Callable[[], str]) -> bytes:
    """Pickle a value of the user's; ``what`` describes it, if it comes to that.

    Raises:
        UnsupportedType: it cannot be pickled.
    """
    try:
        return _pickled(value)
    except Exception as error:
        raise UnsupportedType(f"{what()} cannot be pickled: {error}") from error


def loads(payload: bytes) -> Any:
    """Unpickle a value of the user's, which comes from a process of the same pool."""
    return pickle.loads(payload)  # noqa: S301  see above


def capture(error: BaseException, where: str) -> RemoteFailure:
    """Pack an exception so that `revive` gives it back in another process."""
    lines = traceback.format_exception(type(error), error, _of_the_user(error.__traceback__))
    summary = "".join(traceback.format_exception_only(type(error), error)).strip()
    whole = _as_it_is(error)
    return RemoteFailure(
        summary=summary,
        traceback="".join(lines),
        where=where,
        pickled=whole or _in_parts(error),
        parts=whole is None,
    )


def revive(failure: RemoteFailure) -> BaseException:
    """Return the exception, with a `RemoteTraceback` as its cause."""
    error = _unpacked(failure) or PoolError(
        f"{failure.where} raised an exception that cannot be sent between processes: {failure.summary}"
    )
    error.__cause__ = RemoteTraceback(f"on {failure.where}:\n{failure.traceback}")
    return error


def _of_the_user(trace: TracebackType | None) -> TracebackType | None:
    """Leave out our own frames on top: the user's function comes first."""
    start = trace
    while start and start.tb_frame.f_globals.get("__name__", "").startswith("skyward_etcd.pool."):
        start = start.tb_next
    return start or trace


def _as_it_is(error: BaseException) -> bytes | None:
    """Pickle it, if it comes back the same. Many do not: ``__init__`` is called with ``args``, whatever it takes."""
    try:
        pickled = _pickled(error)
        again = pickle.loads(pickled)  # noqa: S301  our own bytes
    except Exception:  # noqa: BLE001  any of the user's methods may have run
        return None
    return pickled if type(again) is type(error) and str(again) == str(error) else None


def _in_parts(error: BaseException) -> bytes | None:
    """Pickle class, arguments and attributes, without those that do not pickle."""
    arguments = tuple(one if _pickles(one) else repr(one) for one in error.args)
    attributes = {name: value for name, value in vars(error).items() if _pickles(value)}
    parts = (type(error), arguments, attributes)
    return _pickled(parts) if _pickles(parts) else None


def _pickled(value: object) -> bytes:
    """Functions, classes and lambdas of ``__main__`` and of notebooks are pickled by value."""
    return cast("bytes", cast("Any", cloudpickle).dumps(value, protocol=5))


def _pickles(value: object) -> bool:
    try:
        pickle.loads(_pickled(value))  # noqa: S301  our own bytes
    except Exception:  # noqa: BLE001  any of the user's methods may have run
        return False
    return True


def _unpacked(failure: RemoteFailure) -> BaseException | None:
    if failure.pickled is None:
        return None
    try:
        value = pickle.loads(failure.pickled)  # noqa: S301  from a process of the same pool
        if not failure.parts:
            return cast("BaseException", value)
        kind, arguments, attributes = value
        error = cast("BaseException", kind.__new__(kind, *arguments))
        error.__dict__.update(attributes)
    except Exception:  # noqa: BLE001  the class may not exist here: the words remain
        return None
    return error
