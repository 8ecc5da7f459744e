"""One watch stream for the whole process, shared by everything that waits.

A watch is never lost silently: a broken stream is opened again at another member and every watch resumes where it
was; if that is compacted away, the watchers are woken without events and read the state again. A watch that etcd
refuses fails its own watchers, and nobody else.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from skyward_etcd.errors import EtcdError, PermissionDenied, SkywardEtcdError, Unavailable
from skyward_etcd.session import observing
from skyward_etcd.session.caller import THREADS, Line
from skyward_etcd.session.signals import Signal
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Stream, Wire
from skyward_etcd.wire.methods import WATCH
from skyward_etcd.wire.retry import pause_before

__all__ = ["WatchHub", "Watches", "Watching"]

log = logging.getLogger("skyward_etcd.session")

_IDLE_WATCHES = 64
"""Watches kept after their last watcher has gone: the next wait on a barrier or queue then costs no round trip."""
_IN_VAIN_BYTES = 64 * 1024
"""What a watch may bring while nobody watches, before it is ended: a process that no longer takes part pays no more."""
_FRESH_S = 10.0
"""So old a stream's token is good for certain; later it may have ended, which etcd calls a lack of permission."""
_STABLE_S = 5.0
"""A stream that lasted so long was good: the next one is opened without a long pause."""
_BUFFERED_EVENTS = 4096
"""What a watcher that does not look may have waiting, before it is told to read the state again instead."""
_DENIED = ("PermissionDenied", "Unauthenticated", "permission denied", "user name is empty", "invalid auth token")
"""Of the words that etcd refuses a watch with: those that are about who asks."""

_NO_ID = -1

Send = Callable[[pb.WatchRequest], None]
Tell = Callable[[Sequence[pb.Event]], None]
Subject = tuple[bytes, bytes, bool, bool]
"""What a watch tells of: from which key, up to which, whether it hands out, whether it tells of deletions only."""


class Revisions(Protocol):
    """The highest revision that the process has seen."""

    seen: int

    def saw(self, revision: int) -> None:
        """Remember a revision if it is the highest."""
        ...


class Watching(Signal):
    """One watcher's view of a watch: set when there is something to `take`."""

    __slots__ = ("_events", "_tell", "_watch", "_watches", "blocks", "line")

    def __init__(self, watches: Watches, watch: _Watch, *, line: Line, blocks: bool, tell: Tell | None) -> None:
        super().__init__()
        self._tell = tell
        self._watches = watches
        self._watch = watch
        self._events: deque[pb.Event | None] = deque()
        """What was not taken; ``None`` where some are missing."""
        self.line = line
        self.blocks = blocks
        """Whether it keeps the others of its line from going on: a blocking call on an event loop's thread."""

    @property
    def live(self) -> Signal:
        """Set once the server has confirmed the watch, or refused it: `check` tells."""
        return self._watch.live

    @property
    def is_current(self) -> bool:
        """Whether news come: the stream is not broken at the moment."""
        return self._watches.is_flowing and not self._watch.refusal

    @property
    def is_over(self) -> bool:
        """Whether there will be no more: it was refused, or the session is closed."""
        return bool(self._watches.is_closed or self._watch.refusal)

    @property
    def stream(self) -> int:
        """Which stream the news come on, counted from the session's first."""
        return self._watches.streams

    @property
    def idle(self) -> bool:
        """Whether the watcher has nothing waiting."""
        return not self._events

    def check(self) -> None:
        """Raise what etcd has refused the watch with, if it has.

        Raises:
            PermissionDenied: these credentials may not read what is watched.
            EtcdError: any other refusal.
        """
        reason = self._watch.refusal
        if reason:
            denied = any(words in reason for words in _DENIED)
            raise (PermissionDenied if denied else EtcdError)(f"watch on {self._watch.key!r}: {reason}")

    def offer(self, events: Sequence[pb.Event]) -> None:
        """Give the watcher events, or with an empty list tell it that it may have missed some."""
        if self._tell is not None:
            self._tell(events)
            return
        if len(self._events) + len(events) > _BUFFERED_EVENTS:
            self._events.clear()
            events = ()
        self._events.extend(events or (None,))
        self.set()

    def take(self) -> list[pb.Event]:
        """Return the events since the last call, oldest first, and clear the signal.

        An empty list tells that some may have been missed: read the state, which holds whatever came before it. What
        was handed out to this watcher alone is returned even then: it is for nobody else to find.

        Raises:
            EtcdError: etcd refuses the watch, by now.
        """
        self.clear()
        self.check()
        taken: list[pb.Event | None] = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._events.popleft())
        events = [event for event in taken if event is not None]
        return events if self._watch.hands_out or len(events) == len(taken) else []

    def close(self) -> None:
        """Stop watching. Events handed out to this watcher and not taken go to the next one."""
        self._watches.close_watching(self, self._watch)

    def left(self) -> list[pb.Event]:
        """Return the events that were not taken."""
        return [event for event in self._events if event is not None]


class _Watch:
    """A watch as the server knows it."""

    __slots__ = (
        "asked_at",
        "deletions",
        "hands_out",
        "has_ended",
        "id",
        "in_vain",
        "key",
        "live",
        "missed",
        "next_revision",
        "range_end",
        "refusal",
        "shared",
        "watchers",
    )

    def __init__(self, id: int, subject: Subject, start: int) -> None:
        self.id = id
        self.key, self.range_end, self.hands_out, self.deletions = subject
        self.next_revision = start
        """Where it resumes; 0 for now."""
        self.asked_at = 0
        """The revision that we had seen when the server was asked for it."""
        self.shared = not start
        self.live = Signal()
        self.refusal = ""
        self.missed = False
        """Whether its watchers have to be told, once it is live again, that they may have missed something."""
        self.has_ended = False
        """Whether its one key is deleted, as a lock's predecessor is in the end."""
        self.in_vain = 0
        self.watchers: list[Watching] = []

    @property
    def subject(self) -> Subject:
        """What it tells of: watchers of the same share it."""
        return self.key, self.range_end, self.hands_out, self.deletions

    def request(self) -> pb.WatchRequest:
        filters: list[pb.WatchCreateRequest.FilterType] = []
        if self.hands_out:
            filters.append(pb.WatchCreateRequest.NODELETE)
        if self.deletions:
            filters.append(pb.WatchCreateRequest.NOPUT)
        return pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=self.key,
                range_end=self.range_end,
                start_revision=self.next_revision,
                watch_id=self.id,
                progress_notify=True,
                filters=filters,
            )
        )

    def is_past(self, revision: int) -> None:
        """Take note that the server has told everything up to a revision."""
        self.next_revision = max(self.next_revision, revision + 1)


class Watches:
    """The process's watches, apart from the stream that they travel on."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions
        self._lock = threading.Lock()
        self._send: Send | None = None
        self._asked: deque[int] = deque()
        """Watches that the stream was asked for and has not answered: it does so in this order."""
        self._ids = itertools.count(1)
        self._watches: dict[int, _Watch] = {}
        self._shared: dict[Subject, _Watch] = {}
        self._idle: OrderedDict[int, _Watch] = OrderedDict()
        self._blocked: Counter[Line] = Counter()
        self.is_closed = False
        self.is_flowing = False
        """Whether there is a stream, as far as we know."""
        self.streams = 0
        """How many there were."""

    def open(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        start: int = 0,
        hand_out: bool = False,
        deletions: bool = False,
        line: Line = THREADS,
        blocks: bool = False,
        tell: Tell | None = None,
    ) -> Watching:
        """Return a watcher. Await its ``live`` before reading the state that it shall complete.

        ``blocks`` says that the watcher keeps all others of its ``line`` from going on: nothing is handed out to
        those meanwhile. ``tell`` is given the events as they come, or nothing where some are missing; it must be quick.
        """
        with self._lock:
            subject = (key, range_end, hand_out, deletions)
            watch = None if start else self._shared.get(subject)
            if watch is None:
                watch = _Watch(next(self._ids), subject, start)
                self._watches[watch.id] = watch
                if watch.shared:
                    self._shared[watch.subject] = watch
                self._ask(watch)
            self._idle.pop(watch.id, None)
            watch.in_vain = 0
            watching = Watching(self, watch, line=line, blocks=blocks, tell=tell)
            watch.watchers.append(watching)
            if blocks:
                self._blocked[line] += 1
            if self.is_closed:
                self._wake(watch)
        return watching

    def close_watching(self, watching: Watching, watch: _Watch) -> None:
        """Take a watcher off its watch; end the watch when it was the last and too many others are kept idle."""
        with self._lock:
            if watching not in watch.watchers:
                return
            watch.watchers.remove(watching)
            if watching.blocks:
                self._blocked[watching.line] -= 1
            left = watching.left()
            if watch.hands_out and left:
                self._deliver(watch, left)
            if watch.watchers or watch.id not in self._watches:
                return
            if not watch.shared or watch.has_ended:
                self._drop(watch)
                return
            self._idle[watch.id] = watch
            if len(self._idle) > _IDLE_WATCHES:
                self._drop(next(iter(self._idle.values())))

    def travel_on(self, send: Send) -> None:
        """Ask a new stream for every watch, each from where it was; what is asked for from now on goes there too."""
        with self._lock:
            self._send = send
            self.is_flowing = True
            self.streams += 1
            self._asked.clear()
            for watch in self._watches.values():
                self._ask(watch)

    def stand_still(self) -> None:
        """Take note that the stream is broken: what is asked for meanwhile, the next one will be asked for."""
        with self._lock:
            self._send = None
            self.is_flowing = False

    def handle(self, response: pb.WatchResponse) -> None:
        """Pass on what the stream has brought."""
        with self._lock:
            watch = self._watches.get(self._answered(response) if response.created else response.watch_id)
            if watch is None:
                return
            if response.canceled:
                self._end(watch, response)
                return
            if response.events:
                last = response.events[-1]
                self._revisions.saw(last.kv.mod_revision)
                watch.is_past(last.kv.mod_revision)
                watch.has_ended = not watch.range_end and last.type == pb.Event.DELETE
                self._deliver(watch, list(response.events))
                if not watch.watchers:
                    watch.in_vain += response.ByteSize()
                    if watch.in_vain > _IN_VAIN_BYTES:
                        self._drop(watch)
            elif not response.created:
                watch.is_past(response.header.revision)
            if response.created:
                self._confirm(watch)

    def close(self) -> None:
        """Wake every watcher, for the last time, and whoever comes from now on."""
        with self._lock:
            self.is_closed = True
            self.is_flowing = False
            for watch in self._watches.values():
                self._wake(watch)

    def _ask(self, watch: _Watch) -> None:
        watch.asked_at = max(watch.asked_at, self._revisions.seen)
        if self._send is not None:
            self._asked.append(watch.id)
            self._send(watch.request())

    def _answered(self, response: pb.WatchResponse) -> int:
        """Return which watch a confirmation or a refusal is about.

        Refusals come under the id -1 (etcd 3.4.22 and 3.5.9 and later), but all come in the order of the requests.
        """
        while self._asked:
            asked = self._asked.popleft()
            if response.watch_id in (asked, _NO_ID):
                return asked
        return response.watch_id

    def _confirm(self, watch: _Watch) -> None:
        if not watch.next_revision:
            # Not the revision of this response: later releases take it after the watch has begun, and what has
            # happened in between is still to be told. What the watchers have read is at least as new as this:
            watch.next_revision = watch.asked_at + 1
        watch.live.set()
        if watch.missed:
            watch.missed = False
            self._deliver(watch, [])

    def _end(self, watch: _Watch, response: pb.WatchResponse) -> None:
        """Begin a watch again that the server has ended, if that can help."""
        if response.cancel_reason and not response.compact_revision:
            log.debug("watch on %r refused: %s", watch.key, response.cancel_reason)
            watch.refusal = response.cancel_reason
            self._forget(watch)
            self._wake(watch)
            return
        if response.compact_revision:
            log.debug("watch on %r: what it had to tell is compacted, starting from now", watch.key)
            watch.next_revision = 0
            watch.asked_at = max(watch.asked_at, response.compact_revision)
            watch.missed = True
        # The old id stays taken on this stream: asked for again it would be refused as a duplicate.
        is_idle = watch.id in self._idle
        self._forget(watch)
        watch.id = next(self._ids)
        self._watches[watch.id] = watch
        if watch.shared:
            self._shared[watch.subject] = watch
        if is_idle:
            self._idle[watch.id] = watch
        self._ask(watch)

    def _deliver(self, watch: _Watch, events: Sequence[pb.Event]) -> None:
        """Pass events on: to every watcher, or one by one to one of those that can go on, in the order they came."""
        if not (watch.hands_out and events):
            for watcher in watch.watchers:
                watcher.offer(events)
            return
        able = [taker for taker in watch.watchers if taker.blocks or not self._blocked[taker.line]] or watch.watchers
        for event in events if able else ():
            next((taker for taker in able if taker.idle), able[0]).offer([event])

    def _wake(self, watch: _Watch) -> None:
        watch.live.set()
        self._deliver(watch, [])

    def _drop(self, watch: _Watch) -> None:
        self._forget(watch)
        if self._send is not None:
            self._send(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch.id)))

    def _forget(self, watch: _Watch) -> None:
        self._watches.pop(watch.id, None)
        self._idle.pop(watch.id, None)
        if self._shared.get(watch.subject) is watch:
            del self._shared[watch.subject]


class WatchHub:
    """The process's watches on one stream, read by one thread that starts with the first watch.

    ``on_reply`` is told from which cluster each answer came.
    """

    def __init__(self, wire: Wire, revisions: Revisions, *, on_reply: Callable[[int], None]) -> None:
        self._watches = Watches(revisions)
        self._wire = wire
        self._on_reply = on_reply
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def open(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        start: int = 0,
        hand_out: bool = False,
        deletions: bool = False,
        line: Line = THREADS,
        blocks: bool = False,
        tell: Tell | None = None,
    ) -> Watching:
        """Return a watcher, as `Watches.open` does, and have somebody read the stream."""
        watching = self._watches.open(
            key,
            range_end,
            start=start,
            hand_out=hand_out,
            deletions=deletions,
            line=line,
            blocks=blocks,
            tell=tell,
        )
        if self._thread is None:
            self._start()
        return watching

    def abandon(self) -> None:
        """End the stream, without waiting for anybody. Watchers are woken."""
        self._closing.set()
        self._watches.close()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.cancel()

    def close(self) -> None:
        """End the stream and its thread. Watchers are woken."""
        self.abandon()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=2.0)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="skyward-etcd-watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            opened = time.monotonic()
            try:
                self._listen()
            except SkywardEtcdError as error:
                log.debug("watch stream broken, opening another: %s", error)
                if not self._closing.is_set():
                    observing.tell(lambda each: each.watch_broken())
                if not isinstance(error, Unavailable):
                    self._wire.switch(self._wire.endpoint)
            except Exception:  # a bug of ours must not leave everybody waiting for ever
                log.exception("watch stream left, opening another")
            failures = 1 if time.monotonic() - opened > _STABLE_S else failures + 1
            self._closing.wait(pause_before(failures))

    def _listen(self) -> None:
        # This may take as long as a connection: nobody who closes or watches has to wait for it.
        stream = self._wire.stream(WATCH, require_leader=True)
        opened = time.monotonic()
        try:
            with self._lock:
                self._stream = stream
            if self._closing.is_set():  # by somebody who may not have seen this stream
                return
            self._watches.travel_on(stream.send)
            with contextlib.closing(iter(stream)) as responses:
                for response in responses:
                    self._on_reply(response.header.cluster_id)
                    if self._closing.is_set():
                        return
                    if self._wire.signs_on and _is_about_rights(response) and time.monotonic() - opened > _FRESH_S:
                        raise Unavailable(f"the stream's token may have ended: {response.cancel_reason}")
                    self._watches.handle(response)
        finally:
            self._watches.stand_still()
            stream.cancel()


def _is_about_rights(response: pb.WatchResponse) -> bool:
    return response.canceled and any(words in response.cancel_reason for words in ("permission denied", "auth"))
