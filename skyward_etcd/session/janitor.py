"""Does in the background what cancelled operations owe, until it gets through."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from skyward_etcd.errors import NoSpace, SkywardEtcdError, Unavailable
from skyward_etcd.ops.effects import Operation
from skyward_etcd.wire.retry import pause_before

__all__ = ["Janitor"]

log = logging.getLogger("skyward_etcd.session")

_MOST = 4096
_LAST_CHANCE_S = 2.0


class Janitor:
    """One thread, started with the first debt and gone with the last."""

    def __init__(self, run: Callable[[Operation[None]], None], give_up: Callable[[], None]) -> None:
        self._run = run
        self._give_up = give_up
        self._lock = threading.Lock()
        self._owed: deque[Callable[[], Operation[None]]] = deque()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def add(self, make: Callable[[], Operation[None]]) -> None:
        """Have an operation made and run, again and again while nobody answers or there is no space.

        Too many at once mean that nobody has answered for long: then the session gives up its lease, and with it
        everything that was to be cleaned up but for taken items.
        """
        if len(self._owed) >= _MOST:
            self._give_up()
            return
        with self._lock:
            self._owed.append(make)
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._work, name="skyward-etcd-janitor", daemon=True)
                self._thread.start()

    def abandon(self) -> None:
        """Forget what is owed: there is nobody any more to whom."""
        self._closing.set()
        with self._lock:
            self._owed.clear()

    def close(self) -> None:
        """Give what is owed a last chance. What hangs on the lease goes with it anyway."""
        self._closing.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=_LAST_CHANCE_S)

    def _work(self) -> None:
        failures = 0
        while True:
            with self._lock:
                if not self._owed or (failures and self._closing.is_set()):
                    self._thread = None
                    return
                make = self._owed.popleft()
            try:
                self._run(make())
                failures = 0
            except (Unavailable, NoSpace) as error:  # until somebody answers, or makes space
                log.debug("cleaning up: %s", error)
                failures += 1
                self._owed.append(make)
                self._closing.wait(pause_before(failures + 1))
            except SkywardEtcdError as error:  # a second try could do it twice, or would be refused again
                log.warning("not cleaned up after a cancelled call: %s", error)
            except Exception:  # a bug of ours must not keep the rest from being done
                log.exception("not cleaned up after a cancelled call")
