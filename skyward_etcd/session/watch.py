"""One watch stream for the whole process, shared by everything that waits.

A watch is never lost silently: a broken stream is opened again at another member and every watch resumes at its
next revision; if that is compacted away, the watchers are woken without events and read the state again.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from skyward_etcd.errors import SkywardEtcdError, Unavailable
from skyward_etcd.session.signals import Signal
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Stream, Wire
from skyward_etcd.wire.methods import WATCH
from skyward_etcd.wire.retry import pause_before

__all__ = ["WatchHub", "Watches", "Watching"]

log = logging.getLogger("skyward_etcd.session")

_IDLE_WATCHES = 64
"""Watches kept after their last watcher has gone: the next wait on a barrier or queue then costs no round trip."""
_STABLE_S = 5.0
"""A stream that lasted so long was good: the next one is opened without a long pause."""
_BUFFERED_EVENTS = 4096
"""What a watcher that does not look may have waiting, before it is told to read the state again instead."""


class Watching(Signal):
    """One watcher's view of a watch: set when there is something to `take`."""

    __slots__ = ("_events", "_hub", "_watch", "hand_out")

    def __init__(self, hub: Watches, watch: _Watch, *, hand_out: bool) -> None:
        super().__init__()
        self._hub = hub
        self._watch = watch
        self._events: deque[pb.Event] = deque()
        self.hand_out = hand_out

    @property
    def live(self) -> Signal:
        """Set once the server has confirmed the watch."""
        return self._watch.live

    @property
    def idle(self) -> bool:
        """Whether the watcher has nothing waiting."""
        return not self._events

    def offer(self, events: Sequence[pb.Event]) -> None:
        """Give the watcher events, or with an empty list tell it that it may have missed some."""
        if len(self._events) + len(events) > _BUFFERED_EVENTS:
            self._events.clear()
        else:
            self._events.extend(events)
        self.set()

    def take(self) -> list[pb.Event]:
        """Return the events since the last call, oldest first, and clear the signal."""
        self.clear()
        events: list[pb.Event] = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def close(self) -> None:
        """Stop watching. Events handed out to this watcher and not taken go to the next one."""
        self._hub.close_watching(self, self._watch)


class _Watch:
    """A watch as the server knows it."""

    __slots__ = ("id", "key", "live", "missed", "next_revision", "range_end", "shared", "watchers")

    def __init__(self, id: int, key: bytes, range_end: bytes, start: int) -> None:
        self.id = id
        self.key = key
        self.range_end = range_end
        self.next_revision = start
        self.shared = not start
        self.live = Signal()
        self.missed = False
        self.watchers: list[Watching] = []

    def request(self) -> pb.WatchRequest:
        return pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=self.key,
                range_end=self.range_end,
                start_revision=self.next_revision,
                watch_id=self.id,
                progress_notify=True,
            )
        )

    def deliver(self, events: list[pb.Event]) -> None:
        """Pass events on: to every watcher, and one by one to those that want them handed out."""
        takers = [watcher for watcher in self.watchers if watcher.hand_out]
        for watcher in self.watchers:
            if not watcher.hand_out:
                watcher.offer(events)
        if takers:
            if not events:
                for taker in takers:
                    taker.offer(events)
            for event in events:
                if event.type == pb.Event.PUT:
                    next((taker for taker in takers if taker.idle), takers[0]).offer([event])


class Watches:
    """The process's watches, apart from the stream that they travel on."""

    def __init__(self, saw: Callable[[int], None], send: Callable[[pb.WatchRequest], None]) -> None:
        self._saw = saw
        self._send = send
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._watches: dict[int, _Watch] = {}
        self._shared: dict[tuple[bytes, bytes], _Watch] = {}
        self._idle: OrderedDict[int, _Watch] = OrderedDict()

    def open(self, key: bytes, range_end: bytes = b"", *, start: int = 0, hand_out: bool = False) -> Watching:
        """Return a watcher. Await its ``live`` before reading the state that it shall complete."""
        with self._lock:
            watch = None if start else self._shared.get((key, range_end))
            if watch is None:
                watch = _Watch(next(self._ids), key, range_end, start)
                self._watches[watch.id] = watch
                if watch.shared:
                    self._shared[key, range_end] = watch
                self._send(watch.request())
            self._idle.pop(watch.id, None)
            watching = Watching(self, watch, hand_out=hand_out)
            watch.watchers.append(watching)
        return watching

    def close_watching(self, watching: Watching, watch: _Watch) -> None:
        """Take a watcher off its watch; end the watch when it was the last and too many others are kept idle."""
        with self._lock:
            if watching not in watch.watchers:
                return
            watch.watchers.remove(watching)
            left = watching.take()
            if watching.hand_out and left:
                watch.deliver(left)
            if watch.watchers:
                return
            self._idle[watch.id] = watch
            if not watch.shared or len(self._idle) > _IDLE_WATCHES:
                self._drop(watch if not watch.shared else next(iter(self._idle.values())))

    def requests(self) -> list[pb.WatchRequest]:
        """Return what a new stream has to be asked for: every watch, from its next revision on."""
        with self._lock:
            return [watch.request() for watch in self._watches.values()]

    def handle(self, response: pb.WatchResponse) -> None:
        """Pass on what the stream has brought.

        Raises:
            Unavailable: the server refuses a watch; leave this stream, and come back after a pause.
        """
        with self._lock:
            watch = self._watches.get(response.watch_id)
            if watch is None:
                return
            if response.canceled:
                self._reopen(watch, response)
                return
            if response.events:
                last = response.events[-1].kv.mod_revision
                self._saw(last)
                watch.next_revision = last + 1
                watch.deliver(list(response.events))
            elif not response.created or not watch.next_revision:
                watch.next_revision = response.header.revision + 1
            if response.created:
                watch.live.set()
                if watch.missed:
                    watch.missed = False
                    watch.deliver([])

    def wake_all(self) -> None:
        """Wake every watcher, for the last time."""
        with self._lock:
            for watch in self._watches.values():
                watch.live.set()
                watch.deliver([])

    def _reopen(self, watch: _Watch, response: pb.WatchResponse) -> None:
        if response.compact_revision:
            log.debug("watch on %r: its revision is compacted, starting from now", watch.key)
            watch.next_revision = 0
            watch.missed = True
        elif response.cancel_reason:
            raise Unavailable(f"watch on {watch.key!r} refused: {response.cancel_reason}")
        # The old id stays taken on this stream: asked for again it would be refused, silently.
        del self._watches[watch.id]
        is_idle = self._idle.pop(watch.id, None) is not None
        watch.id = next(self._ids)
        self._watches[watch.id] = watch
        if is_idle:
            self._idle[watch.id] = watch
        self._send(watch.request())

    def _drop(self, watch: _Watch) -> None:
        self._watches.pop(watch.id, None)
        self._idle.pop(watch.id, None)
        if self._shared.get((watch.key, watch.range_end)) is watch:
            del self._shared[watch.key, watch.range_end]
        self._send(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch.id)))


class WatchHub:
    """The process's watches on one stream, read by one thread that starts with the first watch."""

    def __init__(self, wire: Wire, saw: Callable[[int], None]) -> None:
        self._watches = Watches(saw, self._send)
        self._wire = wire
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self, key: bytes, range_end: bytes = b"", *, start: int = 0, hand_out: bool = False) -> Watching:
        """Return a watcher. Await its ``live`` before reading the state that it shall complete."""
        watching = self._watches.open(key, range_end, start=start, hand_out=hand_out)
        if self._thread is None:
            self._start()
        return watching

    def close(self) -> None:
        """End the stream and its thread. Watchers are woken."""
        with self._lock:
            self._closed = True
            stream, thread = self._stream, self._thread
        self._watches.wake_all()
        if stream is not None:
            stream.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=2.0)

    def _send(self, request: pb.WatchRequest) -> None:
        stream = self._stream
        if stream is not None:
            stream.send(request)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="skyward-etcd-watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        failures = 0
        while not self._closed:
            opened = time.monotonic()
            try:
                self._listen()
            except SkywardEtcdError as error:
                if self._closed:
                    return
                log.debug("watch stream broken, opening another: %s", error)
                if not isinstance(error, Unavailable):
                    self._wire.switch(self._wire.endpoint)
            failures = 1 if time.monotonic() - opened > _STABLE_S else failures + 1
            time.sleep(pause_before(failures))

    def _listen(self) -> None:
        stream = self._wire.stream(WATCH, require_leader=True)
        with self._lock:
            self._stream = stream
            if self._closed:
                stream.cancel()
                return
        # From here on new watches are sent by who opens them. One that is asked for twice is refused the second time,
        # as a duplicate, and stays as it is.
        for request in self._watches.requests():
            stream.send(request)
        for response in stream:
            self._watches.handle(response)
