"""A fair lock that is never entered without being held.

Contenders queue up by the creation revision of their keys, as in etcd's own ``client/v3/concurrency/mutex.go``. Who is
far behind waits for one key before its own to go, as there; who is near hears of all that go, and goes on when the last
of them does, without another question. Both watch *from now* and then read: a watch from a past revision would hear of
the release only at the server's next round, up to 100 ms later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import ClassVar, TypeVar

from skyward_etcd.collections.base import Collection, check_timeout, guarded, who
from skyward_etcd.errors import HoldLost, LeaseNotFound, LockTimeout, NotHeld, OutcomeUnknown, QuorumLost
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import call_in_doubt, delete_repeatable, not_done, once, range_
from skyward_etcd.ops.effects import Await, Deadline, Identify, Identity, Later, Operation, Renounce, Watch, Watching
from skyward_etcd.ops.layout import Kind
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, Guard, prove
from skyward_etcd.session import caller
from skyward_etcd.session.session import Session

__all__ = ["Hold", "Lock"]

C = TypeVar("C", bound=Collection)

_NEAR = 8
"""When no more than these are before us, we hear of each that leaves, and know without asking when it is our turn."""
_SEEN = _NEAR + 2
"""Our own key, those, and one more."""


class Lock(Collection):
    """Mutual exclusion between nodes, processes, threads and tasks; not reentrant.

    At most one live session holds it. It is handed on in the order in which contenders came, and freed within the
    session's TTL (15 s unless set otherwise) when its holder dies. No lock service can keep a holder that was paused
    beyond its TTL from acting on the outside world: give the `Hold.token` to whatever you write to, and have it
    refuse tokens older than the newest it has seen.

    >>> with sky.lock("checkpoint", timeout=30) as hold:
    ...     hold.valid
    True
    """

    kind = "lock"

    def __init__(self, session: Session, name: str, *, timeout: float | None = None) -> None:
        super().__init__(session, name)
        self.timeout = check_timeout(timeout)

    def acquire(self, timeout: float | None = None) -> Hold:
        """Wait for the lock, in turn, and return the hold. One round trip if nobody has it.

        ``timeout`` in seconds; ``None``: the handle's own, which by default is for ever.

        Raises:
            LockTimeout: it was not to be had in time. The caller does not have it, and will not get it later.
            Unavailable: likewise, because nobody answered: 3 s after the time is over at the latest.
        """
        return self._run(self._acquire(timeout, caller.thread()))

    async def acquire_async(self, timeout: float | None = None) -> Hold:
        """`acquire`, without blocking the event loop."""
        return await self._run_async(self._acquire(timeout, caller.task()))

    def release(self) -> None:
        """Give up what this thread (or task) has acquired. One round trip.

        Raises:
            NotHeld: it holds nothing; nobody's hold was touched.
            HoldLost: the lease had ended before: another may have been at work.
        """
        self._run(self._release(self._held_by(caller.thread())))

    async def release_async(self) -> None:
        """`release`, without blocking the event loop."""
        await self._run_async(self._release(self._held_by(caller.task())))

    def __enter__(self) -> Hold:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except HoldLost:
            if error is None:  # else the block's own error says more
                raise

    async def __aenter__(self) -> Hold:
        return await self.acquire_async()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.release_async()
        except HoldLost:
            if error is None:
                raise

    # ---- the algorithms

    def _acquire(self, timeout: float | None, who: caller.Caller) -> Operation[Hold]:
        timeout = check_timeout(self.timeout if timeout is None else timeout)
        deadline: float | None = yield Deadline(timeout)
        yield from agree(self._session, self.kind, self.name)
        while True:
            identity: Identity = yield Identify()
            key = self._prefix + f"{identity.id}-{identity.serial()}".encode()
            try:
                entered = yield from self._contend(identity, key, deadline)
            except BaseException as error:
                if isinstance(error, LeaseNotFound) or isinstance(error.__cause__, LeaseNotFound):
                    yield Renounce(identity)  # our key is gone with the lease: queue up again, at the end
                    continue
                yield Later(partial(delete_repeatable, key))
                if isinstance(error, OutcomeUnknown):  # of our place in the line, which is given up whatever it was
                    raise not_done(f"{self._what}: not acquired", error) from error
                raise
            hold = Hold(self.name, identity, key, entered, who=who, session=self._session, release=self._release)
            self._session.kept[key] = hold
            return hold

    def _contend(self, identity: Identity, key: bytes, deadline: float | None) -> Operation[int]:
        """Queue up, wait for the turn, and return the revision at which our key was created: our place in the line.

        That our key is not there yet would be no proof that it was never put: a first try that arrives after the
        release would put it again, and nobody would ever delete it. So the entry is proven.
        """
        busy = (self._prefix, "busy")
        leaving: Watching | None = (yield self._leaving()) if self._session.notes.get(busy) else None
        try:
            stream = leaving.stream if leaving else 0
            everyone = kv.get(self._prefix, kv.prefix_end(self._prefix), keys_only=True, newest_first=True, limit=_SEEN)
            enter = Alternative((), (kv.put(key, self._who(), lease=identity.lease), everyone))
            outcome = yield from prove(
                [enter], undo=lambda _: delete_repeatable(key), identity=identity, what=self._what
            )
            place = _Place(identity, key, outcome.revision, deadline)
            line: Sequence[bytes]
            if outcome.responses is not None:
                line = [other.key for other in reversed(outcome.responses[1].response_range.kvs) if other.key != key]
            else:
                line = yield from self._ahead_of(place)
            self._session.notes[busy] = bool(line)
            while len(line) > _NEAR:
                line = yield from self._come_near(line, place)
            if line and leaving is None:
                opened: Watching = yield self._leaving()
                leaving, stream = opened, opened.stream
                line = yield from self._ahead_of(place)  # from here on nobody leaves unnoticed
            if line and leaving is not None:
                yield from self._follow(line, leaving, stream, place)
            return place.entered
        finally:
            if leaving is not None:
                leaving.close()

    def _leaving(self) -> Watch:
        return Watch(self._prefix, kv.prefix_end(self._prefix), deletions=True)

    def _come_near(self, line: Sequence[bytes], place: _Place) -> Operation[Sequence[bytes]]:
        """Wait until few are ahead of us, and return who: until then we hear of one key only."""
        last = line[-_NEAR - 1]
        watching: Watching = yield Watch(last)
        try:
            line = yield from self._ahead_of(place)
            if last not in line:
                return line
            yield from self._await(watching, place)
        finally:
            watching.close()
        return (yield from self._ahead_of(place))

    def _follow(self, line: Sequence[bytes], leaving: Watching, stream: int, place: _Place) -> Operation[None]:
        """Wait until nobody is ahead of us. ``stream`` is the one on which we have listened since we knew the line.

        What we hear comes in the order in which it happened, our own key's end included. So once all others are gone
        and our key was there, we were the first at that moment; and we are still, as long as the lease lives for
        certain. Where it may not, or something may have been missed, etcd is asked.
        """
        while line:
            yield from self._await(leaving, place)
            gone = {event.kv.key for event in leaving.take()}
            if not gone or leaving.stream != stream or not place.identity.is_valid():
                stream = leaving.stream
                line = yield from self._ahead_of(place)
            elif place.key in gone:
                raise LeaseNotFound(f"{self._what}: the session was lost while it waited")
            else:
                line = [other for other in line if other not in gone]

    def _await(self, watching: Watching, place: _Place) -> Operation[None]:
        if not (yield Await(place.deadline, (watching, place.identity.lost))):
            raise LockTimeout(f"{self._what} is held, or others were before us: not acquired in time")
        if place.identity.lost.is_set():  # an operator may have ended the session, and keep our key for a while
            raise LeaseNotFound(f"{self._what}: the session was lost while it waited")

    def _ahead_of(self, place: _Place) -> Operation[Sequence[bytes]]:
        """Return the keys next before ours, the nearest last, as far as we look; none if it is our turn.

        Raises:
            LeaseNotFound: our own key is gone: whoever waited beyond its lease does not get the lock.
        """
        request = kv.read(self._prefix, kv.prefix_end(self._prefix), keys_only=True)
        request.limit, request.max_create_revision = _SEEN, place.entered
        request.sort_order, request.sort_target = kv.Read.DESCEND, kv.Read.CREATE
        reply = yield from range_(request, seen=0)
        if not reply.kvs or reply.kvs[0].key != place.key:
            raise LeaseNotFound(f"{self._what}: the session was lost while it waited")
        return [other.key for other in reversed(reply.kvs[1:])]

    def _release(self, hold: Hold) -> Operation[None]:
        """Delete our key if it is still ours.

        A repetition that finds it gone was preceded by its first try if the lease lives; else the lease may have ended
        long before, while it was held.
        """
        if hold.is_released or hold.pid != os.getpid():
            raise NotHeld(f"{self._what}: this hold was released before, or is the parent process's")
        hold.is_released = True
        self._session.kept.pop(hold.key, None)
        request = kv.txn((kv.created_at(hold.key, hold.entered),), (kv.delete(hold.key),))
        try:
            reply, doubt = yield from once(request, what=self._what)
            is_given_up = reply.succeeded or (doubt and (yield from self._lives(hold)))
        except BaseException as error:
            call_in_doubt(error)
            yield Later(partial(delete_repeatable, hold.key))
            raise
        if not is_given_up:
            raise HoldLost(
                f"{self._what}: the session's lease ended while it was held (token {hold.token}); "
                "another holder may have been at work. Check what was written since, or raise the TTL"
            )

    def _lives(self, hold: Hold) -> Operation[bool]:
        """Tell whether the session still has the lease on which the hold was."""
        session = hold.key.removeprefix(self._prefix).partition(b"-")[0].decode()
        return bool((yield from range_(kv.read(self._session.layout.session(session)), seen=0)).kvs)

    def _held_by(self, who: caller.Caller) -> Hold:
        """Return the caller's hold, or the only one of a caller that has ended without giving it up."""
        holds = self._holds()
        mine = [hold for hold in holds if hold.who == who]
        left = [hold for hold in holds if hold.who.has_ended and hold.who.kind == who.kind]
        if not mine and len(left) != 1:
            raise NotHeld(
                f"{self._what}: this {who.kind} does not hold it. Release it where it was acquired, or through the Hold"
            )
        return (mine or left)[-1]

    def _holds(self) -> list[Hold]:
        """Return what this process holds of the lock, the newest last."""
        return [hold for key, hold in list(self._session.kept.items()) if key.startswith(self._prefix)]

    def _who(self) -> bytes:
        return who(self._session.node)


@dataclass(frozen=True, slots=True)
class _Place:
    """Our place in the line."""

    identity: Identity
    key: bytes
    entered: int
    """The revision at which the key was created."""
    deadline: float | None
    """How long we stand there."""


class Hold:
    """A lock while it is held: what `Lock.acquire` returns."""

    kind: ClassVar[Kind] = "lock"

    def __init__(
        self,
        name: str,
        identity: Identity,
        key: bytes,
        entered: int,
        *,
        who: caller.Caller,
        session: Session,
        release: Callable[[Hold], Operation[None]],
    ) -> None:
        self.token = identity.token_base + entered
        """The fencing token: greater than that of every earlier hold of this lock, from before a recovery too."""
        self.entered = entered
        """The revision at which its key was created: what etcd compares."""
        self.key = key
        self.who = who
        self.pid = os.getpid()
        self.is_released = False
        self.name = name
        self._what = f"{self.kind} {name!r}"
        self._session = session
        self._release = release
        self._identity = identity

    @property
    def valid(self) -> bool:
        """Whether the lock is held for certain: reckoned from the last renewal, without asking anybody."""
        return not self.is_released and self.pid == os.getpid() and self._identity.is_valid()

    def guard(self, collection: C) -> C:
        """Return a handle of a dict, set or counter whose writes go through this hold.

        Each of them is refused, by etcd and for good, once the lock is no longer held through this hold: nobody who was
        paused beyond its lease can write over what the next holder wrote. No round trip more; reads are as ever.

        >>> with sky.lock("saving") as hold:
        ...     hold.guard(sky.dict("best"))["loss"] = 0.25

        Its writes raise:
            HoldLost: the lock was released or lost before. Nothing was written.

        Raises:
            TypeError: it is no dict, set or counter.
        """
        refusal = f"{self._what} is no longer held through this hold (token {self.token}): nothing was written"
        return guarded(collection, Guard((kv.created_at(self.key, self.entered),), refusal))

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until the session's lease is lost, and with it the lock; tell whether it was. No round trip.

        For a thread that stops the work of its holder. ``timeout`` in seconds; ``None``: for ever.
        """
        return self._session.run(self._wait_lost(timeout))

    async def wait_lost_async(self, timeout: float | None = None) -> bool:
        """`wait_lost`, without blocking the event loop."""
        return await self._session.run_async(self._wait_lost(timeout))

    def release(self) -> None:
        """Give it up, from any thread. One round trip.

        Raises:
            NotHeld: it was released before.
            HoldLost: the lease had ended before.
        """
        self._session.run(self._release(self))

    async def release_async(self) -> None:
        """`release`, without blocking the event loop."""
        await self._session.run_async(self._release(self))

    def _wait_lost(self, timeout: float | None) -> Operation[bool]:
        deadline: float | None = yield Deadline(check_timeout(timeout))
        try:
            came: bool = yield Await(deadline, (self._identity.lost,))
        except QuorumLost:  # and the lease with it
            return True
        return came

    def __repr__(self) -> str:
        state = "released" if self.is_released else "valid" if self.valid else "lost"
        return f"<hold of {self._what}, token {self.token}, {state}>"
