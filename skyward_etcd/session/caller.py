"""Who is calling: what makes a release by somebody else an error."""

from __future__ import annotations

import asyncio
import threading

__all__ = ["task", "thread"]

Caller = tuple[str, int]


def thread() -> Caller:
    """Return the identity of the running thread."""
    return "thread", threading.get_ident()


def task() -> Caller:
    """Return the identity of the running task, or of the thread where no event loop runs."""
    try:
        current = asyncio.current_task()
    except RuntimeError:
        return thread()
    return ("task", id(current)) if current is not None else thread()
