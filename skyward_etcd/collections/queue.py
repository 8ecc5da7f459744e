"""A first-in-first-out queue whose cost does not depend on its length.

Items lie in *pages*. Every put goes to the current page (`tail`); now and then a put also moves on to the next one. A
get or a claim looks at one page only, and picks the first item that is free in one transaction, however many try at
once (`front`). A get removes what it picks, a claim (`claim`) puts its mark beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from skyward_etcd.collections.base import Collection, check_count, check_timeout
from skyward_etcd.collections.claim import Claim, Claims
from skyward_etcd.collections.front import Front
from skyward_etcd.collections.places import Places
from skyward_etcd.collections.tail import Tail, read_number
from skyward_etcd.errors import OutcomeUnknown, SkywardEtcdError
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_, recall, txn_repeatable
from skyward_etcd.ops.effects import Await, Deadline, Later, Operation, Watch, Watching
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, Outcome, prove
from skyward_etcd.session.session import Session

T = TypeVar("T")

__all__ = ["Queue"]


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

    def __init__(self, session: Session, name: str, *, max_deliveries: int | None = None) -> None:
        super().__init__(session, name)
        self.max_deliveries = (
            None if max_deliveries is None else check_count(max_deliveries, what=f"{self._what}: max_deliveries")
        )
        places = self._places = Places(self._prefix, session.layout)
        self._tail = Tail(session, places, self._what)
        self._front = Front(
            session, places, self._tail, self._what, max_deliveries=self.max_deliveries, bury=self._bury
        )
        self._claims = Claims(session, places, self._front, name, max_deliveries=self.max_deliveries, bury=self._bury)

    @property
    def dead(self) -> Queue:
        """The queue of the items that were delivered ``max_deliveries`` times in vain: ``{name}.dead``."""
        return Queue(self._session, f"{self.name}.dead")

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
            Unavailable: nobody answered: 3 s after the time is over at the latest.
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

    # ---- claiming

    @overload
    def claim(self, timeout: None = None) -> Claim: ...

    @overload
    def claim(self, timeout: float | None) -> Claim | None: ...

    def claim(self, timeout: float | None = None) -> Claim | None:
        """Claim the first item, to work on it; wait for one as `get` does, then return ``None``.

        The item is nobody else's until the claim is acknowledged (then it is gone), released (then it is at its old
        place again), or its process's lease has ended (likewise). So an item whose worker dies is delivered again: at
        least once, not exactly once. One round trip while there are items. A claim that is cancelled in the very
        moment is given back from the background, and counts as a delivery.

        Raises:
            Unavailable: nobody answered: 3 s after the time is over at the latest. Nothing stays claimed.
        """
        return self._run(self._claim(timeout))

    @overload
    async def claim_async(self, timeout: None = None) -> Claim: ...

    @overload
    async def claim_async(self, timeout: float | None) -> Claim | None: ...

    async def claim_async(self, timeout: float | None = None) -> Claim | None:
        """`claim`, without blocking the event loop."""
        return await self._run_async(self._claim(timeout))

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
        """Tell whether there is nothing to get or claim at this moment. One round trip if there is one, else two."""
        return self._run(self._empty())

    async def empty_async(self) -> bool:
        """`empty`, without blocking the event loop."""
        return await self._run_async(self._empty())

    def size(self) -> int:
        """Return the number of items that wait. Two round trips; etcd counts them, at about 0.2 s a million."""
        return self._run(self._size())

    async def size_async(self) -> int:
        """`size`, without blocking the event loop."""
        return await self._run_async(self._size())

    def claimed(self) -> int:
        """Return the number of items that are claimed. One round trip."""
        return self._run(self._claimed())

    async def claimed_async(self) -> int:
        """`claimed`, without blocking the event loop."""
        return await self._run_async(self._claimed())

    def __len__(self) -> int:
        return self._run(self._size())

    def __bool__(self) -> bool:
        return not self._run(self._empty())

    def clear(self) -> None:
        """Remove all items, at once, the claimed ones too. One round trip."""
        self._run(self._clear())

    async def clear_async(self) -> None:
        """`clear`, without blocking the event loop."""
        await self._run_async(self._clear())

    # ---- the algorithms: putting

    def _put(self, values: Sequence[Any]) -> Operation[None]:
        data = [self._encode(value) for value in values]  # all of them, before anything is sent
        yield from self._agree()
        yield from self._tail.put(data)

    def _agree(self) -> Operation[None]:
        if self.max_deliveries is None:
            yield from agree(self._session, self.kind, self.name)
            return
        yield from agree(self._session, self.kind, self.name, {"max_deliveries": self.max_deliveries})
        yield from self.dead._agree()  # now, and not when the first item is lost to it

    # ---- the algorithms: getting and claiming

    def _get(self, n: int, timeout: float | None) -> Operation[list[Any]]:
        deadline: float | None = yield Deadline(check_timeout(timeout))
        yield from self._agree()
        found = yield from self._take(n)
        if not found and timeout != 0:
            found = (yield from self._wait(partial(self._take, n), self._take_fresh, deadline)) or []
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

    def _claim(self, timeout: float | None) -> Operation[Claim | None]:
        deadline: float | None = yield Deadline(check_timeout(timeout))
        yield from self._agree()
        claim = yield from self._claims.first()
        if claim is None and timeout != 0:
            claim = yield from self._wait(self._claims.first, self._claims.fresh, deadline)
        return claim

    def _wait(
        self,
        pick: Callable[[], Operation[T | None]],
        pick_fresh: Callable[[kv.KeyValue], Operation[T | None]],
        deadline: float | None,
    ) -> Operation[T | None]:
        """Wait for an item. Watches that are live *before* the queue is looked at again miss none.

        One that is put or given back is told to one of the process's waiters; that the lease of another process has
        ended, whose claims are free now, to all.
        """
        items, sessions = self._places.all_items, self._session.layout.sessions
        events: Sequence[kv.Event] = ()
        deaths: Watching = yield Watch(sessions, kv.prefix_end(sessions))
        try:
            watching: Watching = yield Watch(items, kv.prefix_end(items), hand_out=True)
            try:
                while True:
                    found = yield from pick()
                    if found:
                        return found
                    if not (yield from self._told(watching, deaths, deadline)):
                        return (yield from pick())  # the one who was told may be unable to take it
                    events = watching.take()
                    if len(events) == 1:
                        found = yield from pick_fresh(events[0].kv)
                        if found:
                            return found
            except BaseException:
                watching.offer(events)  # told to us alone: whoever waits next has to look instead
                raise
            finally:
                watching.close()
        finally:
            deaths.close()

    def _told(self, watching: Watching, deaths: Watching, deadline: float | None) -> Operation[bool]:
        """Wait until there may be an item for us; tell whether that came in time."""
        while (yield Await(deadline, (watching, deaths))):
            ended = deaths.take() if deaths.is_set() else None
            if watching.is_set() or (ended is not None and (not ended or any(map(kv.is_delete, ended)))):
                return True
        return False

    def _take_fresh(self, item: kv.KeyValue) -> Operation[list[Any]]:
        """Take the item that a watch told of, if nothing older is left."""
        picked = yield from self._front.pick_fresh(item, self._removing, undo=self._give_back)
        return (yield from self._taken(*picked)) if picked is not None else []

    def _take(self, n: int) -> Operation[list[Any]]:
        """Take the first items that are free, up to ``n``; none if there is none."""
        picked = yield from self._front.pick(n, self._removing, undo=self._give_back)
        return (yield from self._taken(*picked)) if picked is not None else []

    def _removing(self, keys: Sequence[bytes], delivered: bool) -> Sequence[kv.Op]:  # noqa: FBT001 - an `Act`
        removes = [kv.delete(key, with_value=True) for key in keys]
        return (*removes, *(kv.delete(self._places.deliveries_of(key)) for key in keys if delivered))

    def _taken(self, keys: Sequence[bytes], outcome: Outcome) -> Operation[list[Any]]:
        """Return the values of what was taken, up to the first that cannot be had here: the rest goes back."""
        values: list[Any] = []
        raw: Sequence[bytes] | None = None
        try:
            raw = yield from self._raw(keys, outcome)
            for value in raw:
                values.append(self._decode(value))  # noqa: PERF401 - up to the bad one
        except OutcomeUnknown:
            raise
        except BaseException as error:
            if raw is None:
                yield Later(partial(self._give_back, keys, outcome))
            else:
                yield Later(partial(self._tail.put, raw[len(values) :]))
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

    def _give_back(self, keys: Sequence[bytes], outcome: Outcome) -> Operation[None]:
        """Put what was taken in vain at the end: its old place may be before the head by now."""
        yield from self._tail.put((yield from self._raw(keys, outcome)))

    def _bury(self, item: bytes) -> Operation[None]:
        """Move an item that was delivered too often to the dead ones, unless it is claimed or gone."""
        found = (yield from range_(kv.read(item), seen=0)).kvs
        if not found:
            return
        raw, dead = found[0].value, self.dead
        with contextlib.suppress(SkywardEtcdError):  # what cannot be read here cannot be read there either
            raw = dead._encode(self._decode(raw))
        claim, deliveries = self._places.claim_of(item), self._places.deliveries_of(item)
        is_dead = (kv.present(item), kv.absent(claim), kv.enough_writes(deliveries, self.max_deliveries or 1))
        yield from dead._tail.take_over(raw, Alternative(is_dead, (kv.delete(item), kv.delete(deliveries))))

    # ---- the algorithms: looking

    def _empty(self) -> Operation[bool]:
        yield from self._agree()
        return not (yield from self._front.find()).candidates

    def _size(self) -> Operation[int]:
        yield from self._agree()
        items, claims = self._places.all_items, self._places.all_claims
        start = self._places.items((yield from read_number(self._places.head)))
        counts = kv.nested(
            then=[
                kv.get(start, kv.prefix_end(items), count_only=True),
                kv.get(claims, kv.prefix_end(claims), count_only=True),
            ]
        )
        reply = yield from txn_repeatable(kv.txn(then=[counts]))
        there, claimed = (answer.response_range.count for answer in reply.responses[0].response_txn.responses)
        return int(there - claimed)

    def _claimed(self) -> Operation[int]:
        yield from self._agree()
        claims = self._places.all_claims
        return (yield from range_(kv.read(claims, kv.prefix_end(claims), count_only=True), seen=0)).count

    def _clear(self) -> Operation[None]:
        yield from self._agree()
        places = self._places
        everything = [
            kv.delete(prefix, kv.prefix_end(prefix))
            for prefix in (places.all_items, places.all_claims, places.all_deliveries)
        ]
        yield from prove([Alternative((), everything)], what=self._what)

    # ---- values

    def _encode(self, value: Any) -> bytes:
        # A signed value is bound to its queue: the page that it comes into is not known yet.
        return self._session.codec.encode(value, key=self._prefix, what=self._what)

    def _decode(self, data: bytes) -> Any:
        return self._session.codec.decode(data, key=self._prefix)
