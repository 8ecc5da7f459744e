"""What is in one collection: its entries, who holds it, who waits for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from skyward_etcd.collections.barrier import read_gate
from skyward_etcd.collections.places import Places
from skyward_etcd.operate.catalog import live_sessions
from skyward_etcd.operate.reading import Reading, Who, settings_of
from skyward_etcd.operate.values import Shown, shown
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import repeatable
from skyward_etcd.ops.effects import Mind, Operation
from skyward_etcd.ops.layout import Kind
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import LEASE_TIME_TO_LIVE

__all__ = [
    "Barrier",
    "Contender",
    "Counter",
    "Entries",
    "Item",
    "Lock",
    "Queue",
    "View",
    "contenders",
    "in_order",
    "view",
]


@dataclass(frozen=True, slots=True)
class Entries:
    """A dict, or a set, whose members have no values."""

    count: int
    entries: Sequence[tuple[str, Shown | None]]
    """The first of them; keys as the JSON text that they are in etcd."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter."""

    total: int
    base: int
    """What resets and ended sessions have left."""
    shards: Sequence[tuple[Who, int, bool]]
    """What each session has added since, and whether it lives."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a queue."""

    value: Shown
    deliveries: int
    """How often it was claimed."""
    claimed_by: Who | None


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue."""

    waiting: int
    claimed: int
    dead: int
    """Items of the queue of this name with ``.dead`` behind it."""
    max_deliveries: int | None
    items: Sequence[Item]
    """The first of them, in the queue's order."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who holds a lock, or waits for it."""

    who: Who
    token: int
    """The fencing token of its hold, now or when its turn has come."""


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock."""

    holder: Contender | None
    waiters: Sequence[Contender]
    """In the order in which they will have it."""
    lease_s: int | None
    """Within so many seconds it is free if its holder is dead; it is renewed by a living one."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """A barrier."""

    n: int
    generation: int
    is_aborted: bool
    broken: Sequence[int]
    """The last generations that broke."""
    waiting: Sequence[Who]
    missing: int
    absent: Sequence[Who]
    """Living processes of the namespace that do not wait here: among them are those that are missing."""


View = Entries | Counter | Queue | Lock | Barrier


def view(mind: Mind, kind: Kind, name: str, *, limit: int = 100, stale: bool = False) -> Operation[tuple[View, int]]:
    """Look at one collection as it was at one moment: up to ``limit`` of its entries; return its revision too.

    Raises:
        NoSuchCollection: nobody has used the name for this kind.
    """
    reading = Reading(mind, stale=stale)
    settled = yield from settings_of(reading, kind, name)
    look: _Look = _LOOKS.get(kind, _entries)
    seen = yield from look(reading, kind, name, settled, limit)
    return seen, reading.revision


def contenders(reading: Reading, name: str) -> Operation[Sequence[pb.KeyValue]]:
    """Return the keys of those who hold a lock or wait for it, in their order."""
    prefix = reading.mind.layout.collection("lock", name)
    found = yield from reading.everything(prefix)
    return sorted(found, key=lambda each: int(each.create_revision))


def in_order(places: Places, items: Sequence[pb.KeyValue]) -> list[pb.KeyValue]:
    """Return items in the order in which the queue gives them out."""
    return sorted(items, key=lambda item: (places.page_of(item.key), item.create_revision, item.key))


def _entries(reading: Reading, kind: Kind, name: str, _settled: Mapping[str, int], limit: int) -> Operation[Entries]:
    prefix = reading.mind.layout.collection(kind, name)
    count = yield from reading.count(prefix)
    found: list[pb.KeyValue] = []
    start, size = b"", min(limit, 16)
    while len(found) < limit:
        kvs, start, size = yield from reading.page(prefix, start, size)
        found.extend(kvs)
        size = min(size, limit - len(found))
        if not start:
            break
    texts = [each.key.removeprefix(prefix).decode(errors="backslashreplace") for each in found]
    values = [shown(each.value) if kind == "dict" else None for each in found]
    return Entries(count, list(zip(texts, values, strict=True)))


def _counter(reading: Reading, kind: Kind, name: str, _settled: Mapping[str, int], _limit: int) -> Operation[Counter]:
    prefix = reading.mind.layout.collection(kind, name)
    found = yield from reading.everything(prefix)
    living = yield from live_sessions(reading)
    base = kv.number([each for each in found if each.key == prefix + b"base"])
    shards: list[tuple[Who, int, bool]] = []
    for each in found:
        if each.key != prefix + b"base":
            session = each.key.removeprefix(prefix + b"shards/").partition(b".")[0].decode(errors="replace")
            shards.append((living.get(session, Who(session)), kv.number_in(each), session in living))
    return Counter(base + sum(value for _, value, _ in shards), base, shards)


def _queue(reading: Reading, kind: Kind, name: str, settled: Mapping[str, int], limit: int) -> Operation[Queue]:
    layout = reading.mind.layout
    places = Places(layout.collection(kind, name), layout)
    dead = Places(layout.collection(kind, f"{name}.dead"), layout)
    there = yield from reading.count(places.all_items)
    buried = yield from reading.count(dead.all_items)
    claims = yield from reading.everything(places.all_claims)
    holders = {claim.key: Who.read(f"{claim.lease:016x}", claim.value) for claim in claims}
    items: list[Item] = []
    for found in (yield from _first_items(reading, places, limit)):
        delivered = yield from reading.one(places.deliveries_of(found.key))
        holder = holders.get(places.claim_of(found.key))
        items.append(Item(shown(found.value), delivered.version if delivered else 0, holder))
    return Queue(there - len(claims), len(claims), buried, settled.get("max_deliveries"), items)


def _first_items(reading: Reading, places: Places, limit: int) -> Operation[Sequence[pb.KeyValue]]:
    """Return the first items, which have to be read to the end of a page: only there their order is known."""
    found: list[pb.KeyValue] = []
    start, size = b"", min(max(1, limit), 16)
    while limit:
        kvs, start, size = yield from reading.page(places.all_items, start, size)
        found.extend(kvs)
        if not start or (len(found) > limit and places.page_of(found[-1].key) > places.page_of(found[limit - 1].key)):
            break
    return in_order(places, found)[:limit]


def _lock(reading: Reading, _kind: Kind, name: str, _settled: Mapping[str, int], _limit: int) -> Operation[Lock]:
    prefix = reading.mind.layout.collection("lock", name)
    found = yield from contenders(reading, name)
    base = yield from reading.one(reading.mind.layout.token_base)
    token_base = kv.number([base] if base else [])
    line: list[Contender] = []
    for each in found:
        session = each.key.removeprefix(prefix).partition(b"-")[0].decode(errors="replace")
        line.append(Contender(Who.read(session, each.value), token_base + each.create_revision))
    lease_s = (yield from _left_of(found[0].lease)) if found and not reading.stale else None
    return Lock(line[0] if line else None, line[1:], lease_s)


def _left_of(lease: int) -> Operation[int]:
    """Return the seconds that a lease has left; the majority knows."""
    reply: pb.LeaseTimeToLiveResponse = yield from repeatable(LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(ID=lease))
    return max(0, int(reply.TTL))


def _barrier(reading: Reading, kind: Kind, name: str, settled: Mapping[str, int], _limit: int) -> Operation[Barrier]:
    prefix = reading.mind.layout.collection(kind, name)
    gate = yield from reading.one(prefix + b"gate")
    generation, broken, is_aborted = read_gate(gate) if gate else (0, (), False)
    found = yield from reading.everything(prefix + b"%09d/" % generation)
    waiting = [
        Who.read(each.key.rpartition(b"/")[2].partition(b".")[0].decode(errors="replace"), each.value) for each in found
    ]
    living = yield from live_sessions(reading)
    here = {who.session for who in waiting}
    n = settled.get("n", 0)
    return Barrier(
        n,
        generation,
        is_aborted,
        broken,
        waiting,
        max(0, n - len(waiting)),
        [who for session, who in living.items() if session not in here],
    )


_Look = Callable[[Reading, Kind, str, Mapping[str, int], int], Operation[View]]
_LOOKS: Mapping[Kind, _Look] = {"counter": _counter, "queue": _queue, "lock": _lock, "barrier": _barrier}
