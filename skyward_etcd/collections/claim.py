"""An item of a queue while somebody works on it: it is gone when the work is done, and comes back when it is not.

A claimed item stays where it is. Beside it there is a key on the lease of who has claimed it, so that nobody else picks
it; when that key goes without the item, the item is at its old place again. The count of its deliveries outlives the
claim: it is the version of a key that each claim writes in its transaction.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self

from skyward_etcd.collections.base import who
from skyward_etcd.collections.front import Act, Front, Undo
from skyward_etcd.collections.places import Places
from skyward_etcd.errors import HoldLost, LeaseNotFound, NotHeld, OutcomeUnknown, SkywardEtcdError
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import call_in_doubt, not_done, txn_repeatable
from skyward_etcd.ops.effects import Identify, Identity, Later, Operation, Renounce
from skyward_etcd.ops.layout import Kind
from skyward_etcd.ops.proof import Alternative, Outcome, prove
from skyward_etcd.session.session import Session

__all__ = ["Claim", "Claims"]

Pick = Callable[[Act, Undo, Identity], Operation[tuple[Sequence[bytes], Outcome] | None]]


class Claim:
    """A claimed item: what `Queue.claim` returns.

    As a context manager it is acknowledged at the end of the block, and given back when the block raises.

    >>> q = sky.queue("tasks")
    >>> q.put("resize 1.png")
    >>> with q.claim() as job:
    ...     job.value, job.deliveries, job.valid, len(q), q.claimed()
    ('resize 1.png', 1, True, 0, 1)
    >>> len(q), q.claimed()
    (0, 0)
    """

    def __init__(
        self,
        what: str,
        item: bytes,
        made_at: int,
        deliveries: int,
        *,
        decode: Callable[[], Any],
        identity: Identity,
        session: Session,
        ack: Callable[[Claim], Operation[None]],
        release: Callable[[Claim], Operation[None]],
    ) -> None:
        self.deliveries = deliveries
        """How often the item has been claimed, this time included: 1 for the first."""
        self.token = identity.token_base + made_at
        """The fencing token: greater than that of every earlier claim of the item."""
        self.made_at = made_at
        """The revision at which its key was created: what etcd compares."""
        self.item = item
        self.identity = identity
        self.is_over = False
        self._what = what
        self._decode = decode
        self._value: tuple[Any, ...] = ()
        self._pid = os.getpid()
        self._session = session
        self._ack = ack
        self._release = release

    @property
    def value(self) -> Any:
        """The item.

        Raises:
            CorruptValue: its bytes are not ours, or not signed with our secret; `ack` removes it all the same.
        """
        if not self._value:
            self._value = (self._decode(),)
        return self._value[0]

    @property
    def valid(self) -> bool:
        """Whether nobody else has the item for certain: reckoned from the last renewal, without asking anybody."""
        return not self.is_over and self._pid == os.getpid() and self.identity.is_valid()

    def ack(self) -> None:
        """Say that the work is done: the item is gone for good. One round trip.

        If it is cancelled, or nobody answers, it is tried again in the background.

        Raises:
            HoldLost: the claim had been lost, and the item comes back, or is with another by now; it was not removed.
            NotHeld: the claim had been acknowledged or released before.
            OutcomeUnknown: the session was lost together with the answer, or nobody has answered for long.
        """
        self._session.run(self._ack(self))

    async def ack_async(self) -> None:
        """`ack`, without blocking the event loop."""
        await self._session.run_async(self._ack(self))

    def release(self) -> None:
        """Give the item back, to its old place. One round trip. What was lost has come back already.

        Raises:
            NotHeld: the claim had been acknowledged or released before.
        """
        self._session.run(self._release(self))

    async def release_async(self) -> None:
        """`release`, without blocking the event loop."""
        await self._session.run_async(self._release(self))

    def end(self) -> None:
        """Take note that it is acknowledged or given back now: once.

        Raises:
            NotHeld: it was before, or this is a child of the process that claimed it.
        """
        if self.is_over or self._pid != os.getpid():
            raise NotHeld(
                f"{self._what}: this claim was acknowledged or released before, or is the parent process's: "
                "end it once, where it was made"
            )
        self.is_over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_over:
            return
        if error is None:
            self.ack()
        else:
            with contextlib.suppress(SkywardEtcdError):  # the block's own error says more, and it is tried again
                self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_over:
            return
        if error is None:
            await self.ack_async()
        else:
            with contextlib.suppress(SkywardEtcdError):
                await self.release_async()

    def __repr__(self) -> str:
        state = "over" if self.is_over else "valid" if self.valid else "lost"
        return f"<claim of an item of {self._what}, delivery {self.deliveries}, {state}>"


class Claims:
    """How the items of one queue are claimed, acknowledged and given back."""

    kind: ClassVar[Kind] = "queue"

    def __init__(
        self,
        session: Session,
        places: Places,
        front: Front,
        name: str,
        *,
        max_deliveries: int | None,
        bury: Callable[[bytes], Operation[None]],
    ) -> None:
        self._session = session
        self._places = places
        self._front = front
        self.name = name
        self._what = f"{self.kind} {name!r}"
        self._most = max_deliveries
        self._bury = bury

    def first(self) -> Operation[Claim | None]:
        """Claim the first free item; ``None`` if there is none."""
        return self._claim(lambda act, undo, identity: self._front.pick(1, act, undo=undo, identity=identity))

    def fresh(self, item: kv.KeyValue) -> Operation[Claim | None]:
        """Claim the item that a watch told of, if nothing older is left."""
        return self._claim(lambda act, undo, identity: self._front.pick_fresh(item, act, undo=undo, identity=identity))

    def _claim(self, pick: Pick) -> Operation[Claim | None]:
        while True:
            identity: Identity = yield Identify()
            try:
                picked = yield from pick(partial(self._claiming, identity), partial(self._undo, identity), identity)
            except LeaseNotFound:
                continue
            except OutcomeUnknown as error:
                if isinstance(error.__cause__, LeaseNotFound):  # and with the lease went the claim, if there was one
                    yield Renounce(identity)
                    continue
                # Of the claim, which is given up in the background whatever it was.
                raise not_done(f"{self._what}: nothing claimed", error) from error
            if picked is None:
                return None
            (item,), outcome = picked
            try:
                claim = yield from self._claimed(identity, item, outcome)
            except BaseException:
                yield Later(partial(self._let_go, identity, item, outcome.revision))
                raise
            if claim is not None:
                return claim

    def _claiming(self, identity: Identity, items: Sequence[bytes], _delivered: bool) -> Sequence[kv.Op]:  # noqa: FBT001
        (item,) = items
        deliveries = self._places.deliveries_of(item)
        told = self._who(self._front.delivered(item) + 1)
        return (
            kv.get(item),
            kv.put(self._places.claim_of(item), told, lease=identity.lease),
            kv.put(deliveries),
            kv.get(deliveries),
        )

    def _claimed(self, identity: Identity, item: bytes, outcome: Outcome) -> Operation[Claim | None]:
        """Return the claim that was made; ``None`` if it is lost already."""
        claim_key, made_at = self._places.claim_of(item), outcome.revision
        if outcome.responses is not None:
            value = outcome.responses[0].response_range.kvs[0].value
            deliveries = outcome.responses[3].response_range.kvs[0].version
        else:
            # The answer was lost; while the claim is ours, nobody changes what it said.
            reads = [kv.get(item), kv.get(self._places.deliveries_of(item))]
            reply = yield from txn_repeatable(kv.txn(then=[kv.nested([kv.created_at(claim_key, made_at)], reads)]))
            looked = reply.responses[0].response_txn
            if not looked.succeeded:
                return None
            value = looked.responses[0].response_range.kvs[0].value
            deliveries = looked.responses[1].response_range.kvs[0].version
        if outcome.responses is None or deliveries != self._front.delivered(item) + 1:
            # It was delivered before, and we did not know: tell operators the right number.
            right = kv.put(claim_key, self._who(deliveries), lease=identity.lease)
            yield from self._put_right(identity, kv.txn([kv.created_at(claim_key, made_at)], [right]))
        return Claim(
            self._what,
            item,
            made_at,
            deliveries,
            decode=lambda: self._session.codec.decode(value, key=self._places.prefix),
            identity=identity,
            session=self._session,
            ack=self._ack,
            release=self._release,
        )

    def _put_right(self, identity: Identity, request: kv.Txn) -> Operation[None]:
        try:
            yield from txn_repeatable(request)
        except LeaseNotFound:
            yield Renounce(identity)  # whoever has the claim will notice

    def _undo(self, identity: Identity, items: Sequence[bytes], outcome: Outcome) -> Operation[None]:
        """Give back what was claimed in vain."""
        yield from self._let_go(identity, items[0], outcome.revision)

    def _ack(self, claim: Claim) -> Operation[None]:
        claim.end()
        done = self._done(claim)
        try:
            outcome = yield from prove([done], identity=claim.identity, what=self._what)
        except LeaseNotFound as gone:
            raise self._lost(claim) from gone
        except BaseException as error:
            call_in_doubt(error)
            yield Later(partial(self._finish, done))
            raise
        if outcome.taken is None:
            raise self._lost(claim)

    def _done(self, claim: Claim) -> Alternative:
        """Remove the item and what is said about it, if the claim is ours still: nobody else's is ever touched."""
        mine = self._places.claim_of(claim.item)
        gone = (mine, claim.item, self._places.deliveries_of(claim.item))
        return Alternative((kv.created_at(mine, claim.made_at),), [kv.delete(key) for key in gone])

    def _finish(self, done: Alternative) -> Operation[None]:
        yield from txn_repeatable(kv.txn(done.compares, done.operations))

    def _lost(self, claim: Claim) -> HoldLost:
        return HoldLost(
            f"{self._what}: the session's lease ended while an item was claimed (delivery {claim.deliveries}), or the "
            "queue was cleared; the item was not removed, and another may be at work on it. Make the work harmless "
            "when it is done twice, or raise the TTL"
        )

    def _release(self, claim: Claim) -> Operation[None]:
        claim.end()
        let_go = partial(self._let_go, claim.identity, claim.item, claim.made_at)
        try:
            yield from let_go()
        except BaseException as error:
            call_in_doubt(error)
            yield Later(let_go)
            raise
        if self._most is not None and claim.deliveries >= self._most:
            yield Later(partial(self._bury, claim.item))

    def _let_go(self, identity: Identity, item: bytes, made_at: int) -> Operation[None]:
        """End a claim, if it is still that one. Sent twice, it does nothing the second time.

        The item is touched so that one who waits is told of it, as of one that is put. That the claim hangs on our
        lease is compared because in a cluster that was recovered the same revision may be that of another's claim.
        """
        places = self._places
        mine = places.claim_of(item)
        ends = (kv.delete(mine), kv.touch(item), kv.put(places.returns))
        is_ours = (kv.created_at(mine, made_at), kv.on_lease(mine, identity.lease), kv.present(item))
        yield from txn_repeatable(kv.txn(is_ours, ends))

    def _who(self, deliveries: int) -> bytes:
        return who(self._session.node, deliveries=deliveries)
