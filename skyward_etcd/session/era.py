"""A session's time with one cluster: what an operation has learnt from one cluster, it never tells another.

A cluster that was recovered from a member's data may have fewer revisions than its clients have seen, and makes the
missing ones anew, with other content. So whatever is under way ends with the era: a write that may have been applied as
`OutcomeUnknown`, all else as `QuorumLost`. The next operation begins in the next era, which remembers nothing.
"""

from __future__ import annotations

import threading

from skyward_etcd.errors import NotConnected, QuorumLost, Unavailable
from skyward_etcd.session.janitor import Janitor
from skyward_etcd.session.keeper import Keeper
from skyward_etcd.session.merging import Merging
from skyward_etcd.session.signals import Signal
from skyward_etcd.session.watch import WatchHub
from skyward_etcd.wire.client import Wire

__all__ = ["Era"]


class Era:
    """The live parts of a session, which begin and end together."""

    def __init__(self, merging: Merging, streams: Wire, keeper: Keeper, hub: WatchHub, janitor: Janitor) -> None:
        self.merging = merging
        self.hub = hub
        self.ended = Signal()
        self.reason = ""
        """Why it has ended."""
        self.cluster_id = 0
        """Which cluster it is about, once somebody has answered."""
        self._streams = streams
        self._keeper = keeper
        self._janitor = janitor
        self._lock = threading.Lock()

    def is_about(self, cluster_id: int) -> bool:
        """Tell whether an answer came from this era's cluster; the first one says which that is."""
        with self._lock:
            self.cluster_id = self.cluster_id or cluster_id
            return cluster_id in (self.cluster_id, 0)

    def check(self) -> None:
        """Raise `QuorumLost` if it has ended: nothing is sent any more."""
        if self.reason:
            raise QuorumLost(self.reason, maybe_applied=False)

    def explain(self, error: Unavailable | NotConnected) -> Unavailable | NotConnected:
        """Return what to tell of a request that got no answer: the end of the era, if that is why."""
        if not self.reason:
            return error
        return QuorumLost(self.reason, maybe_applied=isinstance(error, Unavailable) and error.maybe_applied)

    def condemn(self, reason: str) -> None:
        """Send nothing from here on, and believe no answer. Only the first reason counts."""
        with self._lock:
            self.reason = self.reason or reason

    def end(self, reason: str) -> None:
        """End all that is under way, without waiting for anybody. May be called twice."""
        self.condemn(reason)
        self.ended.set()
        self._janitor.abandon()
        self._keeper.abandon(QuorumLost(self.reason, maybe_applied=False))
        self.merging.close()
        self._streams.close()
        self.hub.abandon()
