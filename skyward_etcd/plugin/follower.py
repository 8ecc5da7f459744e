"""A session for a process beside its node's agent: it goes on wherever the agent says that the members are."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from skyward_etcd.errors import NotConnected
from skyward_etcd.plugin.shared import Access
from skyward_etcd.session.session import Session

__all__ = ["Follower"]

_EVERY_S = 0.25


class Follower:
    """Keeps a session on the cluster of the node whose agent writes this file, from a thread, until `close`."""

    def __init__(self, file: Path, *, node: str = "") -> None:
        """Describe the session; nothing is sent before it is used.

        Raises:
            NotConnected: there is no agent, or it has not found the cluster yet.
        """
        self._file = file
        self._access = _read(file)
        self._written = _written(file)
        self._closing = threading.Event()
        access = self._access
        self.session = Session(
            access.endpoints, namespace=access.namespace, secret=access.secret, node=node, tls=access.tls
        )
        threading.Thread(target=self._follow, name="skyward-etcd-follower", daemon=True).start()

    @property
    def secret(self) -> bytes:
        """What signs pickles in this pool."""
        return self._access.secret

    def close(self) -> None:
        """Close the session."""
        self._closing.set()
        self.session.close()

    def _follow(self) -> None:
        while not self._closing.wait(_EVERY_S):
            written = _written(self._file)
            if written != self._written:
                with contextlib.suppress(NotConnected):  # the node leaves
                    before, self._access = self._access, _read(self._file)
                    self._written = written
                    self._go_on(before, self._access)

    def _go_on(self, before: Access, now: Access) -> None:
        if (before.epoch, before.token) != (now.epoch, now.token):
            self.session.start_over(now.endpoints, now.story)
        elif before.endpoints != now.endpoints:
            self.session.follow(now.endpoints)


def _read(file: Path) -> Access:
    try:
        return Access.parse(file.read_bytes())
    except FileNotFoundError:
        raise NotConnected(
            f"this node has no cluster: {file} is not there. Collections are to be had inside a function on a pool "
            "with the plugin Etcd(), once its worker has started"
        ) from None


def _written(file: Path) -> tuple[int, int]:
    """Tell one writing of the file from the next."""
    try:
        seen = file.stat()
    except FileNotFoundError:
        return 0, 0
    return seen.st_ino, seen.st_mtime_ns
