"""A set that all nodes share: one empty etcd key per member."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from typing import Any

from skyward_etcd.collections.near import MISS, NearCached
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_
from skyward_etcd.ops.bulk import all_of, chunks
from skyward_etcd.ops.effects import Operation
from skyward_etcd.ops.keys import decode_key
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, prove

__all__ = ["Set"]

_CHUNK_MEMBERS = 100
_CHUNK_BYTES = 256 * 1024


class Set(NearCached):
    """Members that all nodes share.

    `add` and `discard` are exact: of all who add the same member at once, one is told that it did. Reads are
    linearizable if the handle is strong; else they are what the nearest member has, though never older than what
    this session has seen or written. Values that are equal in Python (``1``, ``1.0``, ``True``) are one member.

    >>> s = sky.set("seen")
    >>> s.add("a"), s.add("a"), "a" in s, len(s)
    (True, False, True, 1)
    """

    kind = "set"
    is_data = True

    def add(self, value: Hashable) -> bool:
        """Add a member, and tell whether it is new. One round trip, exactly once; nothing is written if it is not.

        Raises:
            OutcomeUnknown: the answer was lost; it was added once or not at all.
        """
        return self._run(self._add(value))

    async def add_async(self, value: Hashable) -> bool:
        """`add`, without blocking the event loop."""
        return await self._run_async(self._add(value))

    def discard(self, value: Hashable) -> bool:
        """Remove a member, and tell whether it was there. One round trip, exactly once."""
        return self._run(self._discard(value))

    async def discard_async(self, value: Hashable) -> bool:
        """`discard`, without blocking the event loop."""
        return await self._run_async(self._discard(value))

    def contains(self, value: Hashable) -> bool:
        """Tell whether it is a member. One round trip; none if the near-cache knows."""
        near = self._near(value, False)
        return self._run(self._contains(value)) if near is MISS else near

    async def contains_async(self, value: Hashable) -> bool:
        """`contains`, without blocking the event loop."""
        near = self._near(value, False)
        return await self._run_async(self._contains(value)) if near is MISS else near

    def __contains__(self, value: Hashable) -> bool:
        return self.contains(value)

    def update(self, *others: Iterable[Hashable]) -> None:
        """Add many members. One round trip for each 100; each such part is atomic, the whole is not."""
        self._run(self._update(others))

    async def update_async(self, *others: Iterable[Hashable]) -> None:
        """`update`, without blocking the event loop."""
        await self._run_async(self._update(others))

    def size(self) -> int:
        """Return the number of members. One round trip; etcd counts them, at about 0.2 s a million."""
        return self._run(self._size())

    async def size_async(self) -> int:
        """`size`, without blocking the event loop."""
        return await self._run_async(self._size())

    def __len__(self) -> int:
        return self._run(self._size())

    def __bool__(self) -> bool:
        return self._run(self._size()) > 0

    def members(self) -> list[Any]:
        """Return all members as they were at one moment. One round trip for each 10,000."""
        return self._run(self._members())

    async def members_async(self) -> list[Any]:
        """`members`, without blocking the event loop."""
        return await self._run_async(self._members())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members())

    async def __aiter__(self) -> AsyncIterator[Any]:
        for member in await self.members_async():
            yield member

    def clear(self) -> None:
        """Remove all members, at once. One round trip."""
        self._run(self._clear())

    async def clear_async(self) -> None:
        """`clear`, without blocking the event loop."""
        await self._run_async(self._clear())

    # Skyward 0.11 and later say it so:
    remove, remove_async = discard, discard_async
    items, items_async = members, members_async

    # ---- the algorithms

    def _add(self, value: Hashable) -> Operation[bool]:
        at = self._at(value)
        add = Alternative((kv.absent(at),), (kv.put(at),))
        outcome = yield from self._changing((at,), prove([add], guard=self.guard, what=self._what))
        return outcome.taken is not None

    def _discard(self, value: Hashable) -> Operation[bool]:
        at = self._at(value)
        remove = Alternative((kv.present(at),), (kv.delete(at),))
        outcome = yield from self._changing((at,), prove([remove], guard=self.guard, what=self._what))
        return outcome.taken is not None

    def _contains(self, value: Hashable) -> Operation[bool]:
        return (yield from self._is_there(self._at(value)))

    def _decode(self, found: kv.KeyValue) -> bool:  # noqa: ARG002 - that it is there is all
        return True

    def _update(self, others: Iterable[Iterable[Hashable]]) -> Operation[None]:
        keys = list(dict.fromkeys(self._at(value) for other in others for value in other))
        parts = chunks(keys, len, most=_CHUNK_MEMBERS, most_bytes=_CHUNK_BYTES)
        yield from self._changing(keys, all_of(map(self._add_all, parts)))

    def _add_all(self, keys: Iterable[bytes]) -> Operation[None]:
        adds = [kv.nested((kv.absent(at),), (kv.put(at),)) for at in keys]
        yield from prove([Alternative((), adds)], guard=self.guard, what=self._what)

    def _size(self) -> Operation[int]:
        yield from agree(self._session, self.kind, self.name)
        request = kv.read(
            self._prefix,
            kv.prefix_end(self._prefix),
            count_only=True,
            serializable=not self._strong,
        )
        reply = yield from range_(request, seen=self._session.seen)
        return reply.count

    def _members(self) -> Operation[list[Any]]:
        found = yield from self._read_all(keys_only=True)
        return [decode_key(member.key.removeprefix(self._prefix)) for member in found]

    def _clear(self) -> Operation[None]:
        wipe = kv.delete(self._prefix, kv.prefix_end(self._prefix))
        wiping = prove([Alternative((), (wipe,))], guard=self.guard, what=self._what)
        yield from self._changing(None, wiping)
