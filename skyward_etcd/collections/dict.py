"""A dict that all nodes share: one etcd key per entry, so that entries do not get in each other's way."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, final

from skyward_etcd.collections.near import MISS, NearCached
from skyward_etcd.errors import UnsupportedType
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_, recall
from skyward_etcd.ops.bulk import all_of, chunks
from skyward_etcd.ops.effects import Operation
from skyward_etcd.ops.keys import decode_key
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, prove, write

__all__ = ["ABSENT", "Absent", "Dict"]

_CHUNK_ENTRIES = 100
_CHUNK_BYTES = 512 * 1024
_COMPARED_BYTES = 64 * 1024


@final
class Absent:
    """The type of `ABSENT`, of which there is one: it is still itself when it has been sent to a node."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __reduce__(self) -> str:
        return "ABSENT"  # pickle's way to say: the global of this name


ABSENT: Final = Absent()
"""For `Dict.compare_and_set`: there is no such entry. A stored ``None`` is a value."""

Pairs = Mapping[Any, Any] | Iterable[tuple[Any, Any]]


class Dict(NearCached):
    """A mapping that all nodes share.

    Writes are linearizable at both levels. Reads are linearizable if the handle is strong; else they are what the
    nearest member has, though never older than what this session has seen or written. Keys that are equal in Python
    (``1``, ``1.0``, ``True``) are one entry. Values are copies: changing what was read changes nothing here.

    >>> d = sky.dict("settings")
    >>> d["lr"] = 0.001
    >>> d["lr"], d.pop("lr"), d.get("lr", "gone")
    (0.001, 0.001, 'gone')
    """

    kind = "dict"
    is_data = True

    # ---- one entry

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Return the value, or ``default``. One round trip; none if the near-cache has it."""
        near = self._near(key, default)
        return self._run(self._get(key, default)) if near is MISS else near

    async def get_async(self, key: Hashable, default: Any = None) -> Any:
        """`get`, without blocking the event loop."""
        near = self._near(key, default)
        return await self._run_async(self._get(key, default)) if near is MISS else near

    def __getitem__(self, key: Hashable) -> Any:
        value = self.get(key, ABSENT)
        if value is ABSENT:
            raise KeyError(key)
        return value

    def set(self, key: Hashable, value: Any) -> None:
        """Store a value. One round trip.

        A strong handle stores it exactly once. An eventual one repeats after a lost answer: the last writer wins.

        Raises:
            UnsupportedType, ValueTooLarge: nothing was sent.
            OutcomeUnknown: it was stored once or not at all.
        """
        self._run(self._set(key, value))

    async def set_async(self, key: Hashable, value: Any) -> None:
        """`set`, without blocking the event loop."""
        await self._run_async(self._set(key, value))

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self._run(self._set(key, value))

    def delete(self, key: Hashable) -> bool:
        """Remove an entry, and tell whether there was one. One round trip, exactly once."""
        return self._run(self._delete(key))

    async def delete_async(self, key: Hashable) -> bool:
        """`delete`, without blocking the event loop."""
        return await self._run_async(self._delete(key))

    def __delitem__(self, key: Hashable) -> None:
        if not self._run(self._delete(key)):
            raise KeyError(key)

    def contains(self, key: Hashable) -> bool:
        """Tell whether there is such an entry. One round trip; the value does not travel, without a near-cache."""
        near = self._near(key, ABSENT)
        return self._run(self._contains(key)) if near is MISS else near is not ABSENT

    async def contains_async(self, key: Hashable) -> bool:
        """`contains`, without blocking the event loop."""
        near = self._near(key, ABSENT)
        return await self._run_async(self._contains(key)) if near is MISS else near is not ABSENT

    def __contains__(self, key: Hashable) -> bool:
        return self.contains(key)

    def pop(self, key: Hashable, default: Any = None) -> Any:
        """Remove an entry and return its value, or ``default``. One round trip; no two callers get the same value.

        Raises:
            CorruptValue, UnsupportedType: the value cannot be read here; it was put back, unless there is another now.
            OutcomeUnknown: the answer was lost; it was removed once or not at all.
        """
        return self._run(self._pop(key, default))

    async def pop_async(self, key: Hashable, default: Any = None) -> Any:
        """`pop`, without blocking the event loop."""
        return await self._run_async(self._pop(key, default))

    def setdefault(self, key: Hashable, default: Any = None) -> Any:
        """Store ``default`` if there is no such entry, and return what is there then. One round trip, one winner."""
        return self._run(self._setdefault(key, default))

    async def setdefault_async(self, key: Hashable, default: Any = None) -> Any:
        """`setdefault`, without blocking the event loop."""
        return await self._run_async(self._setdefault(key, default))

    def compare_and_set(self, key: Hashable, expected: Any, value: Any) -> bool:
        """Store ``value`` if the entry equals ``expected`` (or is not there, with `ABSENT`); tell whether it did.

        One round trip; two if the values are equal but were written differently (``1`` and ``1.0``).
        """
        return self._run(self._compare_and_set(key, expected, value))

    async def compare_and_set_async(self, key: Hashable, expected: Any, value: Any) -> bool:
        """`compare_and_set`, without blocking the event loop."""
        return await self._run_async(self._compare_and_set(key, expected, value))

    # ---- all entries

    def update(self, other: Pairs = (), /, **entries: Any) -> None:
        """Store many entries, from a mapping, pairs or keyword arguments.

        One round trip for each 100 entries or 512 KiB; each such part is atomic, the whole is not.
        """
        self._run(self._update(other, entries))

    async def update_async(self, other: Pairs = (), /, **entries: Any) -> None:
        """`update`, without blocking the event loop."""
        await self._run_async(self._update(other, entries))

    def size(self) -> int:
        """Return the number of entries. One round trip; etcd counts them, at about 0.2 s a million."""
        return self._run(self._size())

    async def size_async(self) -> int:
        """`size`, without blocking the event loop."""
        return await self._run_async(self._size())

    def __len__(self) -> int:
        return self._run(self._size())

    def __bool__(self) -> bool:
        return self._run(self._size()) > 0

    def keys(self) -> list[Any]:
        """Return all keys as they were at one moment. One round trip for each 10,000."""
        return self._run(self._keys())

    async def keys_async(self) -> list[Any]:
        """`keys`, without blocking the event loop."""
        return await self._run_async(self._keys())

    def values(self) -> list[Any]:
        """Return all values as they were at one moment, for the round trips of `items`."""
        return [value for _, value in self._run(self._items())]

    async def values_async(self) -> list[Any]:
        """`values`, without blocking the event loop."""
        return [value for _, value in await self._run_async(self._items())]

    def items(self) -> list[tuple[Any, Any]]:
        """Return all entries as they were at one moment.

        One round trip for the first 100, then one for each 10,000 or 4 MiB.
        """
        return self._run(self._items())

    async def items_async(self) -> list[tuple[Any, Any]]:
        """`items`, without blocking the event loop."""
        return await self._run_async(self._items())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    async def __aiter__(self) -> AsyncIterator[Any]:
        for key in await self.keys_async():
            yield key

    __reversed__ = None
    """There is no order to turn around; without this, Python would ask for the keys len - 1 … 0."""

    def clear(self) -> None:
        """Remove all entries, at once. One round trip."""
        self._run(self._clear())

    async def clear_async(self) -> None:
        """`clear`, without blocking the event loop."""
        await self._run_async(self._clear())

    # Skyward 0.11 and later say it so:
    put, put_async = set, set_async
    remove, remove_async = delete, delete_async

    # ---- the algorithms

    def _get(self, key: Hashable, default: Any) -> Operation[Any]:
        found = yield from self._find(self._at(key))
        return self._decode(found) if found is not None else default

    def _set(self, key: Hashable, value: Any) -> Operation[None]:
        at = self._at(key)
        yield from self._changing((at,), self._write([kv.put(at, self._encode(at, value))]))

    def _delete(self, key: Hashable) -> Operation[bool]:
        at = self._at(key)
        remove = Alternative((kv.present(at),), (kv.delete(at),))
        outcome = yield from self._changing((at,), prove([remove], guard=self.guard, what=self._what))
        return outcome.taken is not None

    def _contains(self, key: Hashable) -> Operation[bool]:
        return (yield from self._is_there(self._at(key)))

    def _pop(self, key: Hashable, default: Any) -> Operation[Any]:
        at = self._at(key)
        take = Alternative((kv.present(at),), (kv.delete(at, with_value=True),))
        outcome = yield from self._changing((at,), prove([take], guard=self.guard, what=self._what))
        if outcome.taken is None:
            return default
        if outcome.responses is not None:
            removed: kv.KeyValue | None = outcome.responses[0].response_delete_range.prev_kvs[0]
        else:
            removed = yield from recall(at, outcome.revision - 1, what=self._what)
        if removed is None:
            return default
        try:
            return self._decode(removed)
        except Exception:  # what this process cannot read, as it lacks the secret or the class, another one can
            back = Alternative((kv.absent(at),), (kv.put(at, removed.value),))
            yield from self._changing((at,), prove([back], what=self._what))
            raise

    def _setdefault(self, key: Hashable, default: Any) -> Operation[Any]:
        at = self._at(key)
        data = self._encode(at, default)
        store = Alternative((kv.absent(at),), (kv.put(at, data),))
        storing = prove([store], otherwise=(kv.get(at),), guard=self.guard, what=self._what)
        outcome = yield from self._changing((at,), storing)
        if outcome.taken is not None:
            return self._session.codec.decode(data, key=at)
        if outcome.responses is not None:
            return self._decode(outcome.responses[0].response_range.kvs[0])
        there = yield from recall(at, outcome.revision, what=self._what)
        return self._decode(there) if there else default

    def _compare_and_set(self, key: Hashable, expected: Any, value: Any) -> Operation[bool]:
        at = self._at(key)
        data = self._encode(at, value)
        wanted = b"" if expected is ABSENT else self._encode(at, expected)
        # Two large values are too large for one request: then the first try finds out the version to replace.
        holds = kv.value_is(at, wanted if len(wanted) <= _COMPARED_BYTES else b"") if wanted else kv.absent(at)
        while True:
            store = Alternative((holds,), (kv.put(at, data),))
            storing = prove([store], otherwise=(kv.get(at),), guard=self.guard, what=self._what)
            outcome = yield from self._changing((at,), storing)
            if outcome.taken is not None:
                return True
            if outcome.responses is not None:
                found = outcome.responses[0].response_range.kvs
                there = found[0] if found else None
            else:
                there = yield from recall(at, outcome.revision, what=self._what)
            if there is None or expected is ABSENT or not _is_equal(self._decode(there), expected):
                return False
            # Equal in Python, but written differently: it is this very version that shall be replaced.
            holds = kv.modified_at(at, there.mod_revision)

    def _update(self, other: Pairs, entries: Mapping[str, Any]) -> Operation[None]:
        pairs: builtins.dict[Any, Any] = {**builtins.dict(other), **entries}
        data: builtins.dict[bytes, bytes] = {}
        for key, value in pairs.items():
            at = self._at(key)
            data[at] = self._encode(at, value)
        puts = (kv.put(at, value) for at, value in data.items())
        parts = chunks(puts, kv.put_bytes, most=_CHUNK_ENTRIES, most_bytes=_CHUNK_BYTES)
        yield from self._changing(data, all_of(map(self._write, parts)))

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

    def _keys(self) -> Operation[list[Any]]:
        found = yield from self._read_all(keys_only=True)
        return [decode_key(entry.key.removeprefix(self._prefix)) for entry in found]

    def _items(self) -> Operation[list[tuple[Any, Any]]]:
        found = yield from self._read_all()
        return [(decode_key(entry.key.removeprefix(self._prefix)), self._decode(entry)) for entry in found]

    def _clear(self) -> Operation[None]:
        wipe = kv.delete(self._prefix, kv.prefix_end(self._prefix))
        wiping = prove([Alternative((), (wipe,))], guard=self.guard, what=self._what)
        yield from self._changing(None, wiping)

    def _write(self, puts: Sequence[kv.Op]) -> Operation[None]:
        if self._strong or self.guard is not None:
            yield from prove([Alternative((), puts)], guard=self.guard, what=self._what)
        else:
            yield from write(puts, what=self._what)

    def _encode(self, at: bytes, value: Any) -> bytes:
        if value is ABSENT:
            raise UnsupportedType(f"{self._what}: ABSENT is no value: it stands for no entry; use delete(key)")
        return self._session.codec.encode(value, key=at, what=self._what)


def _is_equal(there: Any, expected: Any) -> bool:
    try:
        return bool(there == expected)
    except (TypeError, ValueError):  # arrays have no single truth; their bytes were compared already
        return False
