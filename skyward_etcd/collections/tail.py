"""The end of a queue, where puts go: the current page, and now and then on to the next one.

Every put compares the page that it goes to with the current one, so that pages follow each other in the order of
commitment; inside a page the creation revision orders.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from skyward_etcd.collections.places import Places
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_
from skyward_etcd.ops.bulk import all_of, chunks
from skyward_etcd.ops.effects import Identify, Identity, Mind, Operation
from skyward_etcd.ops.proof import Alternative, Guard, prove

__all__ = ["MANY", "Tail", "read_number"]

MANY = 48
"""Items that travel in one transaction."""
_PAGE = 64
"""Each session moves on to the next page once in so many puts, each at another moment: the mean length of a page."""
_TWICE_BYTES = 64 * 1024
"""Up to here an item is sent for two pages at once, so that a page that just ended costs no second round trip."""
_CHUNK_BYTES = 512 * 1024


class Tail:
    """The end of one queue, and what this process knows of it."""

    def __init__(self, mind: Mind, places: Places, what: str) -> None:
        self._mind = mind
        self._places = places
        self._what = what

    @property
    def page(self) -> int:
        """The page that puts go to, as far as we know; it may have moved on."""
        return self._known().page

    def is_at(self, page: int) -> None:
        """Take note that puts go to a page now, or to a later one."""
        known = self._known()
        known.page = max(known.page, page)

    def put(self, data: Sequence[bytes]) -> Operation[None]:
        """Add items in their order, exactly once. One round trip for each 48 or 512 KiB."""
        identity: Identity = yield Identify()
        parts = chunks(data, len, most=MANY, most_bytes=_CHUNK_BYTES)
        yield from all_of(self._put_chunk(_named(identity, part), Alternative((), ())) for part in parts)

    def take_over(self, value: bytes, source: Alternative) -> Operation[bool]:
        """Add an item in the transaction that removes it elsewhere, if what that compares still holds; tell whether."""
        identity: Identity = yield Identify()
        return (yield from self._put_chunk(_named(identity, [value]), source))

    def _put_chunk(self, items: Sequence[tuple[str, bytes]], source: Alternative) -> Operation[bool]:
        known = self._known()
        moves_on = known.counts_to_next_page(items[0][0], len(items))
        twice = sum(len(value) for _, value in items) <= _TWICE_BYTES
        while True:
            pages = (known.page, known.page + 1) if twice else (known.page,)
            alternatives = [self._into(page, items, source.operations, moves_on=moves_on) for page in pages]
            outcome = yield from prove(
                alternatives, guard=Guard(source.compares), otherwise=(kv.get(self._places.page),), what=self._what
            )
            if outcome.taken is not None:
                self.is_at(pages[outcome.taken] + moves_on)
                return True
            if outcome.responses is not None:
                if not outcome.responses:
                    return False  # the source has nothing to give any more
                known.page = kv.number(outcome.responses[0].response_range.kvs)

    def _into(
        self, page: int, items: Sequence[tuple[str, bytes]], along: Sequence[kv.Op], *, moves_on: bool
    ) -> Alternative:
        puts = [kv.put(self._places.items(page) + name.encode(), value) for name, value in items]
        if moves_on:
            puts.append(kv.put(self._places.page, b"%d" % (page + 1)))
        return Alternative((self._is_current(page),), (*puts, *along))

    def _is_current(self, page: int) -> kv.Compare:
        key = self._places.page
        return kv.value_is(key, b"%d" % page) if page else kv.absent(key)

    def _known(self) -> _Known:
        notes, key = self._mind.notes, (self._places.prefix, "tail")
        found: _Known | None = notes.get(key)
        if found is None:
            found = notes[key] = _Known()
        return found


@dataclass(slots=True)
class _Known:
    page: int = 0
    puts: int = 0

    def counts_to_next_page(self, name: str, items: int) -> bool:
        """Count the items, and tell whether the session of this item's name ends the page with them."""
        before = self.puts or zlib.crc32(name.partition(".")[0].encode()) % _PAGE
        self.puts = before + items
        return self.puts // _PAGE > before // _PAGE


def read_number(key: bytes) -> Operation[int]:
    """Return the number that a key holds; 0 if it does not exist."""
    return kv.number((yield from range_(kv.read(key), seen=0)).kvs)


def _named(identity: Identity, values: Sequence[bytes]) -> list[tuple[str, bytes]]:
    return [(f"{identity.id}.{identity.serial():012d}", value) for value in values]
