"""Reading an interval of any length as it was at one moment."""

from __future__ import annotations

from skyward_etcd.errors import Compacted
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_
from skyward_etcd.ops.effects import Operation
from skyward_etcd.wire import messages as pb

__all__ = ["read_all"]

_PAGE = 10_000


def read_all(prefix: bytes, *, serializable: bool, seen: int, keys_only: bool = False) -> Operation[list[pb.KeyValue]]:
    """Return everything under a prefix, sorted by key, as it was at the revision of the first page.

    One round trip for each 10,000 keys. If etcd compacts that revision away meanwhile, it begins again.
    """
    while True:
        request = pb.RangeRequest(
            key=prefix, range_end=kv.prefix_end(prefix), limit=_PAGE, keys_only=keys_only, serializable=serializable
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
        request.revision = request.revision or reply.header.revision
        seen = 0  # a past revision is the same at every member
