"""Builders for etcd's requests: the words in which algorithms are written."""

from __future__ import annotations

from collections.abc import Iterable

from skyward_etcd.wire import messages as pb

__all__ = [
    "absent",
    "created_at",
    "delete",
    "get",
    "modified_at",
    "nested",
    "prefix_end",
    "present",
    "put",
    "txn",
    "value_is",
]


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the interval of all keys that start with ``prefix`` (which ends in ``/`` with us)."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def absent(key: bytes) -> pb.Compare:
    """The key does not exist."""
    return pb.Compare(target=pb.Compare.CREATE, result=pb.Compare.EQUAL, key=key, create_revision=0)


def present(key: bytes) -> pb.Compare:
    """The key exists."""
    return pb.Compare(target=pb.Compare.CREATE, result=pb.Compare.GREATER, key=key, create_revision=0)


def created_at(key: bytes, revision: int) -> pb.Compare:
    """The key exists since ``revision``; with 0: it does not exist."""
    return pb.Compare(target=pb.Compare.CREATE, result=pb.Compare.EQUAL, key=key, create_revision=revision)


def modified_at(key: bytes, revision: int) -> pb.Compare:
    """The key was last written at ``revision``; with 0: it does not exist."""
    return pb.Compare(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=key, mod_revision=revision)


def value_is(key: bytes, value: bytes) -> pb.Compare:
    """The key exists with this value."""
    return pb.Compare(target=pb.Compare.VALUE, result=pb.Compare.EQUAL, key=key, value=value)


def put(key: bytes, value: bytes = b"", *, lease: int = 0) -> pb.RequestOp:
    """Write a key, on a lease if one is given."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes, range_end: bytes = b"", *, with_value: bool = False) -> pb.RequestOp:
    """Delete a key or an interval; ``with_value``: and return what was there."""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=with_value))


def get(
    key: bytes,
    range_end: bytes = b"",
    *,
    keys_only: bool = False,
    count_only: bool = False,
    limit: int = 0,
    newest_first: bool = False,
    created_before: int = 0,
) -> pb.RequestOp:
    """Read a key or an interval. ``newest_first`` sorts by creation; ``created_before`` leaves out what is younger."""
    request = pb.RangeRequest(key=key, range_end=range_end, keys_only=keys_only, count_only=count_only, limit=limit)
    if created_before:
        request.max_create_revision = created_before - 1
    if newest_first:
        request.sort_order = pb.RangeRequest.DESCEND
        request.sort_target = pb.RangeRequest.CREATE
    return pb.RequestOp(request_range=request)


def txn(
    compares: Iterable[pb.Compare] = (),
    then: Iterable[pb.RequestOp] = (),
    otherwise: Iterable[pb.RequestOp] = (),
) -> pb.TxnRequest:
    """If all ``compares`` hold do ``then``, else ``otherwise``."""
    return pb.TxnRequest(compare=compares, success=then, failure=otherwise)


def nested(
    compares: Iterable[pb.Compare] = (),
    then: Iterable[pb.RequestOp] = (),
    otherwise: Iterable[pb.RequestOp] = (),
) -> pb.RequestOp:
    """`txn` as an operation inside another transaction."""
    return pb.RequestOp(request_txn=pb.TxnRequest(compare=compares, success=then, failure=otherwise))
