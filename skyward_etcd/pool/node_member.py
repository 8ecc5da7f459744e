"""What the driver knows of the etcd member that a node runs: whether it has started, and whether it is lost."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from skyward_etcd.errors import PoolError

__all__ = ["NodeMember"]


class NodeMember:
    """A node's member, one at a time; told by the link's thread, asked by others."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._running: Future[None] = Future()
        self._running.set_result(None)  # a member that the node has from its start on is ready with it
        self._lost: PoolError | None = None
        self._guard = threading.Lock()

    def expect(self, name: str) -> None:
        """Expect a fresh member from now on. What is still heard of the one before does not count."""
        with self._guard:
            self._name, self._running, self._lost = name, Future(), None

    def wait(self, timeout_s: float) -> None:
        """Wait until the expected member runs.

        Raises:
            PoolError: it does not, for the reason given, or not in time.
        """
        try:
            self._running.result(timeout_s)
        except TimeoutError:
            raise PoolError(f"etcd member {self._name} not ready after {timeout_s:g} s") from None

    def check(self) -> None:
        """Raise `PoolError` if it is lost."""
        if self._lost:
            raise self._lost

    def runs(self, name: str) -> None:
        """Note that the node says so."""
        with self._guard:
            if name == self._name and not self._running.done():
                self._running.set_result(None)

    def lose(self, reason: str, name: str | None = None) -> bool:
        """Note that the member is lost, if it is the one of that name, and return whether nobody has heard of it yet.

        Those who wait for its start hear of it so.
        """
        with self._guard:
            if self._lost or name not in (None, self._name):
                return False
            self._lost = PoolError(reason)
            if self._running.done():
                return True
            self._running.set_exception(self._lost)
            return False
