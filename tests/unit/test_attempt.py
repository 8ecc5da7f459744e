"""When a request is sent again, driven by hand: an operation needs no etcd to be tested."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from skyward_etcd.errors import Compacted, EtcdError, LeaseNotFound, NoSpace, OutcomeUnknown, Unavailable
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import once, once_by, range_, recall, repeatable
from skyward_etcd.ops.bulk import all_of
from skyward_etcd.ops.effects import Backoff, Call, Effect, Operation
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import PUT, RANGE

FIRST = kv.txn(then=(kv.put(b"k", b"1"),))
AGAIN = kv.txn(then=(kv.put(b"k", b"2"),))
LOST = Unavailable("the reply was lost")
NEVER_SENT = Unavailable("nobody is there", maybe_applied=False)


def drive(operation: Operation[Any], *answers: object) -> tuple[Any, list[Effect]]:
    """Answer each call with the next of ``answers``; let every wait pass."""
    asked: list[Effect] = []
    pending = list(answers)
    try:
        effect = next(operation)
        while True:
            asked.append(effect)
            answer = copy.copy(pending.pop(0)) if isinstance(effect, Call) else 0.0
            effect = operation.throw(answer) if isinstance(answer, Exception) else operation.send(answer)
    except StopIteration as stop:
        return stop.value, asked


def requests(asked: list[Effect]) -> list[object]:
    return [effect.request for effect in asked if isinstance(effect, Call)]


def test_a_call_that_succeeds_asks_for_nothing_else() -> None:
    reply, asked = drive(repeatable(PUT, pb.PutRequest()), "reply")
    assert reply == "reply"
    assert len(asked) == 1


def test_a_read_is_sent_again_until_it_is_answered() -> None:
    reply, asked = drive(repeatable(RANGE, pb.RangeRequest()), LOST, NEVER_SENT, "reply")
    assert reply == "reply"
    assert [effect.attempt for effect in asked if isinstance(effect, Backoff)] == [2, 3]


def test_a_refusal_is_not_sent_again() -> None:
    with pytest.raises(EtcdError):
        drive(repeatable(PUT, pb.PutRequest()), EtcdError("no"))


def test_a_write_that_never_left_is_sent_again_as_it_was() -> None:
    (_, doubt), asked = drive(once(FIRST, lambda: AGAIN, what="x"), NEVER_SENT, pb.TxnResponse())
    assert requests(asked) == [FIRST, FIRST]
    assert not doubt


def test_a_write_in_doubt_is_followed_by_the_one_that_proves_it() -> None:
    (_, doubt), asked = drive(once(FIRST, lambda: AGAIN, what="x"), NEVER_SENT, LOST, NEVER_SENT, pb.TxnResponse())
    assert requests(asked) == [FIRST, FIRST, AGAIN, AGAIN]
    assert doubt


def test_a_session_lost_with_the_answer_leaves_the_outcome_unknown() -> None:
    with pytest.raises(OutcomeUnknown):
        drive(once(FIRST, lambda: AGAIN, what="x"), LOST, LeaseNotFound("gone"))


def test_a_session_lost_before_the_write_was_sent_is_no_riddle() -> None:
    with pytest.raises(LeaseNotFound):
        drive(once(FIRST, lambda: AGAIN, what="x"), NEVER_SENT, LeaseNotFound("gone"))


@pytest.mark.parametrize(("last", "expected"), [(LOST, OutcomeUnknown), (NEVER_SENT, Unavailable)])
def test_giving_up_says_whether_it_may_have_been_applied(last: Unavailable, expected: type[Exception]) -> None:
    operation = once(FIRST, lambda: AGAIN, what="x")
    next(operation)
    operation.throw(last)  # Now
    operation.send(0.0)  # Backoff
    with pytest.raises(Exception) as raised:
        operation.throw(last)
    assert type(raised.value) is expected


def test_a_stale_reply_is_asked_again_linearizably() -> None:
    stale, fresh = (pb.RangeResponse(header=pb.ResponseHeader(revision=revision)) for revision in (4, 5))
    reply, asked = drive(range_(pb.RangeRequest(key=b"k", serializable=True), seen=5), stale, fresh)
    assert reply == fresh
    assert requests(asked) == [pb.RangeRequest(key=b"k", serializable=True), pb.RangeRequest(key=b"k")]


def test_a_reply_as_new_as_what_was_seen_costs_one_round_trip() -> None:
    reply = pb.RangeResponse(header=pb.ResponseHeader(revision=5))
    _, asked = drive(range_(pb.RangeRequest(key=b"k", serializable=True), seen=5), reply)
    assert len(asked) == 1


def test_an_answer_that_is_no_longer_in_the_history_is_unknown() -> None:
    with pytest.raises(OutcomeUnknown, match="was applied"):
        drive(recall(b"k", 3, what="x"), Compacted("gone"))


def test_what_fails_after_its_first_part_has_been_applied_in_part() -> None:
    parts = [pb.PutRequest(key=b"1"), pb.PutRequest(key=b"2")]

    def put(part: pb.PutRequest) -> Operation[None]:
        yield Call(PUT, part)

    _, asked = drive(all_of(map(put, parts)), "reply", "reply")
    assert requests(asked) == parts
    for answers, maybe_applied in (((NEVER_SENT,), False), (("reply", NEVER_SENT), True)):
        with pytest.raises(Unavailable) as caught:
            drive(all_of(map(put, parts)), *answers)
        assert caught.value.maybe_applied == maybe_applied


FULL = NoSpace("database space exceeded")


def by_key(*answers: object) -> tuple[Any, list[Effect]]:
    return drive(once_by(b"slot", 7, FIRST, lambda: AGAIN, what="x"), *answers)


def the_key(mod_revision: int) -> pb.RangeResponse:
    return pb.RangeResponse(kvs=[pb.KeyValue(key=b"slot", mod_revision=mod_revision)] if mod_revision else [])


def test_the_write_that_reaches_the_quota_was_applied_whatever_etcd_says() -> None:
    (reply, doubt), asked = by_key(FULL, the_key(9))
    assert doubt
    assert not reply.succeeded
    assert reply.responses[0].response_range.kvs[0].mod_revision == 9
    assert requests(asked) == [FIRST, pb.RangeRequest(key=b"slot")]


def test_a_write_that_no_space_kept_away_was_not_applied() -> None:
    with pytest.raises(NoSpace):
        by_key(FULL, the_key(7))


def test_whether_the_quota_kept_a_write_away_may_be_unknown() -> None:
    asking = once_by(b"slot", 7, FIRST, lambda: AGAIN, what="x")
    next(asking)
    asking.throw(FULL)
    asking.throw(LOST)
    assert isinstance(asking.send(0.0), Backoff)
    with pytest.raises(OutcomeUnknown, match="may have been applied"):
        asking.throw(LOST)
    with pytest.raises(OutcomeUnknown, match="may have been applied"):
        by_key(LOST, FULL)
