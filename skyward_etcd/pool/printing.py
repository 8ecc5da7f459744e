"""What functions print, on its way from the node to the caller's terminal: whole lines, each with the node's name."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Callable
from typing import Any

from skyward_etcd.pool.output import StreamName
from skyward_etcd.pool.protocol import Printed

__all__ = ["Lines", "ThreadLines", "show"]

_LONGEST_LINE = 1 << 16


class Lines(io.TextIOBase):
    """A node's text stream: collects what one call prints, and sends it on by whole lines.

    A carriage return ends a line too, so that progress bars move.
    """

    def __init__(self, send: Callable[[Printed], None], stream: StreamName, call: int | None = None) -> None:
        super().__init__()
        self._send = send
        self._stream: StreamName = stream
        self._call = call
        self._text = ""
        self._guard = threading.Lock()

    def write(self, s: str, /) -> int:
        """Add to the line, and send what is complete."""
        with self._guard:
            self._text += s
            end = max(self._text.rfind("\n"), self._text.rfind("\r")) + 1
            if len(self._text) > _LONGEST_LINE:
                end = len(self._text)
            if end:
                self._emit(self._text[:end])
                self._text = self._text[end:]
        return len(s)

    def finish(self) -> None:
        """Send what is left of the last line."""
        with self._guard:
            if self._text:
                self._emit(f"{self._text}\n")
                self._text = ""

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """Return the process's own stream: programs that a function starts write there, without the node's name."""
        return 1 if self._stream == "stdout" else 2

    @property
    def buffer(self) -> _Bytes:
        """For those who write bytes to ``sys.stdout.buffer``."""
        return _Bytes(self)

    def _emit(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the driver is gone, and so are we, soon
            self._send(Printed(self._call, self._stream, text))


class ThreadLines(io.TextIOBase):
    """A node's text stream outside of calls: threads that functions start do not mix their lines."""

    def __init__(self, send: Callable[[Printed], None], stream: StreamName) -> None:
        super().__init__()
        self._send = send
        self._stream: StreamName = stream
        self._local = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mine(), name)

    def write(self, s: str, /) -> int:
        """Add to this thread's line."""
        return self._mine().write(s)

    def fileno(self) -> int:
        """Return the process's own stream."""
        return self._mine().fileno()

    def writable(self) -> bool:
        """Yes."""
        return True

    def _mine(self) -> Lines:
        if not hasattr(self._local, "lines"):
            self._local.lines = Lines(self._send, self._stream)
        return self._local.lines  # type: ignore[no-any-return]


class _Bytes(io.RawIOBase):
    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def write(self, b: Any, /) -> int:
        self._lines.write(bytes(b).decode(errors="replace"))
        return len(b)

    def writable(self) -> bool:
        return True


_terminal = threading.Lock()


def show(name: str, printed: Printed) -> None:
    """Print a node's lines on this process's terminal, with the name before each."""
    stream = sys.stdout if printed.stream == "stdout" else sys.stderr
    text = "".join(f"[{name}] {line}" for line in _lines(printed.text))
    with _terminal, contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
        stream.write(text)
        stream.flush()


def _lines(text: str) -> list[str]:
    """Split at line feeds and carriage returns only; ``str.splitlines`` knows eight more ends of a line."""
    return [line for line in io.StringIO(text, newline="").readlines() if line]
