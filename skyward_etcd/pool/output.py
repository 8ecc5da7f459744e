"""Redirecting ``print`` for one call only, while other calls of the same process go on printing.

``contextlib.redirect_stdout`` swaps the stream of the whole process. Here ``sys.stdout`` becomes a router that looks up
a context variable, so that each thread and task writes to its own sink.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TextIO, cast

__all__ = ["CallbackWriter", "StreamName", "redirect_output", "redirected"]

StreamName = Literal["stdout", "stderr"]


class CallbackWriter(io.TextIOBase):
    """A text stream that hands each written string to ``callback``, and keeps it for ``getvalue()``."""

    def __init__(self, callback: Callable[[str], object], *, keep: bool = True) -> None:
        super().__init__()
        self._callback = callback
        self._kept = io.StringIO() if keep else None
        self._guard = threading.Lock()

    def write(self, s: str, /) -> int:
        """Hand ``s`` on."""
        with self._guard:
            if self._kept is not None:
                self._kept.write(s)
            self._callback(s)
        return len(s)

    def getvalue(self) -> str:
        """Everything written so far."""
        return "" if self._kept is None else self._kept.getvalue()

    def writable(self) -> bool:
        """Yes."""
        return True


@contextmanager
def redirect_output(callback: Callable[[str], object]) -> Generator[tuple[CallbackWriter, CallbackWriter]]:
    """Send what this thread or task prints to ``callback``, and yield the two writers, stdout's and stderr's.

    In the driver it also receives what the functions print that are sent to a pool inside the block. Threads started
    inside the block keep printing to the terminal.
    """
    out, err = CallbackWriter(callback), CallbackWriter(callback)
    with redirected("stdout", out), redirected("stderr", err):
        yield out, err


@contextmanager
def redirected(stream: StreamName, sink: io.TextIOBase | TextIO | None) -> Generator[None]:
    """Send what is written to ``stream`` in this context to ``sink``, or nowhere if that is None."""
    _install(stream)
    variable = _SINKS[stream]
    token = variable.set(sink or _Nowhere())
    try:
        yield
    finally:
        variable.reset(token)


class _Nowhere(io.TextIOBase):
    """Swallows everything."""

    def write(self, s: str, /) -> int:
        return len(s)

    def writable(self) -> bool:
        return True


_SINKS: dict[StreamName, ContextVar[Any]] = {
    "stdout": ContextVar("skyward_etcd_stdout", default=None),
    "stderr": ContextVar("skyward_etcd_stderr", default=None),
}
_installing = threading.Lock()


class _Router(io.TextIOBase):
    """Stands where ``sys.stdout`` stood; what this context has not redirected passes through untouched."""

    def __init__(self, name: StreamName, behind: TextIO) -> None:
        super().__init__()
        self._variable = _SINKS[name]
        self._behind = behind

    def _sink(self) -> TextIO:
        return cast("TextIO", self._variable.get() or self._behind)

    def write(self, s: str, /) -> int:
        return self._sink().write(s)

    def flush(self) -> None:
        self._sink().flush()

    def isatty(self) -> bool:
        return self._sink().isatty()

    def fileno(self) -> int:
        return self._sink().fileno()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


def _install(stream: StreamName) -> None:
    """Put the router in place. It stays: taking it out while another thread prints through it would race."""
    with _installing:
        behind = getattr(sys, stream)
        if behind is not None and not isinstance(behind, _Router):
            setattr(sys, stream, _Router(stream, behind))
