"""What the simulator builds on in the model of etcd; that the model is true, tests/integration shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from skyward_etcd.errors import Compacted, EtcdError, LeaseNotFound, NoSpace
from skyward_etcd.ops import kv
from skyward_etcd.testing.model import ModelEtcd
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods

EVERYTHING = (b"\0", b"\0")


@pytest.fixture
def etcd() -> ModelEtcd:
    return ModelEtcd()


def put(etcd: ModelEtcd, key: bytes, value: bytes = b"", lease: int = 0) -> int:
    return etcd.call(methods.PUT, pb.PutRequest(key=key, value=value, lease=lease)).header.revision


def get(etcd: ModelEtcd, key: bytes) -> pb.KeyValue:
    return etcd.call(methods.RANGE, kv.read(key)).kvs[0]


def delete(etcd: ModelEtcd, key: bytes) -> int:
    return etcd.call(methods.DELETE_RANGE, pb.DeleteRangeRequest(key=key)).header.revision


def grant(etcd: ModelEtcd, lease: int = 0) -> int:
    return etcd.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=lease, TTL=10)).ID


def test_each_write_has_a_revision_and_a_request_that_changes_nothing_has_none(etcd: ModelEtcd) -> None:
    assert etcd.revision == 1
    assert put(etcd, b"a") == 2
    assert put(etcd, b"a") == 3, "the same value is a write too"
    assert delete(etcd, b"b") == 3
    assert etcd.call(methods.TXN, kv.txn([kv.absent(b"a")], [kv.put(b"a")])).header.revision == 3


def test_a_key_that_comes_back_begins_anew(etcd: ModelEtcd) -> None:
    put(etcd, b"a")
    put(etcd, b"a")
    assert (get(etcd, b"a").create_revision, get(etcd, b"a").version) == (2, 2)
    delete(etcd, b"a")
    put(etcd, b"a")
    assert (get(etcd, b"a").create_revision, get(etcd, b"a").version) == (5, 1)


def test_a_transaction_has_one_revision_and_reads_what_it_has_written(etcd: ModelEtcd) -> None:
    reply = etcd.call(methods.TXN, kv.txn(then=[kv.put(b"a", b"1"), kv.put(b"b"), kv.get(*EVERYTHING)]))
    assert reply.header.revision == etcd.revision == 2
    assert [found.key for found in reply.responses[2].response_range.kvs] == [b"a", b"b"]


def test_inner_transactions_are_decided_by_the_state_before_all_of_it(etcd: ModelEtcd) -> None:
    inner = kv.nested([kv.present(b"a")], [kv.put(b"seen")], [kv.put(b"not seen")])
    etcd.call(methods.TXN, kv.txn(then=[kv.put(b"a"), inner]))
    assert etcd.dump() == {b"a": b"", b"not seen": b""}


def test_a_compare_of_an_interval_holds_for_all_its_keys_and_an_empty_one_counts_as_zeros(etcd: ModelEtcd) -> None:
    def holds(compare: pb.Compare) -> bool:
        return etcd.call(methods.TXN, kv.txn([compare])).succeeded

    younger = kv.all_created_from(3, b"a", b"c")
    assert not holds(younger)
    assert holds(pb.Compare(key=b"a", range_end=b"c", target=pb.Compare.CREATE, result=pb.Compare.EQUAL))
    assert not holds(kv.value_is(b"a", b"")), "no value is not an empty value"
    put(etcd, b"old")
    put(etcd, b"a")
    put(etcd, b"b")
    assert holds(younger)
    assert not holds(kv.all_created_from(4, b"a", b"c"))


def test_a_refused_transaction_leaves_no_trace(etcd: ModelEtcd) -> None:
    for bad in (
        kv.put(b"b", lease=7),
        kv.put(b"a"),
        kv.put(b""),
        kv.Op(),
        kv.Op(request_range=kv.read(b"a", revision=9)),
    ):
        with pytest.raises(EtcdError):
            etcd.call(methods.TXN, kv.txn(then=[kv.put(b"a"), bad]))
    assert etcd.revision == 1
    assert etcd.dump() == {}


def test_only_the_chosen_side_has_to_be_possible(etcd: ModelEtcd) -> None:
    reply = etcd.call(methods.TXN, kv.txn(then=[kv.put(b"a")], otherwise=[kv.put(b"b", lease=7)]))
    assert reply.succeeded


def test_a_lease_takes_its_keys_along_in_one_revision(etcd: ModelEtcd) -> None:
    lease, told = grant(etcd), list[tuple[int, Sequence[pb.Event]]]()
    for key in (b"b", b"a", b"kept", b"gone before"):
        put(etcd, key, lease=lease)
    put(etcd, b"kept")
    delete(etcd, b"gone before")
    etcd.on_events.append(lambda revision, events: told.append((revision, events)))
    etcd.expire(lease)
    assert etcd.dump() == {b"kept": b""}
    assert [(revision, [event.kv.key for event in events]) for revision, events in told] == [(8, [b"a", b"b"])]
    assert lease not in etcd.leases


def test_an_ended_lease_is_not_found(etcd: ModelEtcd) -> None:
    lease = grant(etcd)
    etcd.expire(lease)
    with pytest.raises(LeaseNotFound):
        put(etcd, b"a", lease=lease)
    with pytest.raises(LeaseNotFound):
        etcd.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease))
    with pytest.raises(LeaseNotFound):
        etcd.expire(lease)
    assert etcd.call(methods.LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(ID=lease)).TTL == -1


def test_events_come_in_order_from_a_revision_on(etcd: ModelEtcd) -> None:
    put(etcd, b"a")
    etcd.call(methods.TXN, kv.txn(then=[kv.put(b"b"), kv.put(b"a"), kv.delete(b"none")]))
    delete(etcd, b"a")
    put(etcd, b"c")
    seen = [(event.kv.mod_revision, event.kv.key, kv.is_delete(event)) for event in etcd.events(b"a", b"c", 3)]
    assert seen == [(3, b"b", False), (3, b"a", False), (4, b"a", True)]
    assert etcd.events(*EVERYTHING, etcd.revision + 1) == []


def test_compaction_takes_the_past_and_the_deletions_at_its_own_revision(etcd: ModelEtcd) -> None:
    put(etcd, b"a")
    put(etcd, b"b")
    delete(etcd, b"a")
    etcd.call(methods.COMPACT, pb.CompactionRequest(revision=4))
    with pytest.raises(Compacted):
        etcd.events(*EVERYTHING, 3)
    assert etcd.events(*EVERYTHING, 4) == []
    with pytest.raises(Compacted):
        etcd.call(methods.RANGE, kv.read(b"a", revision=3))
    assert etcd.call(methods.RANGE, kv.read(*EVERYTHING, revision=4)).count == 1
    with pytest.raises(Compacted):
        etcd.call(methods.COMPACT, pb.CompactionRequest(revision=4))


def test_a_stale_member_answers_as_of_its_revision(etcd: ModelEtcd) -> None:
    put(etcd, b"a", b"old")
    put(etcd, b"a", b"new")
    delete(etcd, b"a")
    etcd.call(methods.COMPACT, pb.CompactionRequest(revision=4))
    stale = etcd.stale_view(2)
    reply = stale.call(methods.RANGE, kv.read(b"a", serializable=True))
    assert (reply.header.revision, reply.kvs[0].value) == (2, b"old")
    with pytest.raises(EtcdError, match="future"):
        stale.call(methods.RANGE, kv.read(b"a", serializable=True, revision=3))
    with pytest.raises(ValueError, match="serializable"):
        stale.call(methods.RANGE, kv.read(b"a"))
    with pytest.raises(Compacted):
        etcd.stale_view(4).call(methods.RANGE, kv.read(b"a", serializable=True, revision=3))


def test_without_space_reads_deletions_and_ends_of_leases_go_on(etcd: ModelEtcd) -> None:
    lease = grant(etcd)
    put(etcd, b"a", lease=lease)
    put(etcd, b"b")
    etcd.no_space = True
    with pytest.raises(NoSpace):
        put(etcd, b"c")
    with pytest.raises(NoSpace):
        grant(etcd)
    assert get(etcd, b"a").lease == lease
    delete(etcd, b"b")
    etcd.expire(lease)
    assert etcd.dump() == {}


def test_operations_count_along_the_deepest_chain(etcd: ModelEtcd) -> None:
    half = [kv.get(b"a")] * 64
    etcd.call(methods.TXN, kv.txn(then=[*half[1:], kv.nested(then=half)]))
    etcd.call(methods.TXN, kv.txn(then=[kv.nested(then=half)] * 64))
    with pytest.raises(EtcdError, match="too many operations"):
        etcd.call(methods.TXN, kv.txn(then=[*half, kv.nested(then=half)]))


def test_a_transaction_that_would_end_every_member_is_a_bug_of_ours(etcd: ModelEtcd) -> None:
    put(etcd, b"a")
    keeping = pb.RequestOp(request_put=pb.PutRequest(key=b"a", ignore_value=True))
    with pytest.raises(AssertionError, match="every member"):
        etcd.call(methods.TXN, kv.txn(then=[kv.delete(*EVERYTHING), keeping]))


def test_what_is_returned_is_the_callers_own(etcd: ModelEtcd) -> None:
    put(etcd, b"a", b"x")
    get(etcd, b"a").value = b"changed"
    assert get(etcd, b"a").value == b"x"
