"""A fair lock that is never entered without being held.

Contenders queue up by the creation revision of their keys; each waits for its predecessor only, as in etcd's own
``client/v3/concurrency/mutex.go``, but watches *from now* and then reads: a watch from a past revision would hear of
the release only at the server's next round, up to 100 ms later.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TypeVar

from skyward_etcd.collections.base import Collection, check_timeout, guarded, who
from skyward_etcd.errors import HoldLost, LeaseNotFound, LockTimeout, NotHeld, OutcomeUnknown, QuorumLost
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import call_in_doubt, delete_repeatable, not_done, once, range_
from skyward_etcd.ops.effects import Await, Deadline, Identify, Identity, Later, Operation, Renounce, Watch
from skyward_etcd.ops.naming import agree
from skyward_etcd.ops.proof import Alternative, Guard, prove
from skyward_etcd.session import caller
from skyward_etcd.session.session import Session

__all__ = ["Hold", "Lock"]

C = TypeVar("C", bound=Collection)


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
            hold = Hold(self._what, identity, key, entered, who=who, session=self._session, release=self._release)
            self._session.kept[key] = hold
            return hold

    def _contend(self, identity: Identity, key: bytes, deadline: float | None) -> Operation[int]:
        """Queue up, wait for the turn, and return the revision at which our key was created: our place in the line.

        That our key is not there yet would be no proof that it was never put: a first try that arrives after the
        release would put it again, and nobody would ever delete it. So the entry is proven.
        """
        everyone = kv.get(self._prefix, kv.prefix_end(self._prefix), keys_only=True, newest_first=True, limit=2)
        enter = Alternative((), (kv.put(key, self._who(), lease=identity.lease), everyone))
        outcome = yield from prove([enter], undo=lambda _: delete_repeatable(key), identity=identity, what=self._what)
        entered = outcome.revision
        if outcome.responses is not None:
            ahead = next((other.key for other in outcome.responses[1].response_range.kvs if other.key != key), None)
        else:
            ahead = yield from self._ahead_of(key, entered)
        while ahead is not None:
            ahead = yield from self._wait_for(ahead, identity, key, entered, deadline)
        return entered

    def _wait_for(
        self, ahead: bytes, identity: Identity, key: bytes, entered: int, deadline: float | None
    ) -> Operation[bytes | None]:
        """Wait until the key ahead of ours is gone, and return the one that is ahead of us then."""
        watching = yield Watch(ahead)
        try:
            # Now that the watch is live, it cannot go unnoticed.
            now_ahead = yield from self._ahead_of(key, entered)
            if now_ahead != ahead:
                return now_ahead
            if not (yield Await(deadline, (watching, identity.lost))):
                raise LockTimeout(f"{self._what} is held, or others were before us: not acquired in time")
            if identity.lost.is_set():
                raise LeaseNotFound(f"{self._what}: the session was lost while it waited")
        finally:
            watching.close()
        return (yield from self._ahead_of(key, entered))

    def _ahead_of(self, key: bytes, entered: int) -> Operation[bytes | None]:
        """Return the key that is next before ours, or ``None`` if it is our turn.

        Raises:
            LeaseNotFound: our own key is gone: whoever waited beyond its lease does not get the lock.
        """
        request = kv.read(self._prefix, kv.prefix_end(self._prefix), keys_only=True)
        request.limit, request.max_create_revision = 2, entered
        request.sort_order, request.sort_target = kv.Read.DESCEND, kv.Read.CREATE
        reply = yield from range_(request, seen=0)
        if not reply.kvs or reply.kvs[0].key != key:
            raise LeaseNotFound(f"{self._what}: the session was lost while it waited")
        return reply.kvs[1].key if len(reply.kvs) > 1 else None

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


class Hold:
    """A lock while it is held: what `Lock.acquire` returns."""

    def __init__(
        self,
        what: str,
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
        self._what = what
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
