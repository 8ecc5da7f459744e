"""One line on the terminal while many calls run for long: how many are done, and for how long it has been going on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

__all__ = ["wait_for_all"]

_PATIENCE_S = 1.0
_REFRESH_S = 0.5


def wait_for_all(calls: Sequence[Future[Any]], *, label: str, timeout: float | None, shown: bool) -> bool:
    """Wait until all are done or one has failed; False if that took longer than ``timeout`` seconds.

    What takes more than a second gets a line on stderr, if that is a terminal and the line is to be ``shown``.
    """
    started = time.monotonic()
    line = _Line(label, len(calls)) if shown and len(calls) > 1 and sys.stderr and sys.stderr.isatty() else None
    try:
        while True:
            spent = time.monotonic() - started
            left = None if timeout is None else max(0.0, timeout - spent)
            pause = left if line is None else min(_REFRESH_S, _REFRESH_S if left is None else left)
            done, waiting = wait(calls, pause, FIRST_EXCEPTION)
            if not waiting or any(one.exception() is not None for one in done if not one.cancelled()):
                return True
            if left == 0.0:
                return False
            if line and spent > _PATIENCE_S:
                line.draw(len(done), spent)
    finally:
        if line:
            line.clear()


class _Line:
    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._drawn = False

    def draw(self, done: int, seconds: float) -> None:
        sys.stderr.write(f"\r\033[K{self._label}: {done}/{self._total} done, {seconds:.0f} s")
        sys.stderr.flush()
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
