"""Keeps the process's lease alive from a thread and a connection of its own.

A lost lease is noticed once and told to all: ``identity.lost`` is set, and the next mutation begins as a new identity.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skyward_etcd.errors import NotConnected, SkywardEtcdError, Unavailable
from skyward_etcd.ops import kv
from skyward_etcd.session import observing
from skyward_etcd.session.identity import Identity
from skyward_etcd.session.signals import Signal
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, LEASE_TIME_TO_LIVE, RANGE, TXN
from skyward_etcd.wire.retry import pause_before

if TYPE_CHECKING:
    from skyward_etcd.ops.layout import Layout

__all__ = ["Keeper"]

log = logging.getLogger("skyward_etcd.session")

_CHECK_EVERY = 4
"""Renewals between two looks at the session key: before 3.5.23 a renewal may succeed for a revoked lease."""


class Keeper:
    """One thread: joins, renews, joins again when the lease was lost.

    ``on_reply`` is told from which cluster each answer came.
    """

    def __init__(
        self, wire: Wire, layout: Layout, *, ttl_s: float, call_s: float, node: str, on_reply: Callable[[int], None]
    ) -> None:
        self.identity: Identity | None = None
        self.ready = Signal()
        """Set while there is an identity, or an `error` that says why there can be none."""
        self.error: SkywardEtcdError | None = None
        self.trouble: Unavailable | None = None
        """Why its last call got no answer, until one does. It tries again."""
        self._wire = wire
        self._layout = layout
        self._ttl_s = ttl_s
        self._call_s = call_s
        self._node = node
        self._on_reply = on_reply
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to get an identity, if there is none; `ready` tells when."""
        with self._lock:
            if self._closed:
                self.ready.set()
            elif self._thread is None:
                self._thread = threading.Thread(target=self._run, name="skyward-etcd-lease", daemon=True)
                self._thread.start()
        self._wake.set()

    def renounce(self, identity: Identity) -> None:
        """Take note that this identity's lease is gone. Many may say so, each of whom knew it."""
        with self._lock:
            is_news = not identity.lost.is_set()
            if self.identity is identity:
                self.identity = None
                self.ready.clear()
        if is_news:
            log.warning("session %s lost its lease: its locks, claims and barrier places are free", identity.id)
        identity.valid_until = 0.0
        identity.lost.set()
        self._wake.set()
        if is_news:
            observing.tell(lambda each: each.session_lost())

    def close(self) -> None:
        """Give the lease back, so that what hangs on it is free at once."""
        identity = self.abandon(NotConnected("the session is closed: open another with connect() or Compute()"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self._call_s)
        if identity is not None:
            self._give_back(identity)

    def abandon(self, error: SkywardEtcdError) -> Identity | None:
        """Let the lease go without a word to anybody, for good; return the identity that is lost with it."""
        with self._lock:
            if not self._closed:
                self._closed, self.error = True, error
            identity, self.identity = self.identity, None
        self.ready.set()
        self._wake.set()
        if identity is not None:
            identity.valid_until = 0.0
            identity.lost.set()
        return identity

    def _run(self) -> None:
        failures = 0
        renewals = 0
        while not self._closed:
            self._wake.clear()
            try:
                if self.identity is None:
                    self._join()
                elif time.monotonic() >= self.identity.valid_until - self._ttl_s * 2 / 3:
                    renewals += 1
                    self._renew(self.identity, check=renewals % _CHECK_EVERY == 0)
                failures, self.trouble = 0, None
            except Unavailable as error:
                failures += 1
                self.trouble = error
                log.debug("lease: %s", error)
                self._wake.wait(pause_before(failures + 1))
                continue
            except SkywardEtcdError as error:  # etcd refuses us: the callers that wait shall hear it
                log.debug("lease refused: %s", error)
                if not self._closed:
                    self.error = error
                self.ready.set()
                self._wake.wait(self._ttl_s / 3)
                continue
            self._wake.wait(self._pause())

    def _pause(self) -> float:
        identity = self.identity
        if identity is None:
            return 0.0
        return max(0.0, identity.valid_until - self._ttl_s * 2 / 3 - time.monotonic())

    def _join(self) -> None:
        sent = time.monotonic()
        grant: pb.LeaseGrantResponse = self._call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=round(self._ttl_s)))
        identity = Identity(grant.ID, self._layout.slot)
        identity.valid_until = sent + grant.TTL
        who = {"node": self._node, "pid": os.getpid(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        enter = kv.put(self._layout.session(identity.id), json.dumps(who).encode(), lease=identity.lease)
        try:
            entered: pb.TxnResponse = self._call(TXN, kv.txn(then=[enter, kv.get(self._layout.token_base)]))
            identity.token_base = kv.number(entered.responses[1].response_range.kvs)
            with self._lock:
                if not self._closed:
                    self.identity = identity
                    self.error = None
                    self.ready.set()
        finally:
            if self._closed and self.identity is None:  # by somebody who did not know of this lease
                self._give_back(identity)

    def _give_back(self, identity: Identity) -> None:
        try:
            self._call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=identity.lease))
        except SkywardEtcdError as error:
            log.debug("lease %s not revoked, it ends by itself: %s", identity.id, error)

    def _renew(self, identity: Identity, *, check: bool) -> None:
        # While nobody answers, our renewals may still arrive. Beyond our own reckoning they would keep from the others
        # what we no longer know to have: then we only look whether the lease is still there, and renew if it is.
        if time.monotonic() >= identity.valid_until and not self._is_granted(identity):
            self.renounce(identity)
            return
        sent = time.monotonic()
        # A stream in etcd's API, but one request that ends it has one reply, like any call.
        ttl = int(self._call(LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=identity.lease)).TTL)
        if ttl <= 0 or (check and not self._is_registered(identity)):
            self.renounce(identity)
        else:
            identity.valid_until = sent + ttl

    def _is_granted(self, identity: Identity) -> bool:
        return int(self._call(LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(ID=identity.lease)).TTL) > 0

    def _is_registered(self, identity: Identity) -> bool:
        request = pb.RangeRequest(key=self._layout.session(identity.id), count_only=True)
        return bool(self._call(RANGE, request).count)

    def _call(self, method: Any, request: Any) -> Any:
        reply = self._wire.call(method, request, timeout_s=self._call_s)
        self._on_reply(reply.header.cluster_id)
        return reply
