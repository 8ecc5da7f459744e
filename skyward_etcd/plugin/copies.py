"""A copy of a cluster's data, for the case that all its members go at once."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from skyward_etcd.cluster import recovery
from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.plugin.shared import Cluster
from skyward_etcd.session.session import Tls

__all__ = ["Copies", "Copy"]

_log = logging.getLogger("skyward_etcd.plugin")

_REST_S = 0.2
_REST_SHARE = 4
"""So many times as long as a copy took nobody asks for the next: the members have other things to do."""


@dataclass(frozen=True, slots=True)
class Copy:
    """All data that the members of a cluster had at a revision, or later."""

    token: str
    """Of the cluster."""
    source: str
    revision: int


class Copies:
    """Makes a copy now and then, in a thread of its own, and keeps the newest in a file, for its owner only.

    Nobody waits: a copy may take as long as the members live. May be used by several threads.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._guard = threading.Lock()
        self._newest: Copy | None = None
        self._dropped = 0
        self._making: threading.Thread | None = None
        self._rests_until = 0.0

    def begin(self, cluster: Cluster, tls: Tls | None) -> None:
        """Begin the next copy of a cluster, unless one is under way or was just made."""
        if (self._making and self._making.is_alive()) or time.monotonic() < self._rests_until:
            return
        arguments = (cluster, tls, self._dropped)
        self._making = threading.Thread(target=self._make, args=arguments, name="skyward-etcd-copy", daemon=True)
        self._making.start()

    def of(self, cluster: Cluster) -> Copy | None:
        """Return the newest copy of a cluster, if there is one."""
        with self._guard:
            return self._newest if self._newest and self._newest.token == cluster.token else None

    def drop(self) -> None:
        """Keep none any more, also none that is under way or that a process of before has left."""
        with self._guard, contextlib.suppress(OSError):
            self._dropped += 1
            self._newest = None
            for file in self.file.parent.glob(f"*{self.file.name}*"):
                file.unlink(missing_ok=True)

    def _make(self, cluster: Cluster, tls: Tls | None, dropped: int) -> None:
        began = time.monotonic()
        draft = self.file.with_name(f"{self.file.name}.draft")
        try:
            source, revision = recovery.newest(cluster.members.values(), tls=tls)
            before = self.of(cluster)
            if before is None or before.revision < revision:
                recovery.save(source, draft, tls=tls)
                with self._guard:
                    if dropped == self._dropped:
                        draft.replace(self.file)
                        self._newest = Copy(cluster.token, source, revision)
        except (SkywardEtcdError, OSError) as error:
            level = logging.DEBUG if self.of(cluster) else logging.WARNING
            _log.log(level, "the data of members that are about to go could not be copied: %s", error)
        finally:
            draft.unlink(missing_ok=True)
            self._rests_until = time.monotonic() + max(_REST_S, _REST_SHARE * (time.monotonic() - began))
