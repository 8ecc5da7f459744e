"""Watches, apart from the stream that they travel on: what is asked of etcd, and what becomes of each of its answers.

The answers are made by hand as etcd 3.4.23 and 3.5.1 were seen to send them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from skyward_etcd.errors import EtcdError, PermissionDenied, Unavailable
from skyward_etcd.session.caller import Line
from skyward_etcd.session.watch import _IN_VAIN_BYTES, Watches, WatchHub, Watching
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Wire

DENIED = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"


class Seen:
    """What the process has seen."""

    def __init__(self, seen: int = 10) -> None:
        self.seen = seen

    def saw(self, revision: int) -> None:
        self.seen = max(self.seen, revision)


class Etcd:
    """Watches, and by hand the other end of their stream."""

    def __init__(self, seen: int = 10) -> None:
        self.revisions = Seen(seen)
        self.watches = Watches(self.revisions)
        self.asked: list[pb.WatchRequest] = []
        self.connect()

    def connect(self) -> None:
        """Begin a stream, the next one after the one before is broken."""
        self.asked.clear()
        self.watches.travel_on(self.asked.append)

    @property
    def creations(self) -> list[pb.WatchCreateRequest]:
        return [request.create_request for request in self.asked if request.HasField("create_request")]

    @property
    def cancelled(self) -> list[int]:
        return [request.cancel_request.watch_id for request in self.asked if request.HasField("cancel_request")]

    def confirms(self, *, revision: int = 10, number: int = -1) -> int:
        """Confirm the last watch that was asked for, or another; return its id."""
        id_ = self.creations[number].watch_id
        self.says(revision, watch_id=id_, created=True)
        return id_

    def compacted(self, id_: int, compacted: int) -> None:
        """End a watch on the past: this comes after its confirmation, without a revision."""
        self.says(0, watch_id=id_, canceled=True, compact_revision=compacted)

    def says(self, revision: int, **what: Any) -> None:
        self.watches.handle(pb.WatchResponse(header=pb.ResponseHeader(revision=revision), **what))

    def tells(self, id_: int, *events: pb.Event) -> None:
        self.says(events[-1].kv.mod_revision, watch_id=id_, events=events)


def put(key: str, revision: int, value: bytes = b"") -> pb.Event:
    return pb.Event(kv=pb.KeyValue(key=key.encode(), mod_revision=revision, value=value))


def delete(key: str, revision: int) -> pb.Event:
    return pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=key.encode(), mod_revision=revision))


def revisions(watching: Watching) -> list[int]:
    return [event.kv.mod_revision for event in watching.take()]


# ---- one stream


def test_a_watch_is_live_once_it_is_confirmed_and_tells_what_happens() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"k")
    assert not watching.live.is_set()
    id_ = etcd.confirms()
    assert watching.live.is_set()
    assert not watching.is_set()
    etcd.tells(id_, put("k", 11), put("k", 12))
    assert watching.is_set()
    assert revisions(watching) == [11, 12]
    assert etcd.revisions.seen == 12


def test_watchers_of_one_key_share_a_watch() -> None:
    etcd = Etcd()
    first = etcd.watches.open(b"k")
    id_ = etcd.confirms()
    second = etcd.watches.open(b"k")
    assert second.live.is_set()
    assert len(etcd.creations) == 1
    etcd.tells(id_, put("k", 11))
    assert revisions(first) == revisions(second) == [11]


def test_events_for_nobody_are_no_harm() -> None:
    etcd = Etcd()
    etcd.tells(7, put("k", 11))
    etcd.says(11, watch_id=7, canceled=True)
    etcd.says(11, watch_id=-1)


# ---- the next stream


def test_what_is_opened_between_two_streams_is_asked_of_the_next_and_only_once() -> None:
    etcd = Etcd()
    etcd.watches.open(b"before")
    etcd.confirms()
    etcd.watches.stand_still()
    etcd.asked.clear()
    etcd.watches.open(b"between")
    etcd.watches.open(b"gone").close()
    assert etcd.asked == []
    etcd.connect()
    etcd.watches.open(b"after")
    assert [creation.key for creation in etcd.creations] == [b"before", b"between", b"gone", b"after"]


def test_a_watch_goes_on_where_it_was() -> None:
    etcd = Etcd()
    told, notified, silent = (etcd.watches.open(key) for key in (b"told", b"notified", b"silent"))
    ids = [etcd.confirms(number=number) for number in range(3)]
    etcd.tells(ids[0], put("told", 14))
    etcd.says(17, watch_id=ids[1])  # a progress notification
    etcd.connect()
    assert [creation.start_revision for creation in etcd.creations] == [15, 18, 11]
    assert [watching.is_set() for watching in (told, notified, silent)] == [True, False, False]


def test_a_member_that_lags_behind_does_not_set_a_watch_back() -> None:
    etcd = Etcd()
    etcd.watches.open(b"k")
    etcd.tells(etcd.confirms(), put("k", 14))
    etcd.connect()
    etcd.says(12, watch_id=etcd.confirms(revision=12))
    etcd.connect()
    assert etcd.creations[0].start_revision == 15


def test_a_watch_that_was_never_confirmed_begins_from_now() -> None:
    etcd = Etcd()
    etcd.watches.open(b"k")
    etcd.connect()
    assert etcd.creations[0].start_revision == 0


def test_what_happened_before_the_confirmation_was_written_is_not_skipped() -> None:
    """Later releases take the confirmation's revision after the watch has begun: events up to it are still to come."""
    etcd = Etcd(seen=10)
    etcd.watches.open(b"k")
    etcd.revisions.saw(12)
    etcd.confirms(revision=15)
    etcd.connect()  # and 13 to 15 were lost with the stream before
    assert etcd.creations[0].start_revision == 11


# ---- compaction


def test_a_watch_that_missed_what_is_compacted_begins_from_now_and_says_so() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"k")
    etcd.confirms()
    etcd.connect()
    assert etcd.creations[0].start_revision == 11
    old = etcd.confirms(revision=20)
    assert not watching.is_set()
    etcd.compacted(old, 19)
    assert not watching.is_set(), "told before it is live again: what happens meanwhile would be missed"
    again = etcd.creations[-1]
    assert (again.key, again.start_revision) == (b"k", 0)
    assert again.watch_id != old, "the old id is taken on this stream"
    etcd.tells(etcd.confirms(revision=21), put("k", 22))
    assert watching.is_set()
    assert watching.take() == []
    etcd.tells(again.watch_id, put("k", 23))
    assert revisions(watching) == [23]


def test_a_stream_that_breaks_while_a_watch_begins_from_now_forgets_nothing() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"k")
    etcd.confirms()
    etcd.connect()
    etcd.compacted(etcd.confirms(), 19)
    etcd.connect()
    assert etcd.creations[0].start_revision == 0
    etcd.confirms(revision=25)
    assert watching.is_set()
    assert watching.take() == []
    etcd.connect()
    assert etcd.creations[0].start_revision == 20, "where it was asked for, and not behind what is compacted"


def test_one_who_comes_while_a_watch_begins_from_now_is_told_too() -> None:
    etcd = Etcd()
    etcd.watches.open(b"k")
    etcd.confirms()
    etcd.connect()
    etcd.compacted(etcd.confirms(), 19)
    late = etcd.watches.open(b"k")
    assert late.live.is_set()  # it reads the state, and what comes before the confirmation is not told
    etcd.confirms(revision=25)
    assert late.is_set()


def test_a_watch_on_the_past_that_is_compacted_says_so() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"k", start=5)
    etcd.compacted(etcd.confirms(), 9)
    assert not watching.is_set()
    etcd.confirms()
    assert watching.take() == []


def test_an_idle_watch_that_is_compacted_serves_the_next_watcher() -> None:
    etcd = Etcd()
    etcd.watches.open(b"k").close()
    etcd.confirms()
    etcd.connect()
    etcd.compacted(etcd.confirms(), 19)
    id_ = etcd.confirms(revision=25)
    watching = etcd.watches.open(b"k")
    assert len(etcd.creations) == 2
    etcd.tells(id_, put("k", 26))
    assert revisions(watching) == [26]


def test_a_gap_is_not_hidden_by_what_comes_after_it() -> None:
    """A barrier that sees one death and not the gap before would wait for another that died in it."""
    etcd = Etcd()
    watching = etcd.watches.open(b"k", b"l")
    id_ = etcd.confirms()
    watching.offer([])
    etcd.tells(id_, delete("k1", 11))
    assert watching.take() == []
    etcd.tells(id_, *(put("k", 12 + number) for number in range(5000)))
    etcd.tells(id_, put("k", 6000))
    assert watching.take() == [], "more than a watcher may have waiting"
    etcd.tells(id_, put("k", 6001))
    assert revisions(watching) == [6001]


# ---- refusal


@pytest.mark.parametrize("id_", [-1, 2], ids=["from 3.4.22 and 3.5.9 on", "before"])
def test_a_refused_watch_fails_its_own_watcher_and_nobody_else(id_: int) -> None:
    etcd = Etcd()
    first, denied, last = (etcd.watches.open(key) for key in (b"first", b"denied", b"last"))
    etcd.confirms(number=0)
    etcd.says(10, watch_id=id_, created=True, canceled=True, cancel_reason=DENIED)
    etcd.tells(etcd.confirms(number=2), put("last", 11))
    assert denied.live.is_set()
    with pytest.raises(PermissionDenied, match=r"denied.*permission denied"):
        denied.check()
    first.check()
    assert not first.is_set()
    assert revisions(last) == [11]
    denied.close()
    assert len(etcd.asked) == 3
    etcd.watches.open(b"denied")
    assert etcd.creations[-1].key == b"denied", "asked again: the rights may have changed"


def test_a_watch_that_is_refused_when_it_resumes_wakes_who_waits() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"k")
    etcd.confirms()
    etcd.connect()
    etcd.says(10, watch_id=-1, created=True, canceled=True, cancel_reason=DENIED)
    assert watching.is_set()
    with pytest.raises(PermissionDenied):
        watching.take()


def test_a_refusal_that_is_not_about_rights_says_what_it_is() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"b", b"a")
    etcd.says(10, watch_id=-1, created=True, canceled=True, cancel_reason="mvcc: watcher range is empty")
    with pytest.raises(EtcdError, match="range is empty") as refused:
        watching.check()
    assert not isinstance(refused.value, PermissionDenied)


def test_a_refusal_reaches_the_right_watch_after_others_were_given_up() -> None:
    etcd = Etcd()
    gone, denied = etcd.watches.open(b"gone", start=3), etcd.watches.open(b"denied")
    gone.close()
    etcd.says(10, watch_id=1, created=True)
    etcd.says(10, watch_id=-1, created=True, canceled=True, cancel_reason=DENIED)
    with pytest.raises(PermissionDenied):
        denied.check()


def test_a_watch_that_etcd_ends_without_a_word_is_asked_for_again() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"k")
    id_ = etcd.confirms()
    etcd.tells(id_, put("k", 11))
    etcd.says(12, watch_id=id_, canceled=True)
    assert etcd.creations[-1].start_revision == 12
    etcd.tells(etcd.confirms(), put("k", 12))
    assert revisions(watching) == [11, 12]


# ---- handing out


def test_what_is_handed_out_goes_to_the_first_who_has_nothing_yet() -> None:
    etcd = Etcd()
    first, second = (etcd.watches.open(b"q", b"r", hand_out=True) for _ in range(2))
    id_ = etcd.confirms()
    assert list(etcd.creations[0].filters) == [pb.WatchCreateRequest.NODELETE]
    etcd.tells(id_, put("q1", 11))
    assert (first.is_set(), second.is_set()) == (True, False)
    etcd.tells(id_, put("q2", 12), put("q3", 13))
    assert (revisions(first), revisions(second)) == ([11, 13], [12])


def test_what_was_handed_out_and_not_taken_goes_to_the_next() -> None:
    etcd = Etcd()
    first, second = (etcd.watches.open(b"q", b"r", hand_out=True) for _ in range(2))
    etcd.tells(etcd.confirms(), put("q1", 11))
    first.close()
    assert revisions(second) == [11]
    second.offer([put("q1", 11)])
    third = etcd.watches.open(b"q", b"r", hand_out=True)
    second.close()
    assert revisions(third) == [11]


def test_a_gap_takes_nothing_away_that_was_handed_out() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"q", b"r", hand_out=True)
    id_ = etcd.confirms()
    watching.offer([])
    etcd.tells(id_, put("q1", 11))
    assert revisions(watching) == [11]


def test_nothing_is_handed_to_a_task_whose_loop_is_blocked() -> None:
    etcd, loop, other = Etcd(), Line(), Line()
    task, elsewhere = (etcd.watches.open(b"q", b"r", hand_out=True, line=line) for line in (loop, other))
    id_ = etcd.confirms()
    blocking = etcd.watches.open(b"q", b"r", hand_out=True, line=loop, blocks=True)
    etcd.tells(id_, put("q1", 11), put("q2", 12))
    assert (revisions(elsewhere), revisions(blocking)) == ([11], [12])
    blocking.close()
    etcd.tells(id_, put("q3", 13))
    assert revisions(task) == [13]


def test_a_blocked_loop_is_told_if_nobody_else_is_there() -> None:
    etcd, loop = Etcd(), Line()
    task = etcd.watches.open(b"q", b"r", hand_out=True, line=loop)
    id_ = etcd.confirms()
    etcd.watches.open(b"another", line=loop, blocks=True)
    etcd.tells(id_, put("q1", 11))
    assert revisions(task) == [11]


# ---- idle watches


def test_an_idle_watch_is_kept_for_the_next_watcher() -> None:
    etcd = Etcd()
    etcd.watches.open(b"k").close()
    etcd.confirms()
    assert etcd.watches.open(b"k").live.is_set()
    assert len(etcd.asked) == 1


def test_a_watch_of_deletions_is_not_told_of_puts_and_shared_by_those_who_want_no_other() -> None:
    etcd = Etcd()
    etcd.watches.open(b"q", b"r", deletions=True)
    etcd.watches.open(b"q", b"r", deletions=True)
    etcd.watches.open(b"q", b"r")
    assert [list(creation.filters) for creation in etcd.creations] == [[pb.WatchCreateRequest.NOPUT], []]


def test_a_watcher_can_tell_that_its_stream_broke_meanwhile() -> None:
    etcd = Etcd()
    watching = etcd.watches.open(b"k")
    before = watching.stream
    assert watching.stream == before
    etcd.watches.stand_still()
    etcd.connect()
    assert watching.stream != before


def test_an_idle_watch_that_carries_much_in_vain_is_ended() -> None:
    etcd = Etcd()
    etcd.watches.open(b"q", b"r", hand_out=True).close()
    id_ = etcd.confirms()
    etcd.tells(id_, put("q1", 11, bytes(_IN_VAIN_BYTES // 2)))
    watching = etcd.watches.open(b"q", b"r", hand_out=True)
    etcd.tells(id_, put("q2", 12, bytes(2 * _IN_VAIN_BYTES)))
    watching.close()
    etcd.tells(id_, put("q3", 13, bytes(_IN_VAIN_BYTES // 2)))
    assert etcd.cancelled == [], "somebody came in between"
    etcd.tells(id_, put("q4", 14, bytes(_IN_VAIN_BYTES // 2)))
    assert etcd.cancelled == [id_]
    etcd.watches.open(b"q", b"r", hand_out=True)
    assert [creation.watch_id for creation in etcd.creations] == [id_, id_ + 1]


def test_a_watch_on_a_deleted_key_is_ended_with_its_watcher() -> None:
    """As a lock's predecessor: its key never comes again."""
    etcd = Etcd()
    watching = etcd.watches.open(b"k")
    id_ = etcd.confirms()
    etcd.tells(id_, delete("k", 11))
    assert etcd.cancelled == []
    watching.close()
    assert etcd.cancelled == [id_]


def test_few_watches_are_kept_idle() -> None:
    etcd = Etcd()
    for number in range(100):
        etcd.watches.open(b"%d" % number).close()
    assert len(etcd.cancelled) == 36


def test_a_watcher_closed_twice_takes_nothing_from_others() -> None:
    etcd = Etcd()
    first, second = etcd.watches.open(b"k"), etcd.watches.open(b"k")
    first.close()
    first.close()
    etcd.tells(etcd.confirms(), put("k", 11))
    assert revisions(second) == [11]


# ---- the end


def test_who_comes_after_the_end_does_not_wait() -> None:
    etcd = Etcd()
    before = etcd.watches.open(b"k")
    etcd.watches.close()
    after = etcd.watches.open(b"other")
    assert all(watching.live.is_set() and watching.is_set() for watching in (before, after))


# ---- the hub


class FakeWire:
    """Streams whose responses come from the test; what it is asked for, it says through `requests`."""

    endpoint = "nowhere:1"

    def __init__(self) -> None:
        self.may_open = threading.Event()
        self.may_open.set()
        self.opening = threading.Event()
        self.streams: queue.Queue[FakeStream] = queue.Queue()

    signs_on = False

    def stream(self, *_: Any, **__: Any) -> FakeStream:
        self.opening.set()
        self.may_open.wait()
        stream = FakeStream()
        self.streams.put(stream)
        return stream


class FakeStream:
    def __init__(self) -> None:
        self._requests: queue.Queue[pb.WatchRequest | None] = queue.Queue()
        self.requests = iter(self._requests.get, None)
        self.responses: queue.Queue[pb.WatchResponse | None] = queue.Queue()

    def __iter__(self) -> Iterator[pb.WatchResponse]:
        yield from iter(self.responses.get, None)
        raise Unavailable("broken")

    def send(self, request: pb.WatchRequest) -> None:
        self._requests.put(request)

    def cancel(self) -> None:
        self._requests.put(None)
        self.responses.put(None)


@pytest.fixture
def wire() -> FakeWire:
    return FakeWire()


@pytest.fixture
def hub(wire: FakeWire) -> Iterator[WatchHub]:
    hub = WatchHub(cast(Wire, wire), Seen(), on_reply=lambda _: None)
    yield hub
    wire.may_open.set()
    hub.close()
    assert hub._thread is None or not hub._thread.is_alive()


def test_the_hub_opens_another_stream_when_one_breaks(hub: WatchHub, wire: FakeWire) -> None:
    watching = hub.open(b"k")
    first = wire.streams.get(timeout=5)
    asked = next(first.requests).create_request
    first.cancel()
    second = wire.streams.get(timeout=5)
    assert list(first.requests) == []
    assert next(second.requests).create_request == asked
    second.responses.put(pb.WatchResponse(watch_id=asked.watch_id, created=True))
    _wait_for(watching.live.is_set)


def test_the_hub_survives_a_bug(hub: WatchHub, wire: FakeWire, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise KeyError("a bug")

    watching = hub.open(b"k")
    with monkeypatch.context() as patch:
        patch.setattr(hub._watches, "handle", fails)
        wire.streams.get(timeout=5).responses.put(pb.WatchResponse())
        second = wire.streams.get(timeout=5)
    second.responses.put(pb.WatchResponse(watch_id=next(second.requests).create_request.watch_id, created=True))
    _wait_for(watching.live.is_set)


def test_a_hub_can_be_closed_and_used_while_a_stream_is_being_opened(hub: WatchHub, wire: FakeWire) -> None:
    """Opening a stream may take as long as a connection to a member that does not answer."""
    wire.may_open.clear()
    hub.open(b"k")
    assert wire.opening.wait(5)
    began = time.monotonic()
    hub.open(b"other")
    closing = threading.Thread(target=hub.close, daemon=True)
    closing.start()
    _wait_for(hub.open(b"k").live.is_set)
    assert time.monotonic() - began < 5
    wire.may_open.set()
    closing.join(5)
    assert not closing.is_alive()
    assert wire.streams.get(timeout=5).responses.get(timeout=5) is None, "the late stream was not cancelled"


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
