"""Which calls may travel together, and what each is told."""

from __future__ import annotations

import pytest

from skyward_etcd.errors import Compacted, EtcdError, NoSpace, SkywardEtcdError, Unavailable
from skyward_etcd.ops import kv
from skyward_etcd.ops.effects import Call
from skyward_etcd.ops.merge import Batch, footprint, may_be_merged
from skyward_etcd.testing.model import ModelEtcd
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import DELETE_RANGE, LEASE_GRANT, RANGE, TXN


def read(key: bytes) -> Call:
    return Call(RANGE, kv.read(key))


def write(key: bytes, value: bytes = b"1") -> Call:
    return Call(TXN, kv.txn((kv.absent(key),), (kv.put(key, value),), (kv.get(key),)))


def together(*calls: Call) -> tuple[Batch, list[Call]]:
    """Return a batch, and the calls that it would not take."""
    batch = Batch()
    left: list[Call] = []
    for call in calls:
        its = footprint(call)
        if its is None or not batch.takes(call, its):
            left.append(call)
    return batch, left


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(Call(RANGE, kv.read(b"a", serializable=True)), id="a serializable read needs no quorum"),
        pytest.param(Call(RANGE, kv.read(b"a/", b"a0")), id="a read of many keys may take long"),
        pytest.param(Call(RANGE, kv.read(b"a", revision=3)), id="a read of the past may be refused"),
        pytest.param(Call(DELETE_RANGE, pb.DeleteRangeRequest(key=b"a")), id="a deletion has other answers"),
        pytest.param(Call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=5)), id="a lease is no key"),
    ],
)
def test_what_never_travels_with_others(call: Call) -> None:
    assert not may_be_merged(call)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(Call(TXN, kv.txn((), [kv.put(b"%d" % n) for n in range(61)])), id="many operations"),
        pytest.param(Call(TXN, kv.txn((), (kv.put(b"a", bytes(200_000)),))), id="many bytes"),
        pytest.param(Call(TXN, kv.txn((), (kv.delete(b"a/", b"a0"),))), id="an interval deleted"),
        pytest.param(
            Call(TXN, kv.txn((), (), (kv.nested((), (kv.delete(b"a/", b"a0"),)),))), id="an interval deleted inside"
        ),
    ],
)
def test_what_is_too_much_to_travel_with_others(call: Call) -> None:
    assert footprint(call) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(write(b"a"), write(b"a"), id="both write it"),
        pytest.param(write(b"a"), read(b"a"), id="one reads what the other writes"),
        pytest.param(write(b"a"), Call(TXN, kv.txn((kv.absent(b"a"),), (kv.put(b"b"),))), id="one compares it"),
        pytest.param(
            write(b"p/1"), Call(TXN, kv.txn((), (kv.put(b"q"), kv.get(b"p/", b"p0")))), id="one reads it with others"
        ),
        pytest.param(
            write(b"p/1"), Call(TXN, kv.txn((kv.all_absent(b"p/", b"p0"),), (kv.put(b"q"),))), id="one compares all"
        ),
        pytest.param(
            Call(TXN, kv.txn((), (), (kv.nested((), (kv.delete(b"a"),)),))),
            read(b"a"),
            id="one deletes it, deep inside",
        ),
    ],
)
def test_calls_of_which_one_writes_what_the_other_looks_at_travel_apart(first: Call, second: Call) -> None:
    for calls in ((first, second), (second, first)):
        assert together(*calls)[1] == [calls[1]]


def test_independent_calls_travel_together() -> None:
    calls = [write(b"a"), read(b"b"), read(b"b"), write(b"p/1"), Call(TXN, kv.txn((), (kv.get(b"q/", b"q0"),)))]
    assert together(*calls)[1] == []


def test_a_batch_is_bounded_in_calls_and_in_bytes() -> None:
    batch, left = together(*[read(b"%d" % n) for n in range(100)])
    assert (len(batch.calls), len(left)) == (64, 36)
    batch, left = together(*[write(b"%d" % n, bytes(100_000)) for n in range(10)])
    assert (len(batch.calls), len(left)) == (5, 5)


def test_each_call_is_answered_as_if_it_had_come_alone() -> None:
    calls = [write(b"there", b"2"), write(b"new", b"3"), read(b"there"), read(b"nowhere")]
    apart, merged = ModelEtcd(), ModelEtcd()
    for etcd in (apart, merged):
        etcd.call(TXN, kv.txn((), (kv.put(b"there", b"1"),)))
    batch = Batch()
    for call in calls:  # the read of a key beside what would write it, but does not
        batch.add(call, footprint(call) or pytest.fail("too much"))
    answers = batch.answers(merged.call(batch.as_call().method, batch.as_call().request))
    alone = [apart.call(call.method, call.request) for call in calls]

    assert [type(answer) for answer in answers] == [type(reply) for reply in alone]
    assert [answer.header.revision for answer in answers] == [merged.revision] * 4
    assert [answers[0].succeeded, answers[1].succeeded] == [False, True]
    assert answers[0].responses[0].response_range.kvs[0].value == answers[2].kvs[0].value == b"1"
    assert not answers[3].kvs
    assert apart.revision == merged.revision


def test_reads_alone_are_no_transaction_that_only_reads() -> None:
    """That would let etcd before 3.5.5 panic when its client goes away."""
    batch, _ = together(read(b"a"), read(b"b"))
    assert [each.WhichOneof("request") for each in batch.as_call().request.success] == ["request_txn"] * 2


def test_a_call_that_is_alone_is_sent_as_it_is() -> None:
    call = read(b"a")
    batch, _ = together(call)
    assert batch.as_call() is call
    reply = pb.RangeResponse()
    assert batch.answers(reply) == (reply,)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(Unavailable("lost"), ["Unavailable", "Unavailable"], id="a lost answer is lost to all"),
        pytest.param(EtcdError("duplicate key"), [None, None], id="a refusal is of one of them"),
        pytest.param(Compacted("gone"), [None, None], id="whichever it is"),
        pytest.param(NoSpace("full"), ["NoSpace", None], id="no space is for those who write"),
    ],
)
def test_what_an_error_of_the_whole_means_to_each(error: SkywardEtcdError, told: list[str | None]) -> None:
    batch, _ = together(write(b"a"), read(b"b"))
    errors = batch.told(error)
    assert [each and type(each).__name__ for each in errors] == told
    assert all(each is not error for each in errors), "each adds to its own"


def test_whether_it_left_is_known_to_each() -> None:
    batch, _ = together(write(b"a"), read(b"b"))
    for applied in (True, False):
        told = batch.told(Unavailable("lost", maybe_applied=applied))
        assert [isinstance(each, Unavailable) and each.maybe_applied for each in told] == [applied, applied]


def test_an_error_of_one_that_was_alone_is_its_own() -> None:
    batch, _ = together(write(b"a"))
    assert [type(each) for each in batch.told(EtcdError("refused"))] == [EtcdError]
