"""Which collections there are in a namespace, how many entries they have, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyward_etcd.collections.places import Places
from skyward_etcd.operate.reading import Reading, Who, settings
from skyward_etcd.ops import kv
from skyward_etcd.ops.effects import Mind, Operation
from skyward_etcd.ops.layout import KINDS, Kind, Layout, decode_name
from skyward_etcd.wire import messages as pb

__all__ = ["Catalog", "Listed", "catalog", "contents", "live_sessions"]

_SAMPLE = 16
"""Entries that are read of each collection: up to so many its size is exact. One value may be 1 MiB."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A collection."""

    kind: Kind
    name: str
    settings: Mapping[str, int]
    entries: int
    """Of a queue its items, claimed ones too; of a lock who holds it and who waits; of a barrier who waits."""
    bytes: int
    """Keys and values."""
    is_exact: bool
    """Else ``bytes`` is reckoned from the first entries."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All collections of a namespace at one moment."""

    namespace: str
    revision: int
    collections: Sequence[Listed]


def catalog(mind: Mind, *, exact: bool = False, stale: bool = False) -> Operation[Catalog]:
    """List the collections of the namespace. One round trip for each, and one for each 10,000.

    ``exact`` reads all that is in them, to say how large it is.
    """
    reading = Reading(mind, stale=stale)
    metas = yield from reading.everything(mind.layout.root + b"meta/")
    listed: list[Listed] = []
    for meta in metas:
        kind, _, name = meta.key.removeprefix(mind.layout.root + b"meta/").decode(errors="replace").partition("/")
        if kind in KINDS:
            listed.append((yield from _measured(reading, kind, decode_name(name), meta, exact=exact)))
    return Catalog(mind.layout.namespace, reading.revision, listed)


def contents(layout: Layout, kind: Kind, name: str) -> tuple[bytes, bytes]:
    """Return the interval of what counts as a collection's entries."""
    prefix = layout.collection(kind, name)
    if kind == "barrier":  # who has arrived, under a generation: the gate is not one of them
        return prefix + b"0", prefix + b":"
    if kind == "queue":
        prefix = Places(prefix, layout).all_items
    return prefix, kv.prefix_end(prefix)


def live_sessions(reading: Reading) -> Operation[Mapping[str, Who]]:
    """Return the processes that are there, by their sessions."""
    prefix = reading.mind.layout.sessions
    found = yield from reading.everything(prefix)
    names = [each.key.removeprefix(prefix).decode(errors="replace") for each in found]
    return {name: Who.read(name, each.value) for name, each in zip(names, found, strict=True)}


def _measured(reading: Reading, kind: Kind, name: str, meta: pb.KeyValue, *, exact: bool) -> Operation[Listed]:
    interval = contents(reading.mind.layout, kind, name)
    request = kv.read(*interval)
    request.limit = _SAMPLE
    reply = yield from reading.range(request)
    entries, size, is_exact = int(reply.count), sum(map(_bytes, reply.kvs)), not reply.more
    if not is_exact and exact:
        size, is_exact = (yield from _size(reading, interval)), True
    elif not is_exact:
        size = size * entries // len(reply.kvs)
    return Listed(kind, name, settings(meta), entries, size, is_exact)


def _size(reading: Reading, interval: tuple[bytes, bytes]) -> Operation[int]:
    size, start, limit = 0, b"", _SAMPLE
    while True:
        kvs, start, limit = yield from reading.page(interval, start, limit)
        size += sum(map(_bytes, kvs))
        if not start:
            return size


def _bytes(found: pb.KeyValue) -> int:
    return len(found.key) + len(found.value)
