"""The model of etcd that the simulator uses answers as the real one does: same random programs, same replies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import pytest

from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.errors import Compacted, EtcdError, NoSpace, SkywardEtcdError, ValueTooLarge
from skyward_etcd.testing.model import ModelEtcd
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.methods import Method
from tests.integration.conftest import BINARIES, usable

PROGRAMS = 50
STEPS = 50

OPS = 4096
"""What our own members are given for --max-txn-ops."""

# Six, because etcd's sort is stable up to there: entries with equal values then keep the order of their keys.
KEYS = [b"\0", b"a", b"a/1", b"b", b"b\0", b"\xff"]
ENDS = [b"", b"", b"", b"\0", b"a/", b"a0", b"b\0", b"c", b"\xff\xff"]
VALUES = [b"", b"x", b"y", b"z" * 40]
LEASES = [101, 102, 103]


@pytest.fixture(scope="module", params=list(BINARIES))
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    """A cluster of this module's own, because its programs delete all keys."""
    with LocalCluster(1, etcd=usable(request.param)) as cluster:
        wire = Wire(cluster.endpoints)
        yield wire
        wire.close()


def test_random_programs_get_the_same_replies_and_events(wire: Wire) -> None:
    for seed in range(PROGRAMS):
        with Both(wire, f"seed {seed}") as both:
            program = Program(random.Random(seed), both)
            for lease in LEASES[1:]:  # without leases from the start, few end with several keys
                both.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=lease, TTL=600))
            for _ in range(STEPS):
                program.step()


def test_a_watch_on_the_past_gets_what_the_compaction_left(wire: Wire) -> None:
    with Both(wire, "compaction") as both:
        for value in VALUES:
            both.call(methods.PUT, pb.PutRequest(key=b"a", value=value))
            both.call(methods.PUT, pb.PutRequest(key=b"b", value=value))
        both.call(methods.TXN, pb.TxnRequest(success=[put(b"c"), delete(b"a")]))
        compacted = both.model.revision
        both.call(methods.PUT, pb.PutRequest(key=b"a"))
        both.call(methods.COMPACT, pb.CompactionRequest(revision=compacted, physical=True))
        both.call(methods.DELETE_RANGE, pb.DeleteRangeRequest(key=b"b"))
        for start in (compacted + 2, compacted + 1):
            assert both.past(start) == both.model.events(b"\0", b"\0", start), f"from {start - compacted:+}"
        from_it = both.past(compacted)
        gone = pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"a", mod_revision=compacted))
        assert [event for event in from_it if event != gone] == both.model.events(b"\0", b"\0", compacted)
        with pytest.raises(Compacted):
            both.past(compacted - 1)
        with pytest.raises(Compacted):
            both.model.events(b"\0", b"\0", compacted - 1)


def test_operations_are_counted_alike(wire: Wire) -> None:
    def chain(lengths: Sequence[int]) -> pb.TxnRequest:
        *ops, inner = [get(b"a")] * lengths[0]
        return pb.TxnRequest(success=[*ops, nested(chain(lengths[1:])) if lengths[1:] else inner])

    top, half = OPS, OPS // 2
    with Both(wire, "counting") as both:
        for lengths in ([top], [top + 1], [half, half], [half, half + 1], [1, top - 1], [1, top], [half, half - 1, 1]):
            both.call(methods.TXN, chain(lengths))
        absent = pb.Compare(key=b"a", target=pb.Compare.VERSION)
        for compares in (top - 1, top, top + 1):
            both.call(methods.TXN, pb.TxnRequest(compare=[absent] * compares, success=[get(b"a")]))
            inner = pb.TxnRequest(compare=[absent] * (compares - 2), failure=[put(b"a")])
            both.call(methods.TXN, pb.TxnRequest(success=[nested(inner)] * 2))


def test_size_is_weighed_alike(wire: Wire) -> None:
    limit, envelope = 1_572_864, 18  # 16 to 18 bytes, by the number that etcd gives a request
    with Both(wire, "size") as both:
        for size in (1_048_576, limit - envelope, limit, 2_000_000):
            request = pb.PutRequest(key=b"a", value=b"v" * (size - 7))
            assert request.ByteSize() == size
            result = both.call(methods.PUT, request)
            assert isinstance(result, ValueTooLarge) == (size > limit - envelope)


def test_ttls_are_bounded_alike(wire: Wire) -> None:
    with Both(wire, "ttl") as both:
        for ttl in (-1, 0, 1, 2, 3, 9_000_000_000, 9_000_000_001):
            both.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=101, TTL=ttl))
            both.real.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=101)) if 101 in both.model.leases else None
            both.model.leases.pop(101, None)


def test_the_alarm_for_space_refuses_alike(wire: Wire) -> None:
    alarm = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, alarm=pb.AlarmType.NOSPACE)
    with Both(wire, "space") as both:
        both.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=101, TTL=60))
        both.call(methods.PUT, pb.PutRequest(key=b"a", value=b"x", lease=101))
        both.call(methods.PUT, pb.PutRequest(key=b"b", value=b"x"))
        alarm.memberID = both.real.call(methods.STATUS, pb.StatusRequest()).header.member_id
        both.real.call(methods.ALARM, alarm)
        both.model.no_space = True
        try:
            refused = [
                both.call(methods.PUT, pb.PutRequest(key=b"c")),
                both.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=102, TTL=60)),
                both.call(methods.TXN, pb.TxnRequest(failure=[put(b"c")])),
            ]
            passed = [
                both.call(methods.TXN, pb.TxnRequest(success=[delete(b"b"), get(b"a")])),
                both.call(methods.TXN, pb.TxnRequest(success=[nested(pb.TxnRequest(success=[put(b"d")]))])),
                both.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=101)),
                both.call(methods.RANGE, pb.RangeRequest(key=b"\0", range_end=b"\0")),
            ]
        finally:
            alarm.action = pb.AlarmRequest.DEACTIVATE
            both.real.call(methods.ALARM, alarm)
            both.model.no_space = False
        assert all(isinstance(result, NoSpace) for result in refused)
        assert not any(isinstance(result, SkywardEtcdError) for result in passed)


class Program:
    """Random requests, good and bad ones, over few keys."""

    def __init__(self, rng: random.Random, both: Both) -> None:
        self.rng = rng
        self.both = both
        self.first = both.model.revision
        # A transaction that deletes all keys from one on, and then puts such a key with its old value or lease, passes
        # etcd's checks and ends every member. So a program does the one or the other.
        self.ignores = rng.random() < 0.5
        self.steps: list[tuple[int, Callable[[], object]]] = [
            (20, lambda: both.call(methods.PUT, self.put())),
            (8, lambda: both.call(methods.DELETE_RANGE, self.delete_range())),
            (30, lambda: both.call(methods.RANGE, self.range())),
            (30, lambda: both.call(methods.TXN, self.txn(2))),
            (3, lambda: both.call(methods.COMPACT, pb.CompactionRequest(revision=self.revision()))),
            (6, lambda: both.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(ID=self.lease(), TTL=600))),
            (4, lambda: both.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=self.lease()))),
            (4, lambda: both.call(methods.LEASE_TIME_TO_LIVE, self.time_to_live())),
        ]

    def step(self) -> None:
        """Make one call."""
        self.rng.choices([step for _, step in self.steps], [weight for weight, _ in self.steps])[0]()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def key(self) -> bytes:
        return b"" if self.chance(0.005) else self.rng.choice(KEYS)

    def lease(self) -> int:
        return self.rng.choice(LEASES)

    def revision(self) -> int:
        return self.rng.randint(max(self.first, self.both.model.compacted - 1), self.both.model.revision + 1)

    def put(self) -> pb.PutRequest:
        ignore_value, ignore_lease = self.ignores and self.chance(0.2), self.ignores and self.chance(0.2)
        return pb.PutRequest(
            key=self.key(),
            value=b"" if ignore_value and self.chance(0.9) else self.rng.choice(VALUES),
            lease=self.lease() if self.chance(0.05 if ignore_lease else 0.3) else 0,
            prev_kv=self.chance(0.3),
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )

    def delete_range(self) -> pb.DeleteRangeRequest:
        ends = [end for end in ENDS if end != b"\0" or not self.ignores]
        return pb.DeleteRangeRequest(key=self.key(), range_end=self.rng.choice(ends), prev_kv=self.chance(0.5))

    def range(self) -> pb.RangeRequest:
        request = pb.RangeRequest(
            key=self.key(),
            range_end=b"\0" if self.chance(0.4) else self.rng.choice(ENDS),
            limit=self.rng.choice([0, 0, 0, 1, 2, 3]),
            revision=self.revision() if self.chance(0.2) else 0,
            sort_order=self.rng.choice(pb.RangeRequest.SortOrder.keys()),
            sort_target=self.rng.choice(pb.RangeRequest.SortTarget.keys()),
            serializable=self.chance(0.2),
            keys_only=self.chance(0.2),
            count_only=self.chance(0.1),
        )
        for bound in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self.chance(0.07):
                setattr(request, bound, self.revision())
        return request

    def txn(self, depth: int) -> pb.TxnRequest:
        return pb.TxnRequest(
            compare=[self.compare() for _ in range(self.rng.choice([0, 1, 1, 2]))],
            success=self.ops(depth),
            failure=self.ops(depth),
        )

    def ops(self, depth: int) -> list[pb.RequestOp]:
        return [self.op(depth) for _ in range(self.rng.choice([0, 1, 2, 2, 3]))]

    def op(self, depth: int) -> pb.RequestOp:
        chosen = self.rng.random()
        if chosen < 0.01:
            return pb.RequestOp()
        if chosen < 0.35:
            return pb.RequestOp(request_put=self.put())
        if chosen < 0.5:
            return pb.RequestOp(request_delete_range=self.delete_range())
        if chosen < 0.75 or not depth:
            return pb.RequestOp(request_range=self.range())
        return pb.RequestOp(request_txn=self.txn(depth - 1))

    def compare(self) -> pb.Compare:
        compare = pb.Compare(
            result=self.rng.choice(pb.Compare.CompareResult.keys()),
            target=self.rng.choice(pb.Compare.CompareTarget.keys()),
            key=self.key(),
            range_end=self.rng.choice(ENDS),
        )
        # Mostly the field of the target; with none or another, etcd takes it for zero.
        target = compare.target if self.chance(0.95) else self.rng.choice(pb.Compare.CompareTarget.values())
        match target:
            case pb.Compare.VERSION:
                compare.version = self.rng.choice([0, 1, 2])
            case pb.Compare.CREATE:
                compare.create_revision = self.rng.choice([0, self.revision()])
            case pb.Compare.MOD:
                compare.mod_revision = self.rng.choice([0, self.revision()])
            case pb.Compare.VALUE:
                compare.value = self.rng.choice(VALUES)
            case _:
                compare.lease = self.rng.choice([0, self.lease()])
        return compare

    def time_to_live(self) -> pb.LeaseTimeToLiveRequest:
        return pb.LeaseTimeToLiveRequest(ID=self.lease(), keys=self.chance(0.7))


def put(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key))


def get(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def delete(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def nested(request: pb.TxnRequest) -> pb.RequestOp:
    return pb.RequestOp(request_txn=request)


class Both:
    """A real etcd and a model that start with no key at the same revision; each call goes to both and must agree.

    At the end, so must the events of a watch on all keys that was live from the start.
    """

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire = wire
        self.real = Real(wire)
        self.name = name
        self.done: list[str] = []
        self.told: list[pb.Event] = []

    def __enter__(self) -> Self:
        for lease in LEASES:
            outcome(self.real, methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease))
        everything = pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        start = self.real.call(methods.DELETE_RANGE, everything).header.revision
        self.model = ModelEtcd(revision=start, max_txn_ops=OPS, min_ttl_s=1)
        self.model.on_events.append(lambda _, events: self.told.extend(events))
        self.watch = Watch(self.wire, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.call(methods.PUT, pb.PutRequest(key=b"the end"))
                assert self.watch.until(self.model.revision) == self.told, self.name
        finally:
            self.watch.close()

    def call(self, method: Method[Any, Any], request: Any) -> Any:
        """Make a call at both, and return the real reply or error."""
        self.done.append(f"{method.path} {{ {request} }}".replace("\n", " ")[:1000])
        real, ours = outcome(self.real, method, request), outcome(self.model, method, request)
        if not agree(real, ours):
            steps = "\n".join(self.done)
            pytest.fail(f"{self.name}\n{steps}\n\netcd: {real!r}\n\nmodel: {ours!r}")
        return real

    def past(self, start: int) -> list[pb.Event]:
        """Return the real events since a revision."""
        watch = Watch(self.wire, start)
        try:
            return watch.until(self.model.revision)
        finally:
            watch.close()


class Real:
    """A wire with a time limit."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def call(self, method: Method[Any, Any], request: Any) -> Any:
        return self.wire.call(method, request, timeout_s=5.0)


def outcome(etcd: Real | ModelEtcd, method: Method[Any, Any], request: Any) -> Any:
    """Return the reply, or the error."""
    try:
        return etcd.call(method, request)
    except SkywardEtcdError as error:
        return error


def agree(real: Any, ours: Any) -> bool:
    """Tell whether two outcomes are the same: not who answered, and what is left of a lease only if anything is."""
    if isinstance(real, EtcdError | ValueTooLarge):
        return type(real) is type(ours) and str(ours) in str(real)
    if type(real) is not type(ours):
        return False
    for reply in (real, ours):
        reply.header.CopyFrom(pb.ResponseHeader(revision=reply.header.revision))
        if isinstance(reply, pb.LeaseTimeToLiveResponse):
            reply.TTL = min(reply.TTL, 0)
            reply.keys[:] = sorted(reply.keys)
    return bool(real == ours)


class Watch:
    """A watch on all keys of the real etcd, live when this returns."""

    def __init__(self, wire: Wire, start: int) -> None:
        wanted = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=start)
        self._stream = wire.stream(methods.WATCH)
        self._stream.send(pb.WatchRequest(create_request=wanted))
        self._responses = iter(self._stream)
        assert next(self._responses).created

    def until(self, revision: int) -> list[pb.Event]:
        """Return the events up to the one of ``revision``."""
        events: list[pb.Event] = []
        while not events or events[-1].kv.mod_revision < revision:
            response = next(self._responses)
            if response.compact_revision:
                raise Compacted(f"compacted up to {response.compact_revision}")
            events += response.events
        return events

    def close(self) -> None:
        self._stream.cancel()
        self._responses.close()
