"""A barrier that all of a generation pass, or none.

Each participant puts a key of its own, on its lease, under the current generation, and all wait for one key, the
*gate*. Whoever completes the generation opens the gate; whoever gives up, or notices that a participant has died,
moves it on as broken. Both compare the gate, so that only one of them happens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from skyward_etcd.collections.base import Collection, check_count, check_timeout, who
from skyward_etcd.errors import BrokenBarrier, Compacted, CorruptValue, LeaseNotFound, OutcomeUnknown, QuorumLost
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import call_in_doubt, not_done, range_, txn_repeatable
from skyward_etcd.ops.effects import Await, Deadline, Identify, Identity, Later, Operation, Watch, Watching
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, Outcome, prove
from skyward_etcd.session.session import Session

__all__ = ["Barrier", "read_gate"]

_REMEMBERED = 32
"""Broken generations that the gate names, for waiters that come to look late."""
_MOST_COMPARED = 100
"""Up to so many arrivals are compared when the gate is opened; etcd allows 128 compares unless set otherwise."""


class Barrier(Collection):
    """A point that ``n`` callers reach together; then the next generation begins.

    It counts calls of `wait`, so two threads of a process are two participants. If one of them times out, is
    cancelled, or its process dies, the generation is broken for all, at once, and the next one starts fresh.

    >>> sky.barrier("epoch", n=1).wait(timeout=30)
    0
    """

    kind = "barrier"

    def __init__(self, session: Session, name: str, n: int) -> None:
        super().__init__(session, name)
        self.n = check_count(n, what=f"barrier {name!r}: n")

    def wait(self, timeout: float | None = None) -> int:
        """Wait until ``n`` callers wait; return a number from 0 to n - 1 that is different for each of them.

        One round trip, two for the last to arrive, and a wake-up. ``timeout`` in seconds; ``None``: for ever.

        Raises:
            BrokenBarrier: a participant timed out (this one included), left, or died.
            Unavailable: nobody answered in time; the generation is broken for the others too.
        """
        return self._run(self._wait(timeout))

    async def wait_async(self, timeout: float | None = None) -> int:
        """`wait`, without blocking the event loop."""
        return await self._run_async(self._wait(timeout))

    def abort(self) -> None:
        """Break the barrier for all who wait and all who come, until somebody calls `reset`. Two round trips.

        For a participant that cannot go on: nobody shall wait for it.
        """
        self._run(self._abort())

    async def abort_async(self) -> None:
        """`abort`, without blocking the event loop."""
        await self._run_async(self._abort())

    def reset(self) -> None:
        """Break the generation that is waited for, if any, and begin the next; also after an `abort`."""
        self._run(self._reset())

    async def reset_async(self) -> None:
        """`reset`, without blocking the event loop."""
        await self._run_async(self._reset())

    def waiting(self) -> int:
        """Return how many wait now. Two round trips."""
        return self._run(self._waiting())

    async def waiting_async(self) -> int:
        """`waiting`, without blocking the event loop."""
        return await self._run_async(self._waiting())

    # ---- the algorithms

    def _wait(self, timeout: float | None) -> Operation[int]:
        deadline: float | None = yield Deadline(check_timeout(timeout))
        yield from agree(self._session, self.kind, self.name, {"n": self.n})
        sessions = self._session.layout.sessions
        # Both are live before we arrive: neither the opening nor a death can go unnoticed.
        gate: _Gate | None = None
        moves: Watching = yield Watch(self._gate_key)
        try:
            deaths: Watching = yield Watch(sessions, kv.prefix_end(sessions))
            try:
                while True:
                    gate = None
                    gate, rank = yield from self._arrive()
                    now = (yield from self._open(gate)) if rank == self.n - 1 else gate
                    yield from self._pass(gate, now, deadline, moves, deaths)
                    if rank < self.n:
                        return rank
                    # Others completed that generation without us: we belong to the next.
            except BrokenBarrier:
                raise
            except BaseException as error:
                if gate is not None:
                    call_in_doubt(error)  # the others may have passed with us
                    self._leaves(gate, error)
                    yield Later(partial(self._break, gate))
                raise
            finally:
                deaths.close()
        finally:
            moves.close()

    def _arrive(self) -> Operation[tuple[_Gate, int]]:
        """Put our arrival under the current generation. Return its gate, and how many had arrived before us."""
        gate = self._known_gate()
        left: _Gate | None = self._session.notes.get(self._left_key)
        if left is not None and left.generation >= gate.generation:
            # A call of this process was cancelled, and will break that generation: what comes now is of the next.
            yield from self._break(left)
            gate = yield from self._read_gate()
        elif gate.is_aborted:  # it may have been reset since
            gate = yield from self._read_gate()
        while True:
            if gate.is_aborted:
                raise BrokenBarrier(f"{self._what} was aborted: nobody passes until somebody calls reset()")
            identity: Identity = yield Identify()
            arrivals = self._arrivals(gate)
            mine = arrivals + f"{identity.id}.{identity.serial():09d}".encode()
            everyone = kv.get(arrivals, kv.prefix_end(arrivals), keys_only=True)
            arrive = Alternative(
                (gate.is_unmoved(self._gate_key),), (kv.put(mine, self._who(), lease=identity.lease), everyone)
            )
            try:
                outcome = yield from prove(
                    [arrive],
                    otherwise=(kv.get(self._gate_key),),
                    undo=partial(self._leave, gate),
                    identity=identity,
                    what=self._what,
                )
            except LeaseNotFound:
                continue
            except OutcomeUnknown as error:  # of our arrival, which breaks the generation if it is there
                raise not_done(f"{self._what}: could not be waited for", error) from error
            except BaseException as error:  # we may have arrived
                self._leaves(gate, error)
                raise
            if outcome.taken is None:
                gate = yield from self._read_gate()
                continue
            there = yield from self._there(gate, outcome)
            before = [key for _, key in sorted((other.create_revision, other.key) for other in there)]
            return replace(gate, arrivals=before), before.index(mine)

    def _leaves(self, gate: _Gate, error: BaseException) -> None:
        """Remember that this process will break a generation, unless that went with the cluster."""
        if not isinstance(error, QuorumLost):
            self._session.notes[self._left_key] = gate

    def _there(self, gate: _Gate, outcome: Outcome) -> Operation[Iterable[kv.KeyValue]]:
        """Return the arrivals as they were when ours was put."""
        if outcome.responses is not None:
            return outcome.responses[1].response_range.kvs
        arrivals = self._arrivals(gate)
        past = kv.read(arrivals, kv.prefix_end(arrivals), keys_only=True, revision=outcome.revision)
        try:
            return (yield from range_(past, seen=0)).kvs
        except Compacted:
            yield from self._break(gate)
            raise BrokenBarrier(f"{self._what}: the answer was lost, and who was there is no longer known") from None
        except BaseException:
            yield Later(partial(self._break, gate))
            raise

    def _leave(self, gate: _Gate, _: Outcome) -> Operation[None]:
        """Undo an arrival that was cancelled: the generation cannot be complete without it."""
        yield from self._break(gate)

    def _pass(
        self, gate: _Gate, now: _Gate, deadline: float | None, moves: Watching, deaths: Watching
    ) -> Operation[None]:
        """Wait until the gate has moved beyond this generation; break it when somebody dies or the time is over."""
        in_time = True
        while now.generation <= gate.generation:
            in_time = yield Await(deadline, (moves, deaths))
            if not in_time or (deaths.is_set() and (yield from self._has_lost_one(gate, deaths.take()))):
                yield from self._break(gate)
                now = yield from self._read_gate()
            elif moves.is_set():
                now = self._newest(moves.take()) or (yield from self._read_gate())
        if now.tells_broken(gate.generation):
            why = "a participant died, left, or timed out" if in_time else f"not all {self.n} came in time"
            raise BrokenBarrier(f"{self._what}: generation {gate.generation} is broken for all: {why}")

    def _has_lost_one(self, gate: _Gate, events: Sequence[kv.Event]) -> Operation[bool]:
        """Tell whether a session that ended had arrived. All that it held went in one revision: look just before."""
        arrivals = self._arrivals(gate)
        if not events:  # the watch may have missed some: at least those whom we saw must be there
            reply = yield from range_(kv.read(arrivals, kv.prefix_end(arrivals), keys_only=True), seen=0)
            return not {found.key for found in reply.kvs}.issuperset(gate.arrivals)
        for event in events:
            if kv.is_delete(event):
                its = arrivals + event.kv.key.rpartition(b"/")[2] + b"."
                before = kv.read(its, kv.prefix_end(its), count_only=True, revision=event.kv.mod_revision - 1)
                try:
                    if (yield from range_(before, seen=0)).count:
                        return True
                except Compacted:
                    return True  # it cannot be told any more
        return False

    def _open(self, gate: _Gate) -> Operation[_Gate]:
        """Let the generation pass, if all who arrived still live, and return the gate as it is then.

        Sent twice, it does nothing the second time.
        """
        compares = [gate.is_unmoved(self._gate_key)]
        if self.n <= _MOST_COMPARED:
            compares += [kv.present(arrival) for arrival in gate.arrivals]
        opened = _Gate(gate.generation + 1, gate.broken)
        request = kv.txn(compares, self._moving(gate, opened), (kv.get(self._gate_key),))
        reply = yield from txn_repeatable(request)
        revision = reply.header.revision
        if reply.succeeded:
            return self._remember(replace(opened, mod_revision=revision, read_at=revision))
        return self._found(reply.responses[0].response_range.kvs, revision)

    def _break(self, gate: _Gate) -> Operation[None]:
        """Move the gate on as broken, if it has not moved. Sent twice, it does nothing the second time."""
        yield from self._move_on(gate, is_aborted=False)

    def _move_on(self, gate: _Gate, *, is_aborted: bool) -> Operation[bool]:
        broken = (*gate.broken, gate.generation)[-_REMEMBERED:]
        moving = self._moving(gate, _Gate(gate.generation + 1, broken, is_aborted))
        reply = yield from txn_repeatable(kv.txn((gate.is_unmoved(self._gate_key),), moving))
        return reply.succeeded

    def _moving(self, gate: _Gate, to: _Gate) -> tuple[kv.Op, ...]:
        arrivals = self._arrivals(gate)
        return kv.put(self._gate_key, to.text()), kv.delete(arrivals, kv.prefix_end(arrivals))

    def _abort(self) -> Operation[None]:
        """Move the gate on as aborted, wherever it is: a try that was applied, or another's, is seen by the next."""
        yield from agree(self._session, self.kind, self.name, {"n": self.n})
        while True:
            gate = yield from self._read_gate()
            if gate.is_aborted or (yield from self._move_on(gate, is_aborted=True)):
                return

    def _reset(self) -> Operation[None]:
        yield from agree(self._session, self.kind, self.name, {"n": self.n})
        gate = yield from self._read_gate()
        if gate.is_aborted or (yield from self._count(gate)):
            yield from self._break(gate)

    def _waiting(self) -> Operation[int]:
        yield from agree(self._session, self.kind, self.name, {"n": self.n})
        return (yield from self._count((yield from self._read_gate())))

    def _count(self, gate: _Gate) -> Operation[int]:
        arrivals = self._arrivals(gate)
        request = kv.read(arrivals, kv.prefix_end(arrivals), count_only=True)
        return (yield from range_(request, seen=0)).count

    # ---- the gate

    def _read_gate(self) -> Operation[_Gate]:
        reply = yield from range_(kv.read(self._gate_key), seen=0)
        return self._found(reply.kvs, reply.header.revision)

    def _found(self, found: Sequence[kv.KeyValue], revision: int) -> _Gate:
        gate = _Gate.read(found[0]) if found else _Gate(0)
        return self._remember(replace(gate, read_at=revision))

    def _newest(self, events: Sequence[kv.Event]) -> _Gate | None:
        puts = [event.kv for event in events if not kv.is_delete(event)]
        return self._remember(_Gate.read(puts[-1])) if puts else None

    def _known_gate(self) -> _Gate:
        known: _Gate | None = self._session.notes.get(self._prefix)
        return known or _Gate(0)

    def _remember(self, gate: _Gate) -> _Gate:
        if gate.read_at >= self._known_gate().read_at:
            self._session.notes[self._prefix] = gate
        return gate

    @property
    def _left_key(self) -> tuple[bytes, str]:
        return self._prefix, "left"

    @property
    def _gate_key(self) -> bytes:
        return self._prefix + b"gate"

    def _arrivals(self, gate: _Gate) -> bytes:
        return self._prefix + b"%09d/" % gate.generation

    def _who(self) -> bytes:
        return who(self._session.node)


def read_gate(found: kv.KeyValue) -> tuple[int, tuple[int, ...], bool]:
    """Return a gate's generation, those of late that broke, and whether this one has.

    Raises:
        CorruptValue: no barrier has written that.
    """
    try:
        state = json.loads(found.value)
        generation, broken, aborted = state["generation"], tuple(state["broken"]), state.get("aborted", False)
        if all(type(each) is int and each >= 0 for each in (generation, *broken)) and type(aborted) is bool:
            return generation, broken, aborted
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    key = found.key.decode(errors="replace")
    raise CorruptValue(f"{key} is {found.value[:64]!r}: not what this library writes there")


@dataclass(frozen=True, slots=True)
class _Gate:
    """The key that everybody waits for, as it was read."""

    generation: int
    broken: tuple[int, ...] = ()
    is_aborted: bool = False
    mod_revision: int = 0
    read_at: int = 0
    """The revision at which it was so."""
    arrivals: Sequence[bytes] = ()
    """Who had arrived when we did."""

    @classmethod
    def read(cls, found: kv.KeyValue) -> _Gate:
        return cls(*read_gate(found), found.mod_revision, read_at=found.mod_revision)

    def text(self) -> bytes:
        state = {"generation": self.generation, "broken": self.broken}
        return json.dumps(state | {"aborted": True} if self.is_aborted else state, separators=(",", ":")).encode()

    def tells_broken(self, generation: int) -> bool:
        """Tell whether a generation is broken, or so long ago that it is not known any more."""
        forgotten = len(self.broken) == _REMEMBERED and generation < self.broken[0]
        return generation in self.broken or forgotten

    def is_unmoved(self, key: bytes) -> kv.Compare:
        return kv.modified_at(key, self.mod_revision)
