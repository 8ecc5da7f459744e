"""Builders for etcd's requests, and its plain data: the words in which algorithms are written.

Fields are set one by one: protobuf's constructors take five times as long, and a call builds a dozen messages. ``into``
builds in the place where the message is needed, which spares a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skyward_etcd.errors import CorruptValue
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.messages import Compare, Event, KeyValue
from skyward_etcd.wire.messages import RangeRequest as Read
from skyward_etcd.wire.messages import RequestOp as Op
from skyward_etcd.wire.messages import ResponseOp as Result
from skyward_etcd.wire.messages import TxnRequest as Txn

__all__ = [
    "Compare",
    "Event",
    "KeyValue",
    "Op",
    "Read",
    "Result",
    "Txn",
    "absent",
    "all_absent",
    "all_created_from",
    "created_at",
    "delete",
    "enough_writes",
    "fewer_writes",
    "get",
    "is_delete",
    "modified_at",
    "nested",
    "number",
    "number_in",
    "on_lease",
    "prefix_end",
    "present",
    "put",
    "put_bytes",
    "read",
    "touch",
    "txn",
    "unmoved_since",
    "value_is",
]


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the interval of all keys that start with ``prefix`` (which ends in ``/`` with us)."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def absent(key: bytes) -> Compare:
    """The key does not exist."""
    return created_at(key, 0)


def all_absent(key: bytes, range_end: bytes) -> Compare:
    """The interval has no keys."""
    compare = created_at(key, 0)
    compare.range_end = range_end
    return compare


def present(key: bytes) -> Compare:
    """The key exists."""
    compare = created_at(key, 0)
    compare.result = Compare.GREATER
    return compare


def created_at(key: bytes, revision: int) -> Compare:
    """The key exists since ``revision``; with 0: it does not exist."""
    compare = Compare()
    compare.target = Compare.CREATE
    compare.key = key
    compare.create_revision = revision
    return compare


def all_created_from(revision: int, key: bytes, range_end: bytes) -> Compare:
    """All keys of the interval exist since ``revision`` or later."""
    compare = created_at(key, revision - 1)
    compare.result = Compare.GREATER
    compare.range_end = range_end
    return compare


def modified_at(key: bytes, revision: int, *, into: Compare | None = None) -> Compare:
    """The key was last written at ``revision``; with 0: it does not exist."""
    compare = Compare() if into is None else into
    compare.target = Compare.MOD
    compare.key = key
    compare.mod_revision = revision
    return compare


def unmoved_since(key: bytes, revision: int) -> Compare:
    """The key was not written after ``revision``, or does not exist."""
    compare = modified_at(key, revision + 1)
    compare.result = Compare.LESS
    return compare


def fewer_writes(key: bytes, times: int) -> Compare:
    """The key was written less than so often since it was created, or does not exist."""
    return Compare(target=Compare.VERSION, result=Compare.LESS, key=key, version=times)


def enough_writes(key: bytes, times: int) -> Compare:
    """The key was written at least so often since it was created."""
    return Compare(target=Compare.VERSION, result=Compare.GREATER, key=key, version=times - 1)


def value_is(key: bytes, value: bytes) -> Compare:
    """The key exists with this value."""
    return Compare(target=Compare.VALUE, result=Compare.EQUAL, key=key, value=value)


def on_lease(key: bytes, lease: int) -> Compare:
    """The key exists on this lease."""
    return Compare(target=Compare.LEASE, result=Compare.EQUAL, key=key, lease=lease)


def put(key: bytes, value: bytes = b"", *, lease: int = 0, into: Op | None = None) -> Op:
    """Write a key, on a lease if one is given."""
    operation = Op() if into is None else into
    request = operation.request_put
    request.key = key
    request.value = value
    request.lease = lease
    return operation


def put_bytes(operation: Op) -> int:
    """Return what a put writes: the bytes of its key and its value."""
    return len(operation.request_put.key) + len(operation.request_put.value)


def touch(key: bytes) -> Op:
    """Write a key as it is, which only its watchers notice. It is an error if it does not exist."""
    return Op(request_put=pb.PutRequest(key=key, ignore_value=True))


def delete(key: bytes, range_end: bytes = b"", *, with_value: bool = False) -> Op:
    """Delete a key or an interval; ``with_value``: and return what was there."""
    return Op(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=with_value))


def get(
    key: bytes,
    range_end: bytes = b"",
    *,
    keys_only: bool = False,
    count_only: bool = False,
    limit: int = 0,
    newest_first: bool = False,
) -> Op:
    """Read a key or an interval. ``newest_first`` sorts by creation."""
    operation = Op()
    request = operation.request_range
    request.key = key
    request.range_end = range_end
    request.keys_only = keys_only
    request.count_only = count_only
    request.limit = limit
    if newest_first:
        request.sort_order = Read.DESCEND
        request.sort_target = Read.CREATE
    return operation


def txn(
    compares: Iterable[Compare] = (),
    then: Iterable[Op] = (),
    otherwise: Iterable[Op] = (),
) -> Txn:
    """If all ``compares`` hold do ``then``, else ``otherwise``."""
    request = Txn()
    request.compare.extend(compares)
    request.success.extend(then)
    request.failure.extend(otherwise)
    return request


def nested(
    compares: Iterable[Compare] = (),
    then: Iterable[Op] = (),
    otherwise: Iterable[Op] = (),
) -> Op:
    """`txn` as an operation inside another transaction."""
    operation = Op()
    inner = operation.request_txn
    inner.compare.extend(compares)
    inner.success.extend(then)
    inner.failure.extend(otherwise)
    return operation


def read(
    key: bytes,
    range_end: bytes = b"",
    *,
    keys_only: bool = False,
    count_only: bool = False,
    revision: int = 0,
    serializable: bool = False,
) -> Read:
    """Ask for a key or an interval, outside a transaction."""
    return Read(
        key=key,
        range_end=range_end,
        keys_only=keys_only,
        count_only=count_only,
        revision=revision,
        serializable=serializable,
    )


def number(kvs: Sequence[KeyValue]) -> int:
    """Return the number that a key was found to hold; 0 if it was not found.

    Raises:
        CorruptValue: it holds no number.
    """
    return number_in(kvs[0]) if kvs else 0


def number_in(found: KeyValue) -> int:
    """Return the number that a key holds.

    Raises:
        CorruptValue: it holds none.
    """
    try:
        return int(found.value)
    except ValueError:
        key = found.key.decode(errors="replace")
        raise CorruptValue(f"{key} is {found.value[:64]!r}: not the number that this library writes there") from None


def is_delete(event: Event) -> bool:
    """Tell whether the key was deleted (or its lease has ended); else it was written."""
    return event.type == Event.DELETE
