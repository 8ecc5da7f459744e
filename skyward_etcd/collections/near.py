"""A near-cache: what a process has looked up in a dict or a set, kept true by a watch.

An entry is what etcd had at some moment, and every later change of it is told by the watch, in order; so a cached read
is one watch delivery old at most, and never goes back. What is not certain is forgotten rather than mended: while the
stream is broken nothing is read here, after a gap in what it tells all is forgotten, and so is an entry that this
process itself writes. An entry is only taken in if nothing newer can have been told or written since it was read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from skyward_etcd.collections.base import Collection, Consistency
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_
from skyward_etcd.ops.effects import Operation, Watch, Watching
from skyward_etcd.ops.keys import encode_key
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.pages import read_all
from skyward_etcd.session.session import Session
from skyward_etcd.session.signals import Mutex

__all__ = ["MISS", "Near", "NearCached"]

T = TypeVar("T")

MISS: Final = object()
"""It is not known here: ask etcd."""

_MOST_ENTRIES = 65_536
_MOST_BYTES = 64 << 20
_ENTRY_BYTES = 400
"""What an entry takes besides its key and its value."""
_IMMUTABLE: Final = (str, int, float, bool, bytes, type(None))


@dataclass(slots=True)
class _Entry:
    found: kv.KeyValue | None
    revision: int
    """When it was so; from there on every change is told."""
    value: Any = MISS
    """What it means, if nobody can change that; else each reader gets his own."""

    @property
    def size(self) -> int:
        return _ENTRY_BYTES + (len(self.found.key) + len(self.found.value) if self.found is not None else 0)


class Near:
    """What is known of one collection. Readers take no lock."""

    def __init__(self) -> None:
        self.watching: Watching | None = None
        self.gaps = 0
        """How often something may not have been told."""
        self._mutex = Mutex()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0
        self._told = 0
        """The revision of the newest change that the watch has told."""
        self._written = 0
        """The revision up to which this process may have written."""

    @property
    def is_over(self) -> bool:
        """Whether it will never be told anything again."""
        return self.watching is None or self.watching.is_over

    def look(self, at: bytes, decode: Callable[[kv.KeyValue], Any], absent: Any) -> Any:
        """Return the value, ``absent`` if there is none for certain, or `MISS`."""
        entry = self._entries.get(at)
        if entry is None or self.watching is None or not self.watching.is_current:
            return MISS
        if entry.value is not MISS:
            return entry.value
        if entry.found is None:
            return absent
        value = decode(entry.found)
        if type(value) in _IMMUTABLE:
            entry.value = value
        return value

    def keep(self, at: bytes, found: kv.KeyValue | None, revision: int, *, gaps: int) -> None:
        """Take in what was read at a revision, after so many gaps, unless something newer may be known by now.

        Then the key is forgotten: what was read may be newer than what is here.
        """
        with self._mutex:
            self._forget(at)
            is_certain = revision >= max(self._told, self._written) and gaps == self.gaps
            if is_certain and self.watching is not None and self.watching.is_current:
                self._set(at, _Entry(found, revision))

    def forget(self, keys: Iterable[bytes] | None, seen: int) -> None:
        """Forget keys that this process may have written up to a revision; ``None``: all of them."""
        with self._mutex:
            self._written = max(self._written, seen)
            if keys is None:
                self._forget_all()
            else:
                for at in keys:
                    self._forget(at)

    def compare(self, found: Iterable[kv.KeyValue]) -> None:
        """Forget what differs from all that there is, as it was just read."""
        there = {each.key: each.mod_revision for each in found}
        with self._mutex:
            for at, entry in list(self._entries.items()):
                if there.get(at) != (entry.found.mod_revision if entry.found is not None else None):
                    self._forget(at)

    def tell(self, events: Sequence[kv.Event]) -> None:
        """Take in what the watch tells; nothing: that there is a gap."""
        with self._mutex:
            if not events:
                self.gaps += 1
                self._forget_all()
            for event in events:
                at, revision = event.kv.key, event.kv.mod_revision
                self._told = max(self._told, revision)
                entry = self._entries.get(at)
                if entry is not None and entry.revision < revision:  # else it was read when it was so already
                    self._set(at, _Entry(None if kv.is_delete(event) else _alone(event.kv), revision))

    def _set(self, at: bytes, entry: _Entry) -> None:
        self._forget(at)
        self._entries[at] = entry
        self._bytes += entry.size
        while len(self._entries) > _MOST_ENTRIES or self._bytes > _MOST_BYTES:
            self._forget(next(iter(self._entries)))

    def _forget(self, at: bytes) -> None:
        entry = self._entries.pop(at, None)
        self._bytes -= entry.size if entry is not None else 0

    def _forget_all(self) -> None:
        self._entries.clear()
        self._bytes = 0


class NearCached(Collection):
    """A collection of keys, what is read of which may be kept here."""

    def __init__(
        self, session: Session, name: str, *, consistency: Consistency | None = "eventual", near_cache: bool = False
    ) -> None:
        super().__init__(session, name, consistency=consistency)
        if near_cache and self._strong:
            raise ValueError(
                f'{self._what}: a near-cache may be one watch delivery behind: consistency="strong" rules it out'
            )
        self.near_cache = near_cache
        self._near_at = b"near " + self._prefix

    def _at(self, key: Hashable) -> bytes:
        return self._prefix + encode_key(key)

    def _near(self, key: Hashable, absent: Any) -> Any:
        """Return what is known of a key without asking: its value, ``absent``, or `MISS`."""
        if not self.near_cache:
            return MISS
        near: Near | None = self._session.kept.get(self._near_at)
        return near.look(self._at(key), self._decode, absent) if near is not None else MISS

    def _decode(self, found: kv.KeyValue) -> Any:
        return self._session.codec.decode(found.value, key=found.key)

    def _find(self, at: bytes) -> Operation[kv.KeyValue | None]:
        """Read one key, and keep it if this handle has a near-cache."""
        yield from agree(self._session, self.kind, self.name)
        near: Near | None = (yield from self._watched()) if self.near_cache else None
        gaps = near.gaps if near is not None else 0
        reply = yield from range_(kv.read(at, serializable=not self._strong), seen=self._session.seen)
        found = reply.kvs[0] if reply.kvs else None
        if near is not None:
            near.keep(at, found, reply.header.revision, gaps=gaps)
        else:
            self._forget((at,))  # what another handle of this process keeps may be older
        return found

    def _is_there(self, at: bytes) -> Operation[bool]:
        """`_find`; the value does not travel unless it is to be kept."""
        if self.near_cache:
            return (yield from self._find(at)) is not None
        yield from agree(self._session, self.kind, self.name)
        request = kv.read(at, count_only=True, serializable=not self._strong)
        reply = yield from range_(request, seen=self._session.seen)
        self._forget((at,))
        return bool(reply.count)

    def _read_all(self, *, keys_only: bool = False) -> Operation[list[kv.KeyValue]]:
        """Read all there is, as it was at one moment; what is kept is never older."""
        yield from agree(self._session, self.kind, self.name)
        serializable, seen = not self._strong, self._session.seen
        found = yield from read_all(self._prefix, keys_only=keys_only, serializable=serializable, seen=seen)
        near: Near | None = self._session.kept.get(self._near_at)
        if near is not None:
            near.compare(found)
        return found

    def _changing(self, keys: Iterable[bytes] | None, writing: Operation[T]) -> Operation[T]:
        """Write, and keep nothing here of these keys (``None``: of all) from before that."""
        yield from agree(self._session, self.kind, self.name)
        try:
            return (yield from writing)
        finally:
            self._forget(keys)

    def _forget(self, keys: Iterable[bytes] | None) -> None:
        near: Near | None = self._session.kept.get(self._near_at)
        if near is not None:
            near.forget(keys, self._session.seen)

    def _watched(self) -> Operation[Near]:
        """Return the near-cache of this process, told of every change from now on. One round trip the first time."""
        kept = self._session.kept
        found: Near | None = kept.get(self._near_at)
        if found is not None and not found.is_over:
            return found
        mine = Near()
        watching: Watching = yield Watch(self._prefix, kv.prefix_end(self._prefix), tell=mine.tell)
        there: Near | None = kept.get(self._near_at)
        if there is not None and not there.is_over:  # another was quicker
            watching.close()
            return there
        mine.watching = watching
        kept[self._near_at] = mine
        return mine


def _alone(found: kv.KeyValue) -> kv.KeyValue:
    """Return it without what was told together with it, which it would keep in memory."""
    copy = kv.KeyValue()
    copy.CopyFrom(found)
    return copy
