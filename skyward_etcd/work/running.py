"""Run one function with a session, from the wait for the cluster to the exit code.

However it ends, its locks and claims are handed back: at once where the process can still say so, within its lease's
15 s where it cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

from skyward_etcd import active
from skyward_etcd.errors import PermissionDenied, SkywardEtcdError, Unavailable
from skyward_etcd.session.session import Session
from skyward_etcd.work.place import Place

__all__ = ["FAILED", "INTERRUPTED", "TEMPORARY", "TERMINATED", "UNUSABLE", "NotRunnable", "load", "run"]

FAILED = 1
"""The function raised."""
UNUSABLE = 2
"""It cannot be run at all, or the cluster does not know us: trying again does not help."""
TEMPORARY = 75
"""The cluster is not to be reached: try again later."""
INTERRUPTED = 130
"""Ctrl-C."""
TERMINATED = 143
"""SIGTERM: somebody else goes on."""

_LOOK_S = 5.0
"""Between two lines that say what is waited for."""


class NotRunnable(SkywardEtcdError, ValueError):
    """What was to be run is no ``module:function`` that is there."""


class _Told(SystemExit):
    """SIGTERM, as an exception of the main thread: what it leaves, it cleans up."""


def load(spec: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names; modules of the current directory are found too.

    Raises:
        NotRunnable: there is none.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise NotRunnable(f"{spec!r} is not module:function, as in train:main")
    here = os.getcwd()  # noqa: PTH109 - as text, for the path
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise NotRunnable(f"{spec}: {error}") from error
    if not callable(found):
        raise NotRunnable(f"{spec} is {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]


def run(
    function: Callable[..., Any],
    arguments: Sequence[str],
    connection: active.Connection,
    here: Place,
    *,
    wait_s: float,
    grace_s: float,
    say: Callable[[str], None],
) -> int:
    """Wait for the cluster, run the function with its session active, and return the exit code.

    A coroutine function is run on an event loop. On SIGTERM the function is left as by an exception (`SystemExit`; a
    coroutine is cancelled); if it does not go within ``grace_s`` seconds, its session is closed under it, and the
    process ends. ``instance_info()`` and ``shard`` say which rank it is. Only for the main thread of a process.
    """
    os.environ["COMPUTE_POOL"] = json.dumps({"node": here.rank, "total_nodes": here.size})
    leaving = _Leaving(connection, grace_s)
    signal.signal(signal.SIGTERM, leaving.told)
    with contextlib.closing(connection):
        try:
            code = _opened(connection.session, wait_s, say)
            if not code:
                with active.activated(connection.session):
                    _call(function, arguments, leaving)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told and becomes an exit code
            code = TERMINATED if leaving.was_told else _ended(error)
        if leaving.was_told:
            say("SIGTERM: handing back locks and claims")
        return code


def _ended(error: BaseException) -> int:
    """Return the exit code that tells of what the function has raised."""
    match error:
        case SystemExit(code=code):
            return code if isinstance(code, int) else int(bool(code))
        case KeyboardInterrupt():
            return INTERRUPTED
        case _:
            traceback.print_exception(error)
            return TEMPORARY if isinstance(error, Unavailable) else FAILED


class _Leaving:
    """What SIGTERM does: it ends the function, and if that takes too long, the process."""

    def __init__(self, connection: active.Connection, grace_s: float) -> None:
        self.was_told = False
        self.cancel: Callable[[], object] | None = None
        """How to end what runs on an event loop, if that is what runs."""
        self._connection = connection
        self._grace_s = grace_s

    def told(self, _number: int, _frame: FrameType | None) -> None:
        """Take the signal, once."""
        if self.was_told:
            return
        self.was_told = True
        threading.Thread(target=self._end, name="skyward-etcd-leaving", daemon=True).start()
        if self.cancel is None:
            raise _Told(TERMINATED)
        self.cancel()

    def _end(self) -> None:
        time.sleep(self._grace_s)
        with contextlib.suppress(SkywardEtcdError):
            self._connection.close()
        os._exit(TERMINATED)


def _opened(session: Session, wait_s: float, say: Callable[[str], None]) -> int:
    """Wait until the cluster answers; return 0, or the exit code."""
    usual, start = session.limits, time.monotonic()
    while True:
        left = start + wait_s - time.monotonic()
        session.limits = replace(usual, operation_s=max(0.1, min(_LOOK_S, left)))
        try:
            session.open()
        except PermissionDenied as error:
            say(str(error))
            return UNUSABLE
        except Unavailable as error:
            waited = time.monotonic() - start
            if waited >= wait_s:
                say(f"gave up after {waited:.0f} s: {error}")
                return TEMPORARY
            say(f"waiting for the cluster, {waited:.0f} of {wait_s:.0f} s: {error}")
        else:
            session.limits = usual
            return 0


def _call(function: Callable[..., Any], arguments: Sequence[str], leaving: _Leaving) -> None:
    if inspect.iscoroutinefunction(function):
        asyncio.run(_until_told(function(*arguments), leaving))
    else:
        function(*arguments)


async def _until_told(work: Coroutine[Any, Any, Any], leaving: _Leaving) -> None:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    leaving.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        await task
    finally:
        leaving.cancel = None
