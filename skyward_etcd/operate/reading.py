"""Reading what may be large, page by page, as it was at one moment.

Plain ranges only: they are answered when the quota is reached, and never kill an old member, as a transaction that only
reads may (etcd #14110).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skyward_etcd.errors import CorruptValue, NoSuchCollection
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_
from skyward_etcd.ops.effects import Mind, Operation
from skyward_etcd.ops.layout import Kind
from skyward_etcd.wire import messages as pb

__all__ = ["Reading", "Who", "settings_of"]

_FIRST_PAGE = 100
_LARGEST_PAGE = 10_000
_PAGE_BYTES = 4 << 20

Interval = bytes | tuple[bytes, bytes]
"""A prefix, or a key and the end of the interval that it begins."""


class Reading:
    """Reads of one moment: that of the first of them.

    With ``stale`` one member answers from what it has, without asking the majority: when that is lost, it is what is
    left to look at.
    """

    def __init__(self, mind: Mind, *, stale: bool = False, revision: int = 0) -> None:
        self.mind = mind
        self.stale = stale
        self.revision = revision
        """The moment; 0 before the first read."""

    def one(self, key: bytes) -> Operation[pb.KeyValue | None]:
        """Return a key, or ``None``."""
        reply = yield from self.range(pb.RangeRequest(key=key))
        return reply.kvs[0] if reply.kvs else None

    def count(self, under: Interval) -> Operation[int]:
        """Return how many keys there are. etcd counts them, at about 0.2 s a million."""
        reply = yield from self.range(kv.read(*_interval(under), count_only=True))
        return int(reply.count)

    def everything(self, prefix: bytes, *, keys_only: bool = False) -> Operation[list[pb.KeyValue]]:
        """Return all there is under a prefix: for what is as many as there are processes."""
        found: list[pb.KeyValue] = []
        start, limit = b"", _FIRST_PAGE
        while True:
            kvs, start, limit = yield from self.page(prefix, start, limit, keys_only=keys_only)
            found.extend(kvs)
            if not start:
                return found

    def page(
        self, under: Interval, start: bytes = b"", limit: int = _FIRST_PAGE, *, keys_only: bool = False
    ) -> Operation[tuple[Sequence[pb.KeyValue], bytes, int]]:
        """Return some keys, in their order; where to go on (empty at the end), and with how many."""
        first, end = _interval(under)
        request = kv.read(start or first, end, keys_only=keys_only)
        request.limit = limit
        reply = yield from self.range(request)
        size = reply.ByteSize() // max(1, len(reply.kvs))
        fitting = max(1, min(_LARGEST_PAGE, _PAGE_BYTES // max(1, size)))
        return reply.kvs, (reply.kvs[-1].key + b"\0" if reply.more else b""), fitting

    def range(self, request: pb.RangeRequest) -> Operation[pb.RangeResponse]:
        """Read as of the moment."""
        request.revision, request.serializable = self.revision, self.stale
        reply = yield from range_(request, seen=0)
        self.revision = self.revision or reply.header.revision
        return reply


def _interval(under: Interval) -> tuple[bytes, bytes]:
    return (under, kv.prefix_end(under)) if isinstance(under, bytes) else under


def settings_of(reading: Reading, kind: Kind, name: str) -> Operation[dict[str, int]]:
    """Return what the first use of a collection has settled.

    Raises:
        NoSuchCollection: nobody has used the name for this kind.
    """
    key = reading.mind.layout.meta(kind, name)
    found = yield from reading.one(key)
    if found is None:
        where = reading.mind.layout.namespace
        raise NoSuchCollection(f"no {kind} {name!r} in namespace {where!r}: `skyward-etcd ls` shows what there is")
    return settings(found)


def settings(found: pb.KeyValue) -> dict[str, int]:
    """Return what a collection's meta key says besides its kind and format.

    Raises:
        CorruptValue: it is not ours.
    """
    try:
        said: dict[str, Any] = dict(json.loads(found.value))
    except (ValueError, TypeError, RecursionError):
        raise CorruptValue(f"{found.key!r} is {found.value[:64]!r}: not what this library writes there") from None
    return {key: value for key, value in said.items() if key not in ("kind", "format") and isinstance(value, int)}


@dataclass(frozen=True, slots=True)
class Who:
    """A process, as it has said itself."""

    session: str
    node: str = ""
    pid: int = 0
    since: str = ""
    """When it wrote that, by its own clock (UTC)."""

    @classmethod
    def read(cls, session: str, value: bytes) -> Who:
        """Return what a key says of who wrote it; what is not to be understood is left out."""
        try:
            said: Any = json.loads(value)
            since = said.get("since") or said.get("started") or ""
            return cls(session, str(said.get("node", "")), int(said.get("pid", 0)), str(since))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return cls(session)

    def __str__(self) -> str:
        return f"{self.node or '?'}:{self.pid or '?'}"
