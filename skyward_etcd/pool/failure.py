"""Exceptions and values on their way between processes: of their own type, with the traceback of their origin.

A value that does not pickle becomes an error that names it, an exception one of the same name and builtin base.
"""

from __future__ import annotations

import builtins
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
    whole = _as_it_is(error)
    return RemoteFailure(
        module=type(error).__module__,
        kind=type(error).__qualname__,
        message=_words(error),
        builtin=_nearest_builtin(type(error)).__name__,
        traceback="".join(lines),
        where=where,
        pickled=whole or _in_parts(error),
        parts=whole is None,
    )


def revive(failure: RemoteFailure) -> BaseException:
    """Return the exception, with a `RemoteTraceback` as its cause.

    If it cannot be sent as it is, it is one of a class made here: of its name, a `PoolError` and its builtin base.
    """
    error = _unpacked(failure) or _made_up(failure)
    error.__cause__ = RemoteTraceback(f"on {failure.where}:\n{failure.traceback}")
    return error


def _of_the_user(trace: TracebackType | None) -> TracebackType | None:
    """Leave out our own frames on top: the user's function comes first."""
    start = trace
    while start and start.tb_frame.f_globals.get("__name__", "").startswith("skyward_etcd.pool."):
        start = start.tb_next
    return start or trace


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as why:  # noqa: BLE001  any of the user's methods may have run
        return f"<its str() failed: {type(why).__name__}>"


def _nearest_builtin(kind: type[BaseException]) -> type[BaseException]:
    """Return the first base that is a builtin, and that can be made of one message: groups of exceptions cannot."""
    for base in kind.__mro__:
        if getattr(builtins, base.__name__, None) is base and not issubclass(base, BaseExceptionGroup):
            return cast("type[BaseException]", base)
    return BaseException


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


def _made_up(failure: RemoteFailure) -> BaseException:
    base = cast("type[BaseException]", getattr(builtins, failure.builtin))
    bases: tuple[type[BaseException], ...] = (PoolError, base)
    if not issubclass(base, Exception):  # what ends a program is no error of the pool's
        bases = (base,)
    elif issubclass(PoolError, base):
        bases = (PoolError,)
    names = {"__module__": failure.module, "__qualname__": failure.kind, "__init__": _with_message, "__str__": _message}
    error = cast("BaseException", type(failure.kind.rpartition(".")[2], bases, names)(failure.message))
    error.add_note(f"It cannot be sent from {failure.where} as it is: this is one of the same name.")
    return error


def _with_message(error: BaseException, message: str) -> None:
    """The builtin base may want other arguments."""
    error.args = (message,)


def _message(error: BaseException) -> str:
    """The builtin base may show its arguments in a way of its own."""
    return str(error.args[0])
