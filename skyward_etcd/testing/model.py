"""A model of etcd in plain Python: what it answers, at which revision, and with which events.

It has no clock, no thread and no socket: who uses it decides when a request arrives, when a lease has expired, and how
far a member lags behind. ``tests/integration/test_model_contract.py`` holds it against the real one.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from skyward_etcd.errors import Compacted, EtcdError, LeaseNotFound, NoSpace, ValueTooLarge
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.methods import Method

__all__ = ["Lease", "ModelEtcd", "StaleView"]

Reply = TypeVar("Reply")

_MAX_REQUEST_BYTES = 1_572_864  # etcd's default
_ENVELOPE_BYTES = 18  # what etcd puts around a request before it weighs it
_MAX_TTL_S = 9_000_000_000


@dataclass(slots=True)
class Lease:
    """A lease that has not ended: its TTL in seconds as granted, and the keys that go with it."""

    ttl_s: int
    keys: set[bytes] = field(default_factory=set[bytes])


class ModelEtcd:
    """An etcd of one member that never fails: requests are applied one after another, in the order of the calls.

    ``revision`` lets it start as a cluster whose keys have all been deleted. ``max_txn_ops`` is the flag of this name,
    ``min_ttl_s`` one and a half election timeouts; both are etcd's defaults, and our own members have others. Two
    things are left to the user: what is left of a lease (``LeaseTimeToLive`` tells the TTL that was granted), and to
    which watch an event is delivered.
    """

    def __init__(self, *, revision: int = 1, max_txn_ops: int = 128, min_ttl_s: int = 2) -> None:
        self.revision = revision
        self.max_txn_ops = max_txn_ops
        self.min_ttl_s = min_ttl_s
        self.compacted = 0
        self.no_space = False
        """The NOSPACE alarm: refuses puts and lease grants, as etcd does, until it is taken back.

        While its file is really full, an etcd of 3.5.1 refuses every transaction, also one that only reads or deletes.
        """
        self.leases: dict[int, Lease] = {}
        self.on_events: list[Callable[[int, Sequence[pb.Event]], None]] = []
        """Called with each revision and its events, as soon as it has been applied."""
        self._history = _History()
        self._log: list[list[pb.Event]] = []  # one entry a revision, the first for the one after the start
        self._compactions: list[tuple[int, int]] = []  # at which revision, up to which
        self._lease_ids = itertools.count(7_000_000_000_000_000_000)
        self._answers: Mapping[str, Callable[[Any], Any]] = {
            methods.RANGE.path: self._range,
            methods.PUT.path: self._put,
            methods.DELETE_RANGE.path: self._delete_range,
            methods.TXN.path: self._txn,
            methods.COMPACT.path: self._compact,
            methods.LEASE_GRANT.path: self._lease_grant,
            methods.LEASE_REVOKE.path: self._lease_revoke,
            methods.LEASE_TIME_TO_LIVE.path: self._lease_time_to_live,
        }

    def call(self, method: Method[Any, Reply], request: Any) -> Reply:
        """Apply a request and return the reply. A request that is refused changes nothing.

        Raises:
            EtcdError: as `skyward_etcd.wire.client.Wire.call` does, in etcd's words.
            ValueTooLarge: the request has more than 1.5 MiB.
        """
        return self._answers[method.path](request)  # type: ignore[no-any-return]

    def stale_view(self, revision: int) -> StaleView:
        """Return a member that has applied nothing after ``revision``."""
        known = [compacted for at, compacted in self._compactions if at <= revision]
        return StaleView(self._history, revision, known[-1] if known else 0)

    def expire(self, lease: int) -> None:
        """End a lease: all its keys are deleted in one revision.

        Raises:
            LeaseNotFound: it has ended before.
        """
        ended = self.leases.pop(lease, None)
        if ended is None:
            raise LeaseNotFound("etcdserver: requested lease not found")
        writing = _Writing(self._history, self.leases, self.revision)
        for key in sorted(ended.keys):
            writing.delete_range(pb.DeleteRangeRequest(key=key))
        self._commit(writing)

    def events(self, key: bytes, range_end: bytes, start_revision: int) -> list[pb.Event]:
        """Return what a watch on a key or an interval gets that starts at a revision, up to now.

        A watch may start *at* the compacted revision, and then does not get its deletions: they left with the
        compaction (etcd issues 18089 and 19179; newer releases keep them).

        Raises:
            Compacted: ``start_revision`` is older than the compacted one.
        """
        if start_revision < self.compacted:
            raise Compacted("etcdserver: mvcc: required revision has been compacted")
        first = self.revision - len(self._log) + 1
        events = itertools.chain.from_iterable(self._log[max(start_revision - first, 0) :])
        return [event for event in events if _covers(key, range_end, event.kv.key) and not self._is_compacted(event)]

    def dump(self, prefix: bytes = b"") -> dict[bytes, bytes]:
        """Return all keys that start with ``prefix``, and their values."""
        found = self._history.between(prefix or b"\0", b"\0", self.revision)
        return {kv.key: kv.value for kv in found if kv.key.startswith(prefix)}

    def _is_compacted(self, event: pb.Event) -> bool:
        return event.kv.mod_revision <= self.compacted and self._history.at(event.kv.key, self.compacted) != event.kv

    def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        _check_key(request.key)
        _check_revision(request.revision, self.compacted, self.revision)
        return _answer(request, self._history, self.revision)

    def _put(self, request: pb.PutRequest) -> pb.PutResponse:
        _check_put(request)
        _check_size(request)
        if self.no_space:
            raise NoSpace("etcdserver: mvcc: database space exceeded")
        self._check_lease(request)
        self._check_previous(request)
        writing = self._writing()
        reply = writing.put(request)
        self._commit(writing)
        return reply

    def _delete_range(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        _check_key(request.key)
        _check_size(request)
        writing = self._writing()
        reply = writing.delete_range(request)
        self._commit(writing)
        return reply

    def _txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        _check_txn(request, self.max_txn_ops)
        _check_overlaps(request.success)
        _check_overlaps(request.failure)
        _check_size(request)
        # The alarm looks at both sides, and at this level only: a put in an inner transaction passes.
        if self.no_space and any(op.HasField("request_put") for op in (*request.success, *request.failure)):
            raise NoSpace("etcdserver: mvcc: database space exceeded")
        branch = self._choose(request)
        self._check_branch(branch)
        writing = self._writing()
        reply = writing.txn(branch)
        self._commit(writing)
        reply.header.revision = self.revision
        return reply

    def _compact(self, request: pb.CompactionRequest) -> pb.CompactionResponse:
        if request.revision <= self.compacted:
            raise Compacted("etcdserver: mvcc: required revision has been compacted")
        _check_revision(request.revision, self.compacted, self.revision)
        self.compacted = request.revision
        self._compactions.append((self.revision, self.compacted))
        return pb.CompactionResponse(header=_header(self.revision))

    def _lease_grant(self, request: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
        if self.no_space:
            raise NoSpace("etcdserver: mvcc: database space exceeded")
        if request.TTL > _MAX_TTL_S:
            raise EtcdError("etcdserver: too large lease TTL")
        if request.ID in self.leases:
            raise EtcdError("etcdserver: lease already exists")
        lease = request.ID or next(self._lease_ids)
        self.leases[lease] = Lease(max(request.TTL, self.min_ttl_s))
        return pb.LeaseGrantResponse(header=_header(self.revision), ID=lease, TTL=self.leases[lease].ttl_s)

    def _lease_revoke(self, request: pb.LeaseRevokeRequest) -> pb.LeaseRevokeResponse:
        self.expire(request.ID)
        return pb.LeaseRevokeResponse(header=_header(self.revision))

    def _lease_time_to_live(self, request: pb.LeaseTimeToLiveRequest) -> pb.LeaseTimeToLiveResponse:
        header = _header(self.revision)
        lease = self.leases.get(request.ID)
        if lease is None:
            return pb.LeaseTimeToLiveResponse(header=header, ID=request.ID, TTL=-1)
        keys = sorted(lease.keys) if request.keys else ()
        return pb.LeaseTimeToLiveResponse(
            header=header, ID=request.ID, TTL=lease.ttl_s, grantedTTL=lease.ttl_s, keys=keys
        )

    def _choose(self, request: pb.TxnRequest) -> _Branch:
        """Decide all levels by the state before the transaction, as etcd does."""
        succeeded = all(_holds(compare, self._history, self.revision) for compare in request.compare)
        ops = request.success if succeeded else request.failure
        steps = (self._choose(op.request_txn) if op.HasField("request_txn") else op for op in ops)
        return _Branch(succeeded, tuple(steps))

    def _check_branch(self, branch: _Branch) -> None:
        """Refuse before anything is done what could not be done; only in the branch that was chosen."""
        ops = list(branch.flat())
        for op in ops:
            if op.HasField("request_put"):
                self._check_previous(op.request_put)
                self._check_lease(op.request_put)
        for op in ops:
            if op.HasField("request_range"):
                _check_revision(op.request_range.revision, self.compacted, self.revision)

    def _check_lease(self, request: pb.PutRequest) -> None:
        if request.lease and request.lease not in self.leases:
            raise LeaseNotFound("etcdserver: requested lease not found")

    def _check_previous(self, request: pb.PutRequest) -> None:
        if (request.ignore_value or request.ignore_lease) and not self._history.at(request.key, self.revision):
            raise EtcdError("etcdserver: key not found")

    def _writing(self) -> _Writing:
        return _Writing(self._history, self.leases, self.revision)

    def _commit(self, writing: _Writing) -> None:
        self.revision = writing.revision
        if writing.events:
            self._log.append(writing.events)
            for tell in self.on_events:
                tell(self.revision, writing.events)


@dataclass(frozen=True, slots=True)
class StaleView:
    """A member that lags behind: it answers serializable ranges from what it has applied, up to ``revision``."""

    _history: _History
    revision: int
    compacted: int

    def call(self, method: Method[Any, Reply], request: Any) -> Reply:
        """Answer a serializable range.

        Raises:
            ValueError: the request is another, which this member could answer only after it has caught up.
            EtcdError: as by `ModelEtcd.call`.
        """
        if method.path != methods.RANGE.path or not request.serializable:
            raise ValueError(f"{method.path} needs the other members: a stale one answers serializable ranges only")
        _check_key(request.key)
        _check_revision(request.revision, self.compacted, self.revision)
        return _answer(request, self._history, self.revision)  # type: ignore[return-value]


class _History:
    """Every version that every key has had. One with version 0 is a deletion.

    Compaction forgets nothing here: a stale member still has what the others have compacted.
    """

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._versions: dict[bytes, list[pb.KeyValue]] = {}

    def at(self, key: bytes, revision: int) -> pb.KeyValue | None:
        """Return the key as it was at a revision, if it existed."""
        versions = self._versions.get(key)
        if not versions:
            return None
        index = len(versions)
        if versions[-1].mod_revision > revision:
            index = bisect.bisect_right(versions, revision, key=lambda kv: kv.mod_revision)
        return versions[index - 1] if index and versions[index - 1].version else None

    def between(self, key: bytes, range_end: bytes, revision: int) -> list[pb.KeyValue]:
        """Return the keys of an interval as they were at a revision, in order."""
        if not range_end:
            keys = [key]
        else:
            start = bisect.bisect_left(self._keys, key)
            end = len(self._keys) if range_end == b"\0" else bisect.bisect_left(self._keys, range_end)
            keys = self._keys[start:end]
        return [kv for kv in (self.at(key, revision) for key in keys) if kv is not None]

    def add(self, version: pb.KeyValue) -> None:
        """Write the newest version of a key."""
        versions = self._versions.get(version.key)
        if versions is None:
            versions = self._versions[version.key] = []
            bisect.insort(self._keys, version.key)
        versions.append(version)


@dataclass(frozen=True, slots=True)
class _Branch:
    """The side of a transaction that its compares have chosen, and so for the transactions inside it."""

    succeeded: bool
    steps: tuple[pb.RequestOp | _Branch, ...]

    def flat(self) -> Iterator[pb.RequestOp]:
        for step in self.steps:
            if isinstance(step, _Branch):
                yield from step.flat()
            else:
                yield step


class _Writing:
    """One request on its way into the history: all that it writes has one revision, and sees itself."""

    def __init__(self, history: _History, leases: Mapping[int, Lease], revision: int) -> None:
        self._history = history
        self._leases = leases
        self._next = revision + 1
        self.events: list[pb.Event] = []

    @property
    def revision(self) -> int:
        """The revision so far: the next one, as soon as anything was written."""
        return self._next if self.events else self._next - 1

    def txn(self, branch: _Branch) -> pb.TxnResponse:
        """Do the steps of a branch. The header is empty, and stays so for an inner transaction."""
        responses = [self._step(step) for step in branch.steps]
        return pb.TxnResponse(header=pb.ResponseHeader(), succeeded=branch.succeeded, responses=responses)

    def _step(self, step: pb.RequestOp | _Branch) -> pb.ResponseOp:
        if isinstance(step, _Branch):
            return pb.ResponseOp(response_txn=self.txn(step))
        if step.HasField("request_put"):
            return pb.ResponseOp(response_put=self.put(step.request_put))
        if step.HasField("request_range"):
            return pb.ResponseOp(response_range=_answer(step.request_range, self._history, self.revision))
        return pb.ResponseOp(response_delete_range=self.delete_range(step.request_delete_range))

    def put(self, request: pb.PutRequest) -> pb.PutResponse:
        """Write a key, and move it from its lease to that of the request."""
        before = self._history.at(request.key, self.revision)
        if before is None and (request.ignore_value or request.ignore_lease):
            raise AssertionError(
                f"this transaction ends every member of the cluster: it keeps {request.key!r} as deleted"
            )
        written = pb.KeyValue(
            key=request.key,
            value=before.value if before and request.ignore_value else request.value,
            create_revision=before.create_revision if before else self._next,
            mod_revision=self._next,
            version=before.version + 1 if before else 1,
            lease=before.lease if before and request.ignore_lease else request.lease,
        )
        self._detach(before)
        if written.lease:
            self._leases[written.lease].keys.add(written.key)
        self._history.add(written)
        self.events.append(pb.Event(type=pb.Event.PUT, kv=written))
        return pb.PutResponse(header=_header(self._next), prev_kv=before if request.prev_kv else None)

    def delete_range(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        """Delete a key or an interval."""
        found = self._history.between(request.key, request.range_end, self.revision)
        for before in found:
            gone = pb.KeyValue(key=before.key, mod_revision=self._next)
            self._detach(before)
            self._history.add(gone)
            self.events.append(pb.Event(type=pb.Event.DELETE, kv=gone))
        prev_kvs = found if request.prev_kv else ()
        return pb.DeleteRangeResponse(header=_header(self.revision), deleted=len(found), prev_kvs=prev_kvs)

    def _detach(self, before: pb.KeyValue | None) -> None:
        if before and before.lease in self._leases:  # it is not, while its own end deletes its keys
            self._leases[before.lease].keys.discard(before.key)


def _header(revision: int) -> pb.ResponseHeader:
    return pb.ResponseHeader(revision=revision)


# ---- reading


def _answer(request: pb.RangeRequest, history: _History, now: int) -> pb.RangeResponse:
    found = history.between(request.key, request.range_end, request.revision if request.revision > 0 else now)
    if request.count_only:
        return pb.RangeResponse(header=_header(now), count=len(found))
    kvs = _sorted(request, _filtered(request, found))
    more = 0 < request.limit < len(kvs)
    reply = pb.RangeResponse(
        header=_header(now), count=len(found), kvs=kvs[: request.limit] if more else kvs, more=more
    )
    if request.keys_only:
        for kv in reply.kvs:
            kv.ClearField("value")
    return reply


def _is_filtered(request: pb.RangeRequest) -> bool:
    return any(
        (
            request.min_create_revision,
            request.max_create_revision,
            request.min_mod_revision,
            request.max_mod_revision,
        )
    )


def _filtered(request: pb.RangeRequest, found: list[pb.KeyValue]) -> list[pb.KeyValue]:
    if not _is_filtered(request):
        return found
    return [
        kv
        for kv in found
        if request.min_create_revision <= kv.create_revision <= (request.max_create_revision or kv.create_revision)
        and request.min_mod_revision <= kv.mod_revision <= (request.max_mod_revision or kv.mod_revision)
    ]


_SORT_KEYS: Mapping[int, Callable[[pb.KeyValue], Any]] = {
    pb.RangeRequest.KEY: lambda kv: kv.key,
    pb.RangeRequest.VERSION: lambda kv: kv.version,
    pb.RangeRequest.CREATE: lambda kv: kv.create_revision,
    pb.RangeRequest.MOD: lambda kv: kv.mod_revision,
    pb.RangeRequest.VALUE: lambda kv: kv.value,
}


def _sorted(request: pb.RangeRequest, kvs: list[pb.KeyValue]) -> list[pb.KeyValue]:
    """Sort as etcd does, whose sort is stable for up to six entries only; ours always is."""
    if request.sort_order == pb.RangeRequest.NONE:
        if request.sort_target == pb.RangeRequest.KEY:
            return kvs
        if request.limit > 0 and not _is_filtered(request):
            kvs = kvs[: request.limit + 1]  # without an order, etcd sorts only the first that it finds
    return sorted(kvs, key=_SORT_KEYS[request.sort_target], reverse=request.sort_order == pb.RangeRequest.DESCEND)


def _holds(compare: pb.Compare, history: _History, now: int) -> bool:
    """Tell whether a compare is true of all keys of its interval, or if there are none, of a key with only zeros."""
    found = history.between(compare.key, compare.range_end, now)
    if not found:
        return compare.target != pb.Compare.VALUE and _compares(compare, pb.KeyValue())
    return all(_compares(compare, kv) for kv in found)


_COMPARED: Mapping[int, Callable[[Any], Any]] = {
    pb.Compare.VERSION: lambda this: this.version,
    pb.Compare.CREATE: lambda this: this.create_revision,
    pb.Compare.MOD: lambda this: this.mod_revision,
    pb.Compare.VALUE: lambda this: this.value,
    pb.Compare.LEASE: lambda this: this.lease,
}


def _compares(compare: pb.Compare, kv: pb.KeyValue) -> bool:
    of = _COMPARED[compare.target]
    is_, asked = of(kv), of(compare)
    if compare.result == pb.Compare.EQUAL:
        return bool(is_ == asked)
    if compare.result == pb.Compare.NOT_EQUAL:
        return bool(is_ != asked)
    return bool(is_ > asked if compare.result == pb.Compare.GREATER else is_ < asked)


def _covers(begin: bytes, end: bytes, key: bytes) -> bool:
    """Tell whether a key is in an interval; without an end it is one key; a zero byte is the end of all keys."""
    return key == begin if not end else begin <= key and (end == b"\0" or key < end)


# ---- refusing


def _check_key(key: bytes) -> None:
    if not key:
        raise EtcdError("etcdserver: key is not provided")


def _check_put(request: pb.PutRequest) -> None:
    _check_key(request.key)
    if request.ignore_value and request.value:
        raise EtcdError("etcdserver: value is provided")
    if request.ignore_lease and request.lease:
        raise EtcdError("etcdserver: lease is provided")


def _check_revision(revision: int, compacted: int, now: int) -> None:
    if revision > now:
        raise EtcdError("etcdserver: mvcc: required revision is a future revision")
    if 0 < revision < compacted:
        raise Compacted("etcdserver: mvcc: required revision has been compacted")


def _check_size(request: pb.PutRequest | pb.DeleteRangeRequest | pb.TxnRequest) -> None:
    if request.ByteSize() + _ENVELOPE_BYTES > _MAX_REQUEST_BYTES:
        raise ValueTooLarge("etcdserver: request is too large")


def _check_txn(request: pb.TxnRequest, room: int) -> None:
    """Check each operation. What counts at a level is the longest of its three lists; siblings do not add up."""
    longest = max(len(request.compare), len(request.success), len(request.failure))
    if longest > room:
        raise EtcdError("etcdserver: too many operations in txn request")
    for compare in request.compare:
        _check_key(compare.key)
    for op in itertools.chain(request.success, request.failure):
        _check_op(op, room - longest)


def _check_op(op: pb.RequestOp, room: int) -> None:
    match op.WhichOneof("request"):
        case "request_range":
            _check_key(op.request_range.key)
        case "request_put":
            _check_put(op.request_put)
        case "request_delete_range":
            _check_key(op.request_delete_range.key)
        case "request_txn":
            _check_txn(op.request_txn, room)
        case _:
            raise EtcdError("etcdserver: key not found")


def _check_overlaps(ops: Iterable[pb.RequestOp]) -> tuple[set[bytes], list[pb.DeleteRangeRequest]]:
    """Refuse two writes to one key, in etcd's order of looking; return what is put and what is deleted.

    That order has gaps: a put in one inner transaction may come before its deletion in a later one, and a deletion of
    all keys from one on (whose end is a zero byte) is taken for empty.
    """
    ops = list(ops)
    deletes = [op.request_delete_range for op in ops if op.HasField("request_delete_range")]
    puts: set[bytes] = set()
    for op in ops:
        if op.HasField("request_txn"):
            then_puts, then_deletes = _check_overlaps(op.request_txn.success)
            else_puts, else_deletes = _check_overlaps(op.request_txn.failure)
            _check_duplicates(then_puts | else_puts, puts, deletes)
            puts |= then_puts | else_puts
            deletes += then_deletes + else_deletes
    for op in ops:
        if op.HasField("request_put"):
            _check_duplicates({op.request_put.key}, puts, deletes)
            puts.add(op.request_put.key)
    return puts, deletes


def _check_duplicates(keys: set[bytes], puts: set[bytes], deletes: Sequence[pb.DeleteRangeRequest]) -> None:
    for key in keys:
        deleted = any(gone.range_end != b"\0" and _covers(gone.key, gone.range_end, key) for gone in deletes)
        if deleted or key in puts:
            raise EtcdError("etcdserver: duplicate key given in txn request")
