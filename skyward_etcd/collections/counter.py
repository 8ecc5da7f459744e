"""An exact counter that does not slow down when many count.

Each session adds to a key of its own, its *shard*, and reads the sum of all shards in the same transaction: the
total at that revision is exact, and no other increment returns the same one (unless it adds 0).
"""

from __future__ import annotations

import contextlib
import logging
import operator
from collections import deque
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

from skyward_etcd.collections.base import Collection
from skyward_etcd.errors import (
    Compacted,
    HoldLost,
    NoSpace,
    OutcomeUnknown,
    QuorumLost,
    SkywardEtcdError,
    Unavailable,
)
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import once, once_by, range_
from skyward_etcd.ops.effects import Await, Identify, Identity, Operation, Watch
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, Guard, prove
from skyward_etcd.session import caller
from skyward_etcd.session.signals import Mutex, Signal

__all__ = ["Counter"]

log = logging.getLogger("skyward_etcd.counter")

_FOLD_FROM = 16
"""Shards of one counter from which on it is looked whether some are of sessions that are gone."""
_FOLD_AT_ONCE = 32
_MOST_BITS = 1024


class Counter(Collection):
    """A number that all nodes add to.

    Every increment is exact and applied exactly once, also when its answer is lost, at one round trip however many
    count at once. Increments of several threads of a process travel together.

    >>> c = sky.counter("images")
    >>> c.increment(), c.increment(10), c.value
    (1, 11, 11)
    """

    kind = "counter"
    is_data = True

    # ---- reading

    @property
    def value(self) -> int:
        """The total: linearizable if the handle is strong, else what the nearest member has. One round trip."""
        return self._run(self._value())

    async def value_async(self) -> int:
        """`value`, without blocking the event loop."""
        return await self._run_async(self._value())

    def __int__(self) -> int:
        return self.value

    def get(self) -> int:
        """`value`, under the name that Skyward 0.11 and later give it."""
        return self.value

    async def get_async(self) -> int:
        """`get`, without blocking the event loop."""
        return await self.value_async()

    # ---- counting

    def increment(self, n: int = 1) -> int:
        """Add ``n`` and return the new total. One round trip under any contention.

        Raises:
            OutcomeUnknown: the answer was lost, and so was the way to find out; it was added once or not at all.
        """
        return self._run(self._add(self._number(n), caller.THREADS))

    async def increment_async(self, n: int = 1) -> int:
        """`increment`, without blocking the event loop."""
        return await self._run_async(self._add(self._number(n), caller.line_of_loop()))

    def decrement(self, n: int = 1) -> int:
        """Subtract ``n`` and return the new total, like `increment`."""
        return self._run(self._add(-self._number(n), caller.THREADS))

    async def decrement_async(self, n: int = 1) -> int:
        """`decrement`, without blocking the event loop."""
        return await self._run_async(self._add(-self._number(n), caller.line_of_loop()))

    add = increment
    add_async = increment_async

    def reset(self, value: int = 0) -> None:
        """Set the total to ``value``, atomically: no increment is half in it. One round trip."""
        self._run(self._reset(self._number(value)))

    async def reset_async(self, value: int = 0) -> None:
        """`reset`, without blocking the event loop."""
        await self._run_async(self._reset(self._number(value)))

    # ---- the algorithms

    def _value(self) -> Operation[int]:
        yield from agree(self._session, self.kind, self.name)
        request = kv.read(self._prefix, kv.prefix_end(self._prefix), serializable=not self._strong)
        reply = yield from range_(request, seen=self._session.seen)
        return _total(reply.kvs)

    def _reset(self, value: int) -> Operation[None]:
        yield from agree(self._session, self.kind, self.name)
        wipe = kv.delete(self._shards, kv.prefix_end(self._shards))
        yield from prove(
            [Alternative((), (wipe, kv.put(self._base, b"%d" % value)))], guard=self.guard, what=self._what
        )

    def _add(self, n: int, line: caller.Line) -> Operation[int]:
        """Add through this session's shard (one for its threads, one for each event loop), together with who adds now.

        Whoever finds no leader leads: it sends what all have added, tells them their totals, and hands over.
        """
        yield from agree(self._session, self.kind, self.name)
        identity: Identity = yield Identify()
        shard: _Shard = identity.notes.get((self._prefix, line)) or self._shard_of(identity, line)
        ticket = shard.enter(n, self.guard)
        try:
            while not ticket.is_done:
                if not ticket.leads:
                    with contextlib.suppress(QuorumLost):  # who leads hears it too, and tells us what became of ours
                        yield Await(None, (ticket.signal,))
                    continue
                batch = shard.take()
                try:
                    totals = yield from self._commit(shard, batch)
                except Exception as error:
                    shard.fail(batch, error, by=ticket)
                    raise
                except BaseException:  # only this caller was cancelled: the others' increments go on
                    shard.interrupt(batch, by=ticket)
                    raise
                shard.finish(batch, totals)
        except BaseException:
            shard.leave(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        if shard.seen_shards >= shard.fold_from:
            try:
                yield from self._fold(shard)
            except SkywardEtcdError as error:  # the increment is done; somebody else may tidy up
                log.debug("%s: not folded: %s", self._what, error)
        return ticket.total

    def _shard_of(self, identity: Identity, line: caller.Line) -> _Shard:
        suffix = "" if line is caller.THREADS else f".{identity.serial()}"
        shard = _Shard(self._shards + f"{identity.id}{suffix}".encode())
        return identity.notes.setdefault((self._prefix, line), shard)  # type: ignore[no-any-return]

    def _commit(self, shard: _Shard, batch: Sequence[_Ticket]) -> Operation[list[int]]:
        """Add the amounts, in their order, and return the total after each.

        Only this session writes the shard. If it is not as we left it, an earlier try of this very request went
        through, or a reset or a fold has removed it. What is known of the shard changes last, so that a batch whose
        leader was interrupted anywhere in here can be sent again.
        """
        if shard.in_doubt is not None and shard.in_doubt is not batch:
            yield from self._settle(shard)
        amounts = [ticket.n for ticket in batch]
        guard = batch[0].guard
        everything = kv.get(self._prefix, kv.prefix_end(self._prefix))
        while True:
            while not shard.mod_revision:
                yield from self._create(shard)
            value = shard.value + sum(amounts)
            request = kv.txn(
                (kv.modified_at(shard.key, shard.mod_revision), *(guard.compares if guard else ())),
                (kv.put(shard.key, b"%d" % value), everything),
                (kv.get(shard.key),),
            )
            doubt = shard.in_doubt is batch
            shard.in_doubt = batch
            try:
                reply, lost = yield from once_by(shard.key, shard.mod_revision, request, what=self._what)
            except NoSpace as refused:
                if doubt:
                    raise OutcomeUnknown(f"{self._what}: an earlier try may have been applied: {refused}") from refused
                shard.in_doubt = None
                raise
            doubt = doubt or lost
            if reply.succeeded:
                kvs: Sequence[kv.KeyValue] = reply.responses[1].response_range.kvs
                shard.seen_shards = len(kvs)
                shard.is_now(value, reply.header.revision)
                return _running(_total(kvs), amounts)
            found = reply.responses[0].response_range.kvs
            if guard and found and found[0].mod_revision == shard.mod_revision:  # so it was the guard, and for good
                shard.in_doubt = None
                raise HoldLost(guard.refusal)
            past = (yield from self._applied(shard, found)) if doubt else None
            shard.is_now(kv.number(found), found[0].mod_revision if found else 0)
            if past is not None:
                return _running(_total(past), amounts)

    def _applied(self, shard: _Shard, found: Sequence[kv.KeyValue]) -> Operation[Sequence[kv.KeyValue] | None]:
        """Return the counter as it was when a try in doubt was applied; ``None`` if it was not.

        Raises:
            OutcomeUnknown: it cannot be found out; that nobody answered now says nothing about then.
        """
        try:
            if found and found[0].create_revision <= shard.mod_revision:
                applied_at = found[0].mod_revision
            else:
                applied_at = yield from self._put_after(shard)
            return (yield from self._all_at(applied_at)) if applied_at else None
        except Unavailable as lost:
            raise OutcomeUnknown(f"{self._what}: the answer was lost, and it may have been added: {lost}") from lost

    def _create(self, shard: _Shard) -> Operation[None]:
        """Begin a shard with 0: one round trip more for a session's first increment, and the first after a reset.

        "The key does not exist" would be no guard for an increment: it holds again after a reset, and a repetition
        would count what the reset has wiped a second time.
        """
        begin = Alternative((kv.absent(shard.key),), (kv.put(shard.key, b"0"),))
        outcome = yield from prove([begin], otherwise=(kv.get(shard.key),), what=self._what)
        if outcome.taken is not None:
            shard.is_now(0, outcome.revision)
        elif outcome.responses:
            found = outcome.responses[0].response_range.kvs[0]
            shard.is_now(kv.number_in(found), found.mod_revision)

    def _settle(self, shard: _Shard) -> Operation[None]:
        """Find out what became of a batch whose leader left while it was under way, and keep it from coming later."""
        request = kv.txn(
            (kv.modified_at(shard.key, shard.mod_revision),),
            (kv.put(shard.key, b"%d" % shard.value),),
            (kv.get(shard.key),),
        )
        reply, _ = yield from once(request, what=self._what)
        if reply.succeeded:
            shard.is_now(shard.value, reply.header.revision)
        else:
            found = reply.responses[0].response_range.kvs
            shard.is_now(kv.number(found), found[0].mod_revision if found else 0)

    def _put_after(self, shard: _Shard) -> Operation[int]:
        """Return the revision at which our shard was written after we last knew it, or 0 if it was removed instead."""
        watching = yield Watch(shard.key, start=shard.mod_revision + 1)
        try:
            yield Await(None, (watching,))
            events: list[kv.Event] = watching.take()
        finally:
            watching.close()
        if not events:
            raise OutcomeUnknown(f"{self._what}: the answer was lost, and the history that would tell is compacted")
        return events[0].kv.mod_revision if not kv.is_delete(events[0]) else 0

    def _fold(self, shard: _Shard) -> Operation[None]:
        """Move what ended sessions have added into the base, so that the number of shards follows that of sessions."""
        reply = yield from range_(kv.read(self._prefix, kv.prefix_end(self._prefix)), seen=0)
        sessions = self._session.layout.sessions
        live = yield from range_(kv.read(sessions, kv.prefix_end(sessions), keys_only=True), seen=0)
        alive = {found.key.removeprefix(sessions) for found in live.kvs}
        base = next((found for found in reply.kvs if found.key == self._base), None)
        dead = [found for found in reply.kvs if found.key != self._base and self._session_of(found.key) not in alive][
            :_FOLD_AT_ONCE
        ]
        shard.fold_from = max(_FOLD_FROM, 2 * (len(reply.kvs) - len(dead)))
        if not dead:
            return
        compares = [kv.modified_at(self._base, base.mod_revision if base else 0)]
        for found in dead:
            compares.append(kv.modified_at(found.key, found.mod_revision))
            compares.append(kv.absent(sessions + self._session_of(found.key)))
        total = _total(dead) + (kv.number_in(base) if base else 0)
        # Sent once more or refused because somebody else folded: either way the sum stays what it is.
        request = kv.txn(compares, [kv.put(self._base, b"%d" % total), *(kv.delete(found.key) for found in dead)])
        yield from once(request, what=self._what)

    def _all_at(self, revision: int) -> Operation[Sequence[kv.KeyValue]]:
        try:
            reply = yield from range_(kv.read(self._prefix, kv.prefix_end(self._prefix), revision=revision), seen=0)
        except Compacted:
            raise OutcomeUnknown(f"{self._what}: it was added, but the answer with the total is lost") from None
        return reply.kvs

    def _session_of(self, shard: bytes) -> bytes:
        return shard.removeprefix(self._shards).partition(b".")[0]

    def _number(self, n: int) -> int:
        if type(n) is not int:
            if isinstance(n, bool) or not isinstance(n, SupportsIndex):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{self._what} counts in whole numbers, not {n!r}")
            n = operator.index(n)
        if n.bit_length() > _MOST_BITS:
            raise ValueError(f"{self._what} takes numbers of up to {_MOST_BITS} bits, not {n.bit_length()}")
        return n

    @property
    def _base(self) -> bytes:
        return self._prefix + b"base"

    @property
    def _shards(self) -> bytes:
        return self._prefix + b"shards/"


class _Ticket:
    """One caller's increment on its way."""

    __slots__ = ("error", "guard", "is_done", "is_gone", "leads", "n", "signal", "total")

    def __init__(self, n: int, guard: Guard | None) -> None:
        self.n = n
        self.guard = guard
        self.signal = Signal()
        self.leads = False
        self.is_gone = False
        """Cancelled: nobody waits for its total any more."""
        self.is_done = False
        self.total = 0
        self.error: BaseException | None = None

    def finish(self, total: int = 0, error: BaseException | None = None) -> None:
        self.total, self.error, self.is_done = total, error, True
        self.signal.set()


class _Shard:
    """What this session has added to one counter, and who in this process is adding now."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.value = 0
        self.mod_revision = 0
        self.in_doubt: Sequence[_Ticket] | None = None
        """The batch that was sent and not answered."""
        self.seen_shards = 0
        self.fold_from = _FOLD_FROM
        self._mutex = Mutex()
        self._waiting: deque[_Ticket] = deque()
        self._interrupted: Sequence[_Ticket] = ()
        self._is_led = False

    def is_now(self, value: int, mod_revision: int) -> None:
        """Take note of the shard's state; nothing is in doubt any more."""
        self.value, self.mod_revision, self.in_doubt = value, mod_revision, None

    def enter(self, n: int, guard: Guard | None) -> _Ticket:
        ticket = _Ticket(n, guard)
        with self._mutex:
            self._waiting.append(ticket)
            if not self._is_led:
                self._is_led = ticket.leads = True
        return ticket

    def take(self) -> Sequence[_Ticket]:
        """Return the batch to send: one whose leader was interrupted, else all who wait, up to another guard."""
        with self._mutex:
            batch, self._interrupted = self._interrupted, ()
            if batch:
                return batch
            first = self._waiting.popleft()
            together = [first]
            while self._waiting and self._waiting[0].guard is first.guard:
                together.append(self._waiting.popleft())
            return together

    def finish(self, batch: Sequence[_Ticket], totals: Sequence[int]) -> None:
        for ticket, total in zip(batch, totals, strict=True):
            ticket.finish(total)
        self._hand_over()

    def fail(self, batch: Sequence[_Ticket], error: Exception, *, by: _Ticket) -> None:
        for ticket in batch:
            ticket.finish(error=error if ticket is not by else None)
        self._hand_over()

    def interrupt(self, batch: Sequence[_Ticket], *, by: _Ticket) -> None:
        """Keep the batch of a leader that leaves for the next one: as it was if it may have been applied."""
        with self._mutex:
            by.is_gone = True
            if self.in_doubt is batch:
                self._interrupted = batch
            else:
                self._waiting.extendleft(ticket for ticket in reversed(batch) if not ticket.is_gone)

    def leave(self, ticket: _Ticket) -> None:
        """Take out a caller that was cancelled."""
        with self._mutex:
            ticket.is_gone = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        if ticket.leads and not ticket.is_done:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._mutex:
            heirs = [ticket for ticket in self._interrupted if not ticket.is_gone]
            if not heirs:
                # Nobody waits for the interrupted batch: the next one finds out what became of it, and goes on.
                self._interrupted = ()
                heirs = list(self._waiting)
            self._is_led = bool(heirs)
            if not heirs:
                return
            heirs[0].leads = True
        heirs[0].signal.set()


def _total(kvs: Iterable[kv.KeyValue]) -> int:
    return sum(map(kv.number_in, kvs))


def _running(total: int, amounts: Sequence[int]) -> list[int]:
    """Return the total after each amount, the last being ``total``."""
    totals: list[int] = []
    for n in reversed(amounts):
        totals.append(total)
        total -= n
    return totals[::-1]
