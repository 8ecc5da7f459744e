"""A first-in-first-out queue whose cost does not depend on its length.

Items lie in *pages*. Every put goes to the current page; now and then a put also moves on to the next one, so that
pages follow each other in the order of commitment, and inside a page the creation revision orders. A get looks at
one page only, and removes the first item that is left in one transaction, however many try at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from skyward_etcd.collections.base import Collection, check_count, check_timeout
from skyward_etcd.errors import OutcomeUnknown, SkywardEtcdError
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_, recall
from skyward_etcd.ops.effects import Await, Identify, Identity, Later, Now, Operation, Watch, Watching
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, Outcome, prove

__all__ = ["Queue"]

_PAGE = 64
"""Each session moves on to the next page once in so many puts, each at another moment: the mean length of a page."""
_LONGEST_CHAIN = 8
"""Candidates that one get tries in one transaction at most: enough for as many consumers at once."""
_LOOK_AHEAD = 2
"""Pages looked at together otherwise: when the first is used up, the second is known at once."""
_WINDOW = 64
"""Pages looked at together when the head has fallen behind."""
_MANY = 48
"""Items that travel in one transaction."""
_TWICE_BYTES = 64 * 1024
"""Up to here an item is sent for two pages at once, so that a page that just ended costs no second round trip."""
_CHUNK_BYTES = 512 * 1024


class Queue(Collection):
    """Items that all nodes put in and take out.

    Every operation is linearizable. Each item goes to exactly one consumer, in the order in which the puts were
    committed, also when answers are lost. Who waits is woken by a watch, in the order in which they came within a
    process.

    >>> q = sky.queue("tasks")
    >>> q.put_many(["first", None])
    >>> q.get(), q.get(), q.get(timeout=0, default="nothing there")
    ('first', None, 'nothing there')
    """

    kind = "queue"

    # ---- putting

    def put(self, value: Any) -> None:
        """Add an item at the end, exactly once. One round trip.

        Raises:
            UnsupportedType, ValueTooLarge: nothing was sent.
            OutcomeUnknown: the answer was lost; it was added once or not at all.
        """
        self._run(self._put([value]))

    async def put_async(self, value: Any) -> None:
        """`put`, without blocking the event loop."""
        await self._run_async(self._put([value]))

    def put_many(self, values: Iterable[Any]) -> None:
        """Add items in their order. One round trip for each 48 or 512 KiB; each such part is atomic, in one piece."""
        self._run(self._put(list(values)))

    async def put_many_async(self, values: Iterable[Any]) -> None:
        """`put_many`, without blocking the event loop."""
        await self._run_async(self._put(list(values)))

    # ---- getting

    def get(self, timeout: float | None = None, default: Any = None) -> Any:
        """Take the first item; wait for one up to ``timeout`` seconds (``None``: for ever), then return ``default``.

        One round trip while there are items (one more for each page), at any length; two to find that there is none.
        A ``default`` of your own tells a stored ``None`` from no item. A cancelled wait leaves nothing behind; if it
        is cancelled in the very moment of taking an item, that item is put at the end of the queue, from the
        background.

        Raises:
            OutcomeUnknown: the answer was lost, and which item was taken is no longer known.
        """
        found = self._run(self._get(1, timeout))
        return found[0] if found else default

    async def get_async(self, timeout: float | None = None, default: Any = None) -> Any:
        """`get`, without blocking the event loop."""
        found = await self._run_async(self._get(1, timeout))
        return found[0] if found else default

    def get_many(self, n: int, timeout: float | None = None) -> list[Any]:
        """Take up to ``n`` items: wait for the first as `get` does, then take what is there, without gaps.

        One round trip for each 48 items.
        """
        return self._run(self._get(check_count(n, what="n"), timeout))

    async def get_many_async(self, n: int, timeout: float | None = None) -> list[Any]:
        """`get_many`, without blocking the event loop."""
        return await self._run_async(self._get(check_count(n, what="n"), timeout))

    # Skyward 0.11 and later say it so:
    offer, offer_async = put, put_async

    def poll(self, timeout: float = 0.0) -> Any:
        """`get` that does not wait unless told to: Skyward 0.11's word."""
        return self.get(timeout=timeout)

    async def poll_async(self, timeout: float = 0.0) -> Any:
        """`poll`, without blocking the event loop."""
        return await self.get_async(timeout=timeout)

    # ---- looking

    def empty(self) -> bool:
        """Tell whether there is no item at this moment. One round trip if there is one, else two."""
        return self._run(self._empty())

    async def empty_async(self) -> bool:
        """`empty`, without blocking the event loop."""
        return await self._run_async(self._empty())

    def size(self) -> int:
        """Return the number of items. Two round trips; etcd counts them, at about 0.2 s a million."""
        return self._run(self._size())

    async def size_async(self) -> int:
        """`size`, without blocking the event loop."""
        return await self._run_async(self._size())

    def __len__(self) -> int:
        return self._run(self._size())

    def __bool__(self) -> bool:
        return not self._run(self._empty())

    def clear(self) -> None:
        """Remove all items, at once. One round trip."""
        self._run(self._clear())

    async def clear_async(self) -> None:
        """`clear`, without blocking the event loop."""
        await self._run_async(self._clear())

    # ---- the algorithms: putting

    def _put(self, values: Sequence[Any]) -> Operation[None]:
        data = [self._encode(value) for value in values]  # all of them, before anything is sent
        yield from agree(self._session, self.kind, self.name)
        yield from self._put_raw(data)

    def _put_raw(self, data: Sequence[bytes]) -> Operation[None]:
        identity: Identity = yield Identify()
        for chunk in _chunks(data):
            yield from self._put_chunk(identity, chunk)

    def _put_chunk(self, identity: Identity, chunk: Sequence[bytes]) -> Operation[None]:
        items = [(f"{identity.id}.{identity.serial():012d}", value) for value in chunk]
        tail = self._tail()
        moves_on = tail.counts_to_next_page(identity.id, len(items))
        twice = sum(map(len, chunk)) <= _TWICE_BYTES
        while True:
            pages = (tail.page, tail.page + 1) if twice else (tail.page,)
            alternatives = [self._into(page, items, moves_on=moves_on) for page in pages]
            outcome = yield from prove(alternatives, otherwise=(kv.get(self._page_key),), what=self._what)
            if outcome.taken is not None:
                tail.page = max(tail.page, pages[outcome.taken] + moves_on)
                return
            if outcome.responses is not None:
                tail.page = _number(outcome.responses[0].response_range.kvs)

    def _into(self, page: int, items: Sequence[tuple[str, bytes]], *, moves_on: bool) -> Alternative:
        puts = [kv.put(self._items(page) + name.encode(), value) for name, value in items]
        if moves_on:
            puts.append(kv.put(self._page_key, b"%d" % (page + 1)))
        return Alternative((self._is_current(page),), puts)

    def _is_current(self, page: int) -> kv.Compare:
        return kv.value_is(self._page_key, b"%d" % page) if page else kv.absent(self._page_key)

    # ---- the algorithms: getting

    def _get(self, n: int, timeout: float | None) -> Operation[list[Any]]:
        timeout = check_timeout(timeout)
        yield from agree(self._session, self.kind, self.name)
        found = yield from self._take(n)
        if not found and timeout != 0:
            found = yield from self._wait(n, timeout)
        try:
            while found and len(found) < n:
                more = yield from self._take(n - len(found))
                if not more:
                    break
                found += more
        except BaseException as error:
            if isinstance(error, SkywardEtcdError) and not isinstance(error, OutcomeUnknown):
                return found  # better some than none
            yield Later(partial(self._put, found))
            raise
        return found

    def _wait(self, n: int, timeout: float | None) -> Operation[list[Any]]:
        """Wait for items. A watch that is live *before* the queue is looked at again misses none."""
        deadline = None if timeout is None else (yield Now()) + timeout
        items = self._prefix + b"items/"
        watching: Watching = yield Watch(items, kv.prefix_end(items), hand_out=True)
        events: Sequence[kv.Event] = ()
        try:
            while True:
                found = yield from self._take(n)
                if found:
                    return found
                if not (yield Await(deadline, (watching,))):
                    return (yield from self._take(n))  # the one who was told may be unable to take it
                events = watching.take()
                if len(events) == 1:
                    found = yield from self._take_fresh(events[0].kv)
                    if found:
                        return found
        except BaseException:
            watching.offer(events)  # told to us alone: whoever waits next has to look instead
            raise
        finally:
            watching.close()

    def _take_fresh(self, item: kv.KeyValue) -> Operation[list[Any]]:
        """Take the item that a watch told of, if nothing older is left: one round trip from put to get."""
        head = self._head()
        page = self._page_of(item.key.rpartition(b"/")[0] + b"/")
        start = self._items(head.page)
        if item.key < start:
            return []
        is_oldest = (
            kv.all_created_from(item.create_revision, start, self._items(page + 1)),
            # What was put in the same transaction has the same revision; the one before it goes first.
            kv.absent(_before(item.key)),
        )
        removing = self._removing([item.key], page, head)
        take = Alternative((*removing.compares, *is_oldest), removing.operations)
        outcome = yield from prove([take], undo=partial(self._give_back, [[item.key]]), what=self._what)
        if outcome.taken is not None:
            head.hinted = max(head.hinted, page)
        return (yield from self._taken([item.key], outcome)) if outcome.taken is not None else []

    def _take(self, n: int) -> Operation[list[Any]]:
        """Take the first items that are left, up to ``n``; none if the queue is empty.

        The candidates are everything in the first page that was not empty, at some revision: what has come since is
        younger, and what has gone since is passed over by the transaction. So the first that is left is the oldest.
        """
        head = self._head()
        while True:
            page, candidates = head.view
            if not candidates:
                page, candidates = yield from self._find(head)
                if not candidates:
                    return []
            wanted = candidates[: min(n, _MANY)]
            choices = [[key] for key in candidates[: head.chain]]
            if len(wanted) > 1:
                choices.insert(0, list(wanted))
            alternatives = [self._removing(keys, page, head) for keys in choices]
            outcome = yield from prove(alternatives, undo=partial(self._give_back, choices), what=self._what)
            if outcome.taken is None:
                head.pass_over(choices[-1])
                head.chain = _LONGEST_CHAIN
                continue
            head.hinted = max(head.hinted, page)
            taken = choices[outcome.taken]
            head.pass_over(taken)
            head.chain = min(_LONGEST_CHAIN, 2 * outcome.taken + 2)
            return (yield from self._taken(taken, outcome))

    def _removing(self, keys: Sequence[bytes], page: int, head: _Head) -> Alternative:
        operations = [kv.delete(key, with_value=True) for key in keys]
        if page > head.hinted:
            operations.append(kv.put(self._head_key, b"%d" % page))
        return Alternative([kv.present(key) for key in keys], operations)

    def _taken(self, keys: Sequence[bytes], outcome: Outcome) -> Operation[list[Any]]:
        """Return the values of what was taken, up to the first that cannot be had here: the rest goes back."""
        values: list[Any] = []
        raw: Sequence[bytes] | None = None
        try:
            raw = yield from self._raw(keys, outcome)
            for value in raw:
                values.append(self._session.codec.decode(value, key=self._prefix))  # noqa: PERF401 - up to the bad one
        except OutcomeUnknown:
            raise
        except BaseException as error:
            if raw is None:
                yield Later(partial(self._give_back, [keys], replace(outcome, taken=0)))
            else:
                yield Later(partial(self._put_raw, raw[len(values) :]))
            if not values or not isinstance(error, SkywardEtcdError):
                raise
        return values

    def _raw(self, keys: Sequence[bytes], outcome: Outcome) -> Operation[list[bytes]]:
        if outcome.responses is not None:
            return [response.response_delete_range.prev_kvs[0].value for response in outcome.responses[: len(keys)]]
        values: list[bytes] = []
        for key in keys:
            item = yield from recall(key, outcome.revision - 1, what=self._what)
            values += [item.value] if item is not None else []
        return values

    def _give_back(self, choices: Sequence[Sequence[bytes]], outcome: Outcome) -> Operation[None]:
        """Put what was taken in vain at the end: its old place may be before the head by now."""
        if outcome.taken is not None:
            yield from self._put_raw((yield from self._raw(choices[outcome.taken], outcome)))

    def _find(self, head: _Head) -> Operation[tuple[int, Sequence[bytes]]]:
        """Look for the first page with items, from the last known one on. One round trip in the steady state."""
        if not head.is_known:
            head.hinted = yield from self._read_number(self._head_key)
            head.view = head.hinted, ()
            head.is_known = True
        tail = self._tail()
        page, window = head.page, _LOOK_AHEAD
        while True:
            sealed, end = tail.page, self._items(page + window)
            reply = yield from range_(kv.read(self._items(page), end, keys_only=True), seen=0)
            if reply.kvs:
                first = min(item.key[: len(end)] for item in reply.kvs)
                ordered = sorted((item.create_revision, item.key) for item in reply.kvs if item.key.startswith(first))
                head.view = found = self._page_of(first), [key for _, key in ordered]
                return found
            if sealed >= page + window:
                page, window = page + window, _WINDOW
                continue
            # Only pages that ended before we looked will stay empty.
            page = max(page, sealed)
            current = yield from self._read_number(self._page_key)
            if current <= sealed:
                head.view = nothing = page, ()
                return nothing
            tail.page = max(tail.page, current)

    def _read_number(self, key: bytes) -> Operation[int]:
        return _number((yield from range_(kv.read(key), seen=0)).kvs)

    # ---- the algorithms: looking

    def _empty(self) -> Operation[bool]:
        yield from agree(self._session, self.kind, self.name)
        _, candidates = yield from self._find(self._head())
        return not candidates

    def _size(self) -> Operation[int]:
        yield from agree(self._session, self.kind, self.name)
        start = self._items((yield from self._read_number(self._head_key)))
        end = kv.prefix_end(self._prefix + b"items/")
        count = yield from range_(kv.read(start, end, count_only=True), seen=0)
        return count.count

    def _clear(self) -> Operation[None]:
        yield from agree(self._session, self.kind, self.name)
        items = self._prefix + b"items/"
        yield from prove([Alternative((), (kv.delete(items, kv.prefix_end(items)),))], what=self._what)

    # ---- keys, and what this process remembers

    @property
    def _page_key(self) -> bytes:
        return self._prefix + b"page"

    @property
    def _head_key(self) -> bytes:
        return self._prefix + b"head"

    def _items(self, page: int) -> bytes:
        return self._prefix + b"items/%012d/" % page

    def _page_of(self, items: bytes) -> int:
        return int(items[-13:-1])

    def _encode(self, value: Any) -> bytes:
        # A signed value is bound to its queue: the page that it comes into is not known yet.
        return self._session.codec.encode(value, key=self._prefix, what=self._what)

    def _tail(self) -> _Tail:
        notes = self._session.notes
        return notes.get((self._prefix, "tail")) or notes.setdefault((self._prefix, "tail"), _Tail())  # type: ignore[no-any-return]

    def _head(self) -> _Head:
        notes = self._session.notes
        return notes.get((self._prefix, "head")) or notes.setdefault((self._prefix, "head"), _Head())  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Tail:
    """The page that puts go to, as far as we know; it may have moved on."""

    page: int = 0
    puts: int = 0

    def counts_to_next_page(self, session: str, items: int) -> bool:
        """Count the items, and tell whether this session ends the page with them."""
        before = self.puts or zlib.crc32(session.encode()) % _PAGE
        self.puts = before + items
        return self.puts // _PAGE > before // _PAGE


@dataclass(slots=True)
class _Head:
    """Where the first items are, as far as we know. All pages before are empty, and will stay so.

    Threads replace `view` without a lock: any page and list are good that belonged together at some moment.
    """

    view: tuple[int, Sequence[bytes]] = (0, ())
    """A page, and what was in it, oldest first."""
    hinted: int = 0
    """The page that the queue's ``head`` key tells newcomers to begin at."""
    is_known: bool = False
    chain: int = 2
    """Candidates to try at once: more where others have been quicker lately. Each costs etcd some work."""

    def pass_over(self, gone: Sequence[bytes]) -> None:
        """Forget candidates that are gone."""
        page, candidates = self.view
        if gone[-1] in candidates:
            self.view = page, candidates[candidates.index(gone[-1]) + 1 :]

    @property
    def page(self) -> int:
        """The first page that may have items."""
        return self.view[0]


def _before(item: bytes) -> bytes:
    """Return the key of the item that its session has put before this one, if it is in the same page."""
    session, _, serial = item.rpartition(b".")
    return b"%s.%012d" % (session, int(serial) - 1)


def _number(kvs: Sequence[kv.KeyValue]) -> int:
    return int(kvs[0].value) if kvs else 0


def _chunks(data: Sequence[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for value in data:
        if chunk and (len(chunk) == _MANY or size + len(value) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(value)
        size += len(value)
    if chunk:
        yield chunk
