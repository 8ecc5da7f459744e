"""The one session of a process on a node: the agent's own in its worker; in any other, one that follows the agent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from skyward_etcd.plugin.follower import Follower
from skyward_etcd.session.session import Session

__all__ = ["Process"]

Serve = Callable[[Session, bytes], None]


class Process:
    """Has collections answered, by ``serve(session, secret)``, once: for as long as the process lives."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._guard = threading.Lock()
        self._serves = False

    def serve(self, session: Session, secret: bytes) -> None:
        """Use the session of the agent that runs here."""
        self._serve(session, secret)
        self._serves = True

    def join(self, file: Path, node: str) -> None:
        """Use one that goes on where the agent says, in this file, that the members are; nothing if one is in use.

        Raises:
            NotConnected: the node has no agent, or it has not found the cluster yet.
        """
        if not self._serves:
            with self._guard:
                if not self._serves:
                    follower = Follower(file, node=node)
                    self.serve(follower.session, follower.secret)
