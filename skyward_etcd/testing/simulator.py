"""Many processes on one simulated etcd, in virtual time: thousands of interleavings a second, each from its seed.

The third runner. It drives the very operations that the blocking and the asyncio runner drive, over a network that
loses requests and replies, delivers them late, and breaks streams, and for processes that pause, lose their leases
and die. Programs are ordinary coroutines over ordinary collections::

    with Simulation(seed=7, faults=Faults(lost_reply=0.1)) as simulation:
        process = simulation.process("a")
        task = simulation.spawn(process, Counter(process.as_session(), "steps").increment_async())
        simulation.run()
        assert task.result == 1

The idea is FoundationDB's deterministic simulation (Zhou et al., SIGMOD 2021) in small.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from skyward_etcd.config import Limits
from skyward_etcd.errors import (
    Compacted,
    NoSpace,
    OutcomeUnknown,
    SkywardEtcdError,
    Unavailable,
)
from skyward_etcd.ops.codec import Codec
from skyward_etcd.ops.effects import (
    Await,
    Backoff,
    Call,
    Deadline,
    Effect,
    Identify,
    Later,
    Now,
    Operation,
    Renounce,
    Watch,
)
from skyward_etcd.ops.layout import Layout
from skyward_etcd.ops.merge import Batch, Footprint, footprint, may_be_merged, puts
from skyward_etcd.ops.notes import Notes
from skyward_etcd.session.identity import Identity
from skyward_etcd.session.session import Session
from skyward_etcd.session.signals import Signal
from skyward_etcd.session.watch import Watches, Watching
from skyward_etcd.testing import linearizability
from skyward_etcd.testing.model import ModelEtcd
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import COMPACT, LEASE_GRANT, PUT, RANGE, TXN

__all__ = ["Cancelled", "Faults", "Process", "Simulation", "Stuck", "Task"]

T = TypeVar("T")
Teller = Callable[[Any, SkywardEtcdError | None], None]
"""What is told how a call has ended: a reply, or an error."""

_LIMITS = Limits()
_LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Faults:
    """How often things go wrong: probabilities for each call, or for each second of a process's life."""

    refused: float = 0.0
    """A call that certainly never left."""
    lost_request: float = 0.0
    """A call that never arrives; its caller learns it when its time is over."""
    late_request: float = 0.0
    """A call that arrives after its caller has given it up."""
    lost_reply: float = 0.0
    """A call that is applied, and whose answer is lost."""
    no_space: float = 0.0
    """A write that is answered with `NoSpace`: it is refused, or reaches the quota, and is applied nevertheless."""
    stale_read: float = 0.0
    """A serializable read that is answered by a member some revisions behind."""
    broken_stream: float = 0.0
    """Per second: the watch stream breaks, and what was under way on it is lost."""
    compaction: float = 0.0
    """Per second, for all: the history up to now is compacted away."""
    pause: float = 0.0
    """Per second: the process stands still, for up to twice the lease's TTL."""
    expiry: float = 0.0
    """Per second: the lease is gone, though the process renewed it."""
    death: float = 0.0
    """Per second: the process dies."""
    cancellation: float = 0.0
    """Per second: one of the process's tasks is cancelled."""


class Cancelled(BaseException):
    """What a cancelled task is thrown, as asyncio throws ``CancelledError``."""


class Died(BaseException):
    """Ends the tasks of a dead process without letting them ask for anything."""


class Stuck(AssertionError):
    """Tasks are left that nothing will ever wake."""


class Simulation:
    """One virtual world. The same seed and the same programs give the same history."""

    def __init__(self, seed: int, *, faults: Faults | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)  # noqa: S311 - a simulation wants to be predictable
        self.faults = faults or Faults()
        self.etcd = ModelEtcd()
        self.now = 0.0
        self.processes: list[Process] = []
        self.tasks: list[Task] = []
        self._owed: list[Task] = []
        self.history: list[linearizability.Operation] = []
        self.at_once = self.rng.choice((1, 2, _LIMITS.calls_at_once))
        """How many calls a process has under way before others travel together."""
        self.merged = 0
        """How often calls have travelled together."""
        self.scratch: dict[str, Any] = {}
        """For programs to leave notes to each other and to whoever judges them."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._ticks = itertools.count(1)
        self.etcd.on_events.append(self._tell_watches)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.die()

    def process(self, name: str) -> Process:
        """Add a process. It stands in for a `Session` wherever a collection wants one."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def spawn(self, process: Process, program: Coroutine[Any, Any, T], name: str = "") -> Task:
        """Begin a program in a process."""
        task = Task(self, process, program, name)
        self.tasks.append(task)
        self.soon(task.resumer())
        return task

    def clean_up(self, process: Process, make: Callable[[], Operation[None]]) -> None:
        """Do what a cancelled operation owes, until it gets through, as a session's janitor does."""

        async def work() -> None:
            while True:
                try:
                    return await process.run_async(make())
                except (Unavailable, NoSpace):
                    await self.sleep(1.0)
                except SkywardEtcdError:
                    return None

        task = Task(self, process, work(), "janitor")
        self._owed.append(task)
        self.soon(task.resumer())

    def run(self, *, until_s: float = _LONGEST_S) -> None:
        """Let everything happen until all programs have ended, faults included.

        Raises:
            Stuck: some cannot end.
        """
        self._chaos()
        while self._events and any(task.is_pending for task in self.tasks):
            at, _, action = heapq.heappop(self._events)
            if at > until_s:
                break
            self.now = at
            action()
        stuck = [task for task in self.tasks if task.is_pending]
        if stuck:
            raise Stuck(f"seed {self.seed}: still waiting at {self.now:.1f} s: {', '.join(map(str, stuck))}")

    def settle(self, for_s: float = 120.0) -> None:
        """Go on without programs: let late requests arrive and leases end."""
        until = self.now + for_s
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Have something happen later."""
        self.at(self.now + delay_s, action)

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Have something happen at a moment, after what was to happen then already."""
        heapq.heappush(self._events, (moment, next(self._sequence), action))

    def tasks_of(self, process: Process) -> list[Task]:
        """Return the programs of a process, and what they owe."""
        return [task for task in (*self.tasks, *self._owed) if task.process is process]

    def soon(self, action: Callable[[], None]) -> None:
        """Have something happen after a moment, in any order with what else happens then."""
        self.after(self.rng.uniform(0.0, 0.0002), action)

    def transit_s(self) -> float:
        """Return how long a message travels: mostly under a millisecond, now and then much longer."""
        return self.rng.expovariate(1 / 0.0005) if self.rng.random() < 0.97 else self.rng.uniform(0.0, 0.5)

    async def sleep(self, seconds: float) -> None:
        """For programs: let virtual time pass."""
        await _Asking(Await(self.now + seconds, ()))

    async def record(
        self, process: Process, call: str, arguments: tuple[Any, ...], running: Coroutine[Any, Any, T]
    ) -> T:
        """For programs: run an operation, and write it into the `history`.

        What ends with an error that leaves it open whether it was applied, or does not end, stays as unknown.
        """
        place = len(self.history)
        pending = linearizability.Operation(process.name, call, arguments, None, next(self._ticks), None)
        self.history.append(pending)
        try:
            result = await running
        except SkywardEtcdError as error:
            if isinstance(error, NoSpace) or (isinstance(error, Unavailable) and not error.maybe_applied):
                self.history[place] = _never(pending)
            elif not isinstance(error, (OutcomeUnknown, Unavailable)):
                self._finish(place, pending, type(error).__name__)
            raise
        self._finish(place, pending, result)
        return result

    def recorded(self) -> list[linearizability.Operation]:
        """Return the history for a checker."""
        return [operation for operation in self.history if operation.call]

    def _finish(self, place: int, pending: linearizability.Operation, result: Any) -> None:
        self.history[place] = linearizability.Operation(
            pending.process, pending.call, pending.arguments, result, pending.invoked, next(self._ticks)
        )

    def _tell_watches(self, revision: int, events: Sequence[pb.Event]) -> None:
        for process in self.processes:
            process.stream.tell(revision, events)

    def _chaos(self) -> None:
        """Each second, perhaps, something bad."""

        def every_second() -> None:
            if self.rng.random() < self.faults.compaction and self.etcd.revision > self.etcd.compacted:
                self.etcd.call(COMPACT, pb.CompactionRequest(revision=self.etcd.revision))
            for process in self.processes:
                if process.is_alive:
                    self._afflict(process)
            self.after(self.rng.uniform(0.0, 2.0), every_second)

        self.after(self.rng.uniform(0.0, 1.0), every_second)

    def _afflict(self, process: Process) -> None:
        happens, faults = self.rng.random, self.faults
        if happens() < faults.broken_stream:
            process.stream.break_()
        if happens() < faults.pause:
            process.pause(self.rng.uniform(0.0, 2 * _LIMITS.ttl_s))
        if happens() < faults.expiry:
            process.lose_lease()
        if happens() < faults.death:
            process.die()
        if happens() < faults.cancellation:
            pending = [task for task in self.tasks if task.is_pending and task.process is process]
            if pending:
                self.rng.choice(pending).cancel()


class Task:
    """One program under way."""

    def __init__(self, simulation: Simulation, process: Process, program: Coroutine[Any, Any, Any], name: str) -> None:
        self.process = process
        self.name = name
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_pending = True
        self.opening: Watching | None = None
        """A watch that is not confirmed yet: closed if the task does not wait for that."""
        self._simulation = simulation
        self._program = program
        self._turn = 0
        self._effect: object = None

    def cancel(self) -> None:
        """Throw `Cancelled` into the program, at whatever it waits for."""
        self._simulation.soon(self.resumer(error=Cancelled()))

    def teller(self) -> Teller:
        """Return what tells the program how the call that it makes now has ended, if it still waits for that then."""
        turn = self._turn
        return lambda result, error: self._resumer(turn, result, error)()

    def resumer(self, result: Any = None, error: BaseException | None = None) -> Callable[[], None]:
        """Return what lets the program go on, if it still waits for the same thing then."""
        return self._resumer(self._turn, result, error)

    def _resumer(self, turn: int, result: Any, error: BaseException | None) -> Callable[[], None]:
        def resume() -> None:
            if not self.is_pending or turn != self._turn:
                return
            wake_at = self.process.paused_until
            if wake_at > self._simulation.now:
                self._simulation.after(wake_at - self._simulation.now, resume)
                return
            self._step(result, error)

        return resume

    def _step(self, result: Any, error: BaseException | None) -> None:
        self._turn += 1
        opening, self.opening = self.opening, None
        if opening is not None and error is not None:
            opening.close()
        try:
            effect = self._program.throw(error) if error is not None else self._program.send(result)
        except StopIteration as stop:
            self.result, self.is_pending = stop.value, False
        except (Exception, Cancelled, Died) as raised:  # noqa: BLE001 - it is the program's, and reported as such
            self.error, self.is_pending = raised, False
        else:
            bounded = effect if isinstance(effect, _Bounded) else _Bounded(effect, math.inf)
            self._effect = bounded.effect
            self.process.perform(bounded.effect, self, bounded.ends)

    def abandon(self) -> None:
        """End the program of a dead process; nothing that it asks for is done."""
        self.is_pending = False
        for _ in range(100):
            try:
                self._program.throw(Died())
            except BaseException:  # noqa: BLE001 - nobody is left to hear it
                return

    def __str__(self) -> str:
        return f"{self.process.name}/{self.name} at {self._effect}"


class Process:
    """What a collection sees of a session, in the simulation."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = self.node = name
        self.layout = Layout("sim")
        self.codec = Codec()
        self.seen = 0
        self.notes = Notes()
        self.kept: dict[bytes, Any] = {}
        self.identity: Identity | None = None
        self.is_alive = True
        self.paused_until = 0.0
        self.stream = _Stream(simulation, self)
        self.watches = Watches(self)
        self.watches.travel_on(self.stream.send)
        self._simulation = simulation
        self._under_way = 0
        self._waiting: list[_Waiting] = []
        self._lease_ends = 0.0
        self._joined = Signal()
        self._is_joining = False

    def as_session(self) -> Session:
        """Return this process as what the collections' constructors are annotated with."""
        return cast("Session", self)

    def run(self, _operation: Operation[T]) -> T:
        """There are no threads here: use the collections' async methods."""
        raise TypeError("in a simulation, use the async methods")

    async def run_async(self, operation: Operation[T]) -> T:
        """Drive an operation in virtual time."""
        return cast("T", await _Driven(operation))

    def saw(self, revision: int) -> None:
        """Remember the highest revision."""
        self.seen = max(self.seen, revision)

    # ---- what may befall it

    def pause(self, for_s: float) -> None:
        """Stand still: tasks, renewals and deliveries wait."""
        self.paused_until = max(self.paused_until, self._simulation.now + for_s)

    def lose_lease(self) -> None:
        """Have etcd end the lease; the process learns it at its next renewal, or when a write is refused."""
        if self.identity is not None and self.identity.lease in self._simulation.etcd.leases:
            self._simulation.etcd.expire(self.identity.lease)

    def die(self) -> None:
        """End at once, between any two steps. The lease ends in its time."""
        if self.is_alive:
            self.is_alive = False
            for task in self._simulation.tasks_of(self):
                if task.is_pending:
                    task.abandon()

    # ---- what its tasks ask for

    def perform(self, effect: Effect, task: Task, ends: float) -> None:
        """Do what a task asks for, by a certain moment, and let it go on then."""
        simulation = self._simulation
        match effect:
            case Call():
                self._call(_Waiting(effect, task.teller(), ends))
            case Await(deadline, signals):
                self._wait(signals, deadline, task)
            case Watch(key, range_end, start, tell, hand_out, deletions):
                watching = self.watches.open(
                    key, range_end, start=start, hand_out=hand_out, deletions=deletions, tell=tell
                )
                self._watch(watching, task, ends)
            case Identify():
                self._identify(task)
            case Backoff(attempt, since, error):
                pause = simulation.rng.uniform(0.0, min(2.0, 0.05 * 2 ** (attempt - 2)))
                over = simulation.now + pause > min(since + _LIMITS.operation_s, ends)
                simulation.after(0.0 if over else pause, task.resumer(error=error if over else None))
            case Deadline(timeout):
                simulation.after(0.0, task.resumer(None if timeout is None else simulation.now + timeout))
            case Now():
                simulation.after(0.0, task.resumer(simulation.now))
            case Later(make):
                simulation.clean_up(self, make)
                simulation.after(0.0, task.resumer())
            case Renounce(identity):
                self._renounce(cast("Identity", identity))
                simulation.after(0.0, task.resumer())

    def _wait(self, signals: Sequence[Any], deadline: float | None, task: Task) -> None:
        simulation = self._simulation
        resume = task.resumer(result=True)

        def wake() -> None:
            for signal in signals:
                signal.disarm(wake)
            simulation.soon(resume)

        if not all(signal.arm(wake) for signal in signals):
            wake()
        if deadline is not None:
            simulation.after(max(0.0, deadline - simulation.now), task.resumer(result=False))

    def _watch(self, watching: Watching, task: Task, ends: float) -> None:
        simulation, resume = self._simulation, task.resumer(watching)
        give_up = task.resumer(error=Unavailable("no member confirmed a watch", maybe_applied=False))
        task.opening = watching
        if not watching.live.arm(lambda: simulation.soon(resume)):
            simulation.soon(resume)
        simulation.after(max(0.0, min(_LIMITS.operation_s, ends - simulation.now)), give_up)

    def _identify(self, task: Task) -> None:
        if self.identity is not None:
            self._simulation.after(0.0, task.resumer(self.identity))
            return
        self._join()

        def look() -> None:
            task.resumer(self.identity)()

        if not self._joined.arm(lambda: self._simulation.soon(look)):
            self._simulation.soon(look)

    def _call(self, mine: _Waiting) -> None:
        """Send a call, or have it travel with others: what :mod:`skyward_etcd.session.merging` does."""
        if not may_be_merged(mine.call):
            self._send(mine.call, mine.tell, mine.ends)
        elif self._under_way < self._simulation.at_once or (its := footprint(mine.call)) is None:
            self._send_together([mine])
        else:
            mine.footprint = its
            mine.ends = min(mine.ends, self._simulation.now + _LIMITS.call_s)
            self._waiting.append(mine)

    def _send_together(self, along: Sequence[_Waiting]) -> None:
        batch = Batch()
        for each in along:
            batch.add(each.call, each.footprint)
        self._simulation.merged += len(along) > 1
        self._under_way += 1

        def tell(reply: Any, error: SkywardEtcdError | None) -> None:
            self._under_way -= 1
            answers = batch.answers(reply) if error is None else [None] * len(along)
            errors = batch.told(error) if error is not None else [None] * len(along)
            for each, answer, its_error in zip(along, answers, errors, strict=True):
                if answer is None and its_error is None:
                    self._send(each.call, each.tell, each.ends)
                else:
                    each.tell(answer, its_error)
            self._go_on()

        self._send(batch.as_call(), tell, max(each.ends for each in along))

    def _go_on(self) -> None:
        """Send what waits, as much as may be under way at once."""
        while self._waiting and self._under_way < self._simulation.at_once:
            together = Batch()
            along = [each for each in self._waiting if together.takes(each.call, each.footprint)]
            self._waiting = [each for each in self._waiting if each not in along]
            self._send_together(along)

    def _send(self, call: Call, tell: Teller, ends: float) -> None:
        simulation, faults = self._simulation, self._simulation.faults
        timed_out = Unavailable("no answer in time")
        fate = simulation.rng.random()
        limit = min(_LIMITS.call_s, ends - simulation.now)
        if limit <= 0:
            simulation.after(0.0, lambda: tell(None, Unavailable("the time is over", maybe_applied=False)))
            return
        apply = lambda: _quietly(lambda: self._apply(call))  # noqa: E731
        if (fate := fate - faults.refused) < 0:
            refused = Unavailable("nobody is there", maybe_applied=False)
            simulation.after(simulation.transit_s(), lambda: tell(None, refused))
        elif (fate := fate - faults.lost_request) < 0:
            simulation.after(limit, lambda: tell(None, timed_out))
        elif (fate := fate - faults.late_request) < 0:
            simulation.after(simulation.rng.uniform(0.0, 3 * _LIMITS.call_s), apply)
            simulation.after(simulation.rng.uniform(0.0, limit), lambda: tell(None, timed_out))
        elif fate - faults.lost_reply < 0:
            simulation.after(simulation.transit_s(), apply)
            simulation.after(min(simulation.rng.choice((0.6, _LIMITS.call_s)), limit), lambda: tell(None, timed_out))
        else:
            there, back = simulation.transit_s(), simulation.transit_s()
            if there + back > limit:
                simulation.after(there, apply)
                simulation.after(limit, lambda: tell(None, timed_out))
            else:
                simulation.after(there, lambda: self._arrive(call, tell, back))

    def _arrive(self, call: Call, tell: Teller, back: float) -> None:
        try:
            reply = self._apply(call)
        except SkywardEtcdError as error:
            refusal = error
            self._simulation.after(back, lambda: tell(None, refusal))
            return

        def receive() -> None:
            self.saw(reply.header.revision)
            tell(reply, None)

        self._simulation.after(back, receive)

    def _apply(self, call: Call) -> Any:
        etcd, rng = self._simulation.etcd, self._simulation.rng
        if call.method is RANGE and call.request.serializable and rng.random() < self._simulation.faults.stale_read:
            oldest = max(etcd.compacted, 1)
            behind = etcd.stale_view(max(oldest, etcd.revision - rng.randrange(8)))
            return behind.call(call.method, call.request)
        no_space = self._simulation.faults.no_space
        if no_space and call.method is TXN and puts(call.request) and rng.random() < no_space:
            if rng.random() < 0.5:
                etcd.call(call.method, call.request)
            raise NoSpace("etcdserver: mvcc: database space exceeded")
        return etcd.call(call.method, call.request)

    # ---- the lease

    def _join(self) -> None:
        if self._is_joining or not self.is_alive:
            return
        self._is_joining = True

        def join() -> None:
            self._is_joining = False
            if not self.is_alive:
                return
            etcd, now = self._simulation.etcd, self._simulation.now
            lease = etcd.call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=round(_LIMITS.ttl_s))).ID
            identity = Identity(lease, self.layout.slot, clock=lambda: self._simulation.now)
            etcd.call(PUT, pb.PutRequest(key=self.layout.session(identity.id), value=b"{}", lease=lease))
            identity.valid_until = self._lease_ends = now + _LIMITS.ttl_s
            self.identity = identity
            self._joined.set()
            self._renew(identity)
            self._expire_in_time(identity)

        self._simulation.after(self._simulation.transit_s(), join)

    def _renew(self, identity: Identity) -> None:
        simulation = self._simulation
        if not self.is_alive or self.identity is not identity:
            return
        if self.paused_until > simulation.now:
            simulation.after(self.paused_until - simulation.now, lambda: self._renew(identity))
            return
        if identity.lease not in simulation.etcd.leases:
            self._renounce(identity)
            self._join()
            return
        identity.valid_until = self._lease_ends = simulation.now + _LIMITS.ttl_s
        simulation.after(_LIMITS.ttl_s / 3, lambda: self._renew(identity))

    def _expire_in_time(self, identity: Identity) -> None:
        simulation = self._simulation
        if identity.lease not in simulation.etcd.leases:
            return
        ends = self._lease_ends if self.identity is identity else simulation.now
        if ends <= simulation.now:
            simulation.etcd.expire(identity.lease)
        else:
            simulation.after(ends - simulation.now, lambda: self._expire_in_time(identity))

    def _renounce(self, identity: Identity) -> None:
        if self.identity is identity:
            self.identity = None
            self._joined.clear()
        identity.valid_until = 0.0
        identity.lost.set()


class _Stream:
    """A process's watch stream, and etcd's end of it: ordered, and lost as a whole when it breaks."""

    def __init__(self, simulation: Simulation, process: Process) -> None:
        self._simulation = simulation
        self._process = process
        self._epoch = 0
        self._up_at = self._down_at = 0.0
        self._watched: dict[int, pb.WatchCreateRequest] = {}
        self._ids: set[int] = set()
        """Taken on this stream, by watches that a compaction has ended too."""
        self._behind: dict[int, pb.WatchCreateRequest] = {}
        """From a past revision: they wait for etcd's next round, which comes each 100 ms."""

    def send(self, request: pb.WatchRequest) -> None:
        """Carry a request to etcd."""
        epoch = self._epoch
        self._up_at = max(self._up_at, self._simulation.now + self._simulation.transit_s())
        self._simulation.at(self._up_at, lambda: self._serve(request) if epoch == self._epoch else None)

    def tell(self, revision: int, events: Sequence[pb.Event]) -> None:
        """Etcd tells what has happened."""
        for number, watch in self._watched.items():
            told = _told(watch, events)
            if told:
                self._deliver(_response(revision, number, events=told))

    def break_(self) -> None:
        """Lose the stream; the process opens another after a pause."""
        self._epoch += 1
        self._watched.clear()
        self._behind.clear()
        self._ids.clear()
        self._process.watches.stand_still()
        epoch = self._epoch

        def reopen() -> None:
            if epoch == self._epoch and self._process.is_alive:
                self._process.watches.travel_on(self.send)

        self._simulation.after(self._simulation.rng.uniform(0.0, 4.0), reopen)

    def _serve(self, request: pb.WatchRequest) -> None:
        etcd = self._simulation.etcd
        if request.HasField("cancel_request"):
            self._watched.pop(request.cancel_request.watch_id, None)
            self._behind.pop(request.cancel_request.watch_id, None)
            self._ids.discard(request.cancel_request.watch_id)
            return
        create = request.create_request
        if create.watch_id in self._ids:
            self._deliver(_response(etcd.revision, -1, created=True, refused="duplicate watch ID"))
            return
        self._ids.add(create.watch_id)
        self._deliver(_response(etcd.revision, create.watch_id, created=True))
        if 0 < create.start_revision <= etcd.revision:
            self._behind[create.watch_id] = create
            epoch = self._epoch
            self._simulation.after(
                self._simulation.rng.uniform(0.0, 0.1), lambda: self._catch_up(create) if epoch == self._epoch else None
            )
        else:
            self._watched[create.watch_id] = create

    def _catch_up(self, create: pb.WatchCreateRequest) -> None:
        """Tell a watch of the past, if it is still wanted, and still known."""
        if self._behind.get(create.watch_id) is not create:
            return
        del self._behind[create.watch_id]
        etcd = self._simulation.etcd
        try:
            past = _told(create, etcd.events(create.key, create.range_end, create.start_revision))
        except Compacted:
            self._deliver(_response(0, create.watch_id, compacted=etcd.compacted))
            return
        self._watched[create.watch_id] = create
        if past:
            self._deliver(_response(etcd.revision, create.watch_id, events=past))

    def _deliver(self, response: pb.WatchResponse) -> None:
        simulation, epoch = self._simulation, self._epoch
        self._down_at = max(self._down_at, simulation.now + simulation.transit_s())

        def arrive() -> None:
            if epoch != self._epoch or not self._process.is_alive:
                return
            wait = self._process.paused_until - simulation.now
            if wait > 0:
                simulation.after(wait, arrive)
                return
            self._process.watches.handle(response)

        simulation.at(self._down_at, arrive)


class _Asking:
    """Awaits one effect."""

    def __init__(self, effect: Effect) -> None:
        self._effect = effect

    def __await__(self) -> Generator[Effect, Any, Any]:
        return (yield self._effect)


class _Driven:
    """Awaits an operation: what the other runners do in a loop, as a generator that the simulation steps."""

    def __init__(self, operation: Operation[Any]) -> None:
        self._operation = operation

    def __await__(self) -> Generator[_Bounded, Any, Any]:
        given: Any = None
        error: BaseException | None = None
        ends = math.inf
        while True:
            try:
                effect = self._operation.send(given) if error is None else self._operation.throw(error)
            except StopIteration as stop:
                return stop.value
            try:
                given = yield _Bounded(effect, ends)
            except BaseException as thrown:  # noqa: BLE001 - it goes on to the operation, which cleans up
                error = thrown
            else:
                error = None
                if isinstance(effect, Deadline):
                    ends = math.inf if given is None else given + _LIMITS.call_s


@dataclass(eq=False, slots=True)
class _Waiting:
    """A call of a process, and who is told how it ends."""

    call: Call
    tell: Teller
    ends: float
    footprint: Footprint = field(default_factory=Footprint)


@dataclass(frozen=True, slots=True)
class _Bounded:
    """An effect, and the moment by which it has to have happened."""

    effect: Effect
    ends: float


def _response(
    revision: int,
    watch_id: int,
    *,
    created: bool = False,
    compacted: int = 0,
    refused: str = "",
    events: Sequence[pb.Event] = (),
) -> pb.WatchResponse:
    return pb.WatchResponse(
        header=pb.ResponseHeader(revision=revision),
        watch_id=watch_id,
        created=created,
        canceled=bool(compacted or refused),
        compact_revision=compacted,
        cancel_reason=refused,
        events=events,
    )


_FILTERED = {pb.WatchCreateRequest.NOPUT: pb.Event.PUT, pb.WatchCreateRequest.NODELETE: pb.Event.DELETE}


def _told(watch: pb.WatchCreateRequest, events: Sequence[pb.Event]) -> list[pb.Event]:
    """Return those events that a watch is about."""
    unwanted = {_FILTERED[each] for each in watch.filters}
    return [event for event in events if event.type not in unwanted and _covers(watch, event.kv.key)]


def _covers(watch: pb.WatchCreateRequest, key: bytes) -> bool:
    return watch.key <= key < watch.range_end if watch.range_end else watch.key == key


def _quietly(apply: Callable[[], Any]) -> None:
    with contextlib.suppress(SkywardEtcdError):
        apply()


def _never(pending: linearizability.Operation) -> linearizability.Operation:
    return linearizability.Operation(pending.process, "", (), None, pending.invoked, None)
