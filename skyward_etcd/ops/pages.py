"""Reading an interval of any length as it was at one moment."""

from __future__ import annotations

from skyward_etcd.errors import Compacted
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_
from skyward_etcd.ops.effects import Operation
from skyward_etcd.wire import messages as pb

__all__ = ["read_all"]

_FIRST_PAGE = 100
_LARGEST_PAGE = 10_000
_PAGE_BYTES = 4 << 20


def read_all(prefix: bytes, *, serializable: bool, seen: int, keys_only: bool = False) -> Operation[list[pb.KeyValue]]:
    """Return everything under a prefix, sorted by key, as it was at the revision of the first page.

    One round trip for the first 100 entries, then one for each 10,000 or 4 MiB; of keys alone, one for each 10,000.
    If etcd compacts that revision away meanwhile, it begins again.
    """
    while True:
        request = pb.RangeRequest(
            key=prefix,
            range_end=kv.prefix_end(prefix),
            limit=_LARGEST_PAGE if keys_only else _FIRST_PAGE,
            keys_only=keys_only,
            serializable=serializable,
        )
        try:
            return (yield from _read_pages(request, seen))
        except Compacted:
            continue


def _read_pages(request: pb.RangeRequest, seen: int) -> Operation[list[pb.KeyValue]]:
    kvs: list[pb.KeyValue] = []
    while True:
        reply = yield from range_(request, seen=seen)
        kvs.extend(reply.kvs)
        if not reply.more:
            return kvs
        request.key = kvs[-1].key + b"\0"
        request.limit = max(1, min(_LARGEST_PAGE, _PAGE_BYTES * len(reply.kvs) // max(1, reply.ByteSize())))
        if not request.revision:
            # From here on at one revision, linearizably: another member may not have come so far.
            request.revision, request.serializable = reply.header.revision, False
