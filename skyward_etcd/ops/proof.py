"""Exactly once: transactions that prove by themselves whether they were applied.

A transaction borrows a *slot*, a key of its session that nobody else writes::

    if   the slot is as I last wrote it
    then if   the first alternative's compares hold   then its operations, and put its number into the slot
         else (the next alternative, …)
    else get the slot

A repetition after a lost answer that finds the slot moved knows that the first try was applied, and which
alternative it took; what it returned is in the history, at the slot's revision. The idea is RIFL's (Lee et al.,
"Implementing Linearizability at Large Scale and Low Latency", SOSP 2015), with the completion record in the same
transaction as the effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from skyward_etcd.errors import HoldLost, LeaseNotFound, NoSpace, OutcomeUnknown
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import once, once_by, txn_repeatable
from skyward_etcd.ops.effects import Identify, Identity, Later, Operation, Renounce, Slot
from skyward_etcd.wire import messages as pb

__all__ = ["Alternative", "Guard", "Outcome", "prove", "write"]

_NONE = b"-"
_REFUSED = b"!"


@dataclass(frozen=True, slots=True)
class Alternative:
    """Operations, and what must hold for them."""

    compares: Sequence[pb.Compare]
    operations: Sequence[pb.RequestOp]


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold for a write besides its own compares."""

    compares: Sequence[pb.Compare]
    refusal: str = ""
    """What to tell whoever is refused, where that is for good: what does not hold then never will again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a proven transaction did."""

    taken: int | None
    """The number of the alternative, or ``None``."""
    responses: Sequence[pb.ResponseOp] | None
    """Its operations' results (of ``otherwise`` when none was taken); ``None`` when the answer was lost."""
    revision: int
    """The revision it was applied at."""
    is_refused: bool = False
    """Whether the guard did not hold."""


def prove(
    alternatives: Sequence[Alternative],
    *,
    otherwise: Sequence[pb.RequestOp] = (),
    undo: Callable[[Outcome], Operation[None]] | None = None,
    identity: Identity | None = None,
    guard: Guard | None = None,
    what: str,
) -> Operation[Outcome]:
    """Apply the first alternative that holds, if the ``guard`` does, exactly once, and say which. One round trip.

    ``otherwise`` may only read. Nothing is written when no alternative holds. Where the ``guard`` does not hold, none
    is looked at and nothing read: there are no responses. If this is cancelled while the answer is on its way, and an
    alternative was taken, ``undo`` is done in the background. Operations that name the lease of an ``identity`` are
    tried with that one only.

    Raises:
        OutcomeUnknown: the session was lost together with the answer.
        LeaseNotFound: the ``identity`` that was asked for is lost, and nothing was applied.
        HoldLost: the ``guard`` does not hold, and says so; nothing was applied.
        NoSpace: the quota is reached; nothing was applied.
    """
    while True:
        own: Identity = identity or (yield Identify())
        slot = own.borrow_slot()
        try:
            outcome = yield from _try(_Proof(alternatives, otherwise, own, slot, what, guard))
        except LeaseNotFound:
            yield Renounce(own)
            if identity is not None:
                raise
            continue
        except NoSpace:
            own.return_slot(slot)
            raise
        except BaseException:
            # Nobody knows now what the slot holds: it is not given back before that is found out.
            yield Later(partial(_abandon, own, slot, undo))
            raise
        own.return_slot(slot)
        if guard is not None and guard.refusal and outcome.is_refused:
            raise HoldLost(guard.refusal)
        return outcome


def write(operations: Sequence[pb.RequestOp], *, what: str) -> Operation[None]:
    """Apply operations that may be applied again, and never after this has returned. One round trip.

    Only a repetition moves the slot, which keeps earlier tries from arriving late: without that, a value that was
    overwritten long ago could come back. The first use of a slot moves it too: that it is not there is also true once
    the lease has ended, and what is put on the lease is refused then.

    Raises:
        OutcomeUnknown: no answer, and it may have been applied.
        NoSpace: the quota is reached; the write that reaches it is applied, and gets this answer all the same.
    """
    while True:
        own: Identity = yield Identify()
        slot = own.borrow_slot()
        proof = _Proof((Alternative((), operations),), (), own, slot, what)
        try:
            yield from _try(proof, moves_first=not slot.mod_revision)
        except LeaseNotFound:
            yield Renounce(own)
            continue
        except NoSpace:
            own.return_slot(slot)
            raise
        except BaseException:
            yield Later(partial(_abandon, own, slot, None))
            raise
        own.return_slot(slot)
        return


@dataclass(frozen=True, slots=True)
class _Proof:
    alternatives: Sequence[Alternative]
    otherwise: Sequence[pb.RequestOp]
    identity: Identity
    slot: Slot
    what: str
    guard: Guard | None = None

    def request(self, *, moves: bool, moves_anyway: bool) -> pb.TxnRequest:
        """Return the transaction; which of its branches move the slot is what tells the tries apart."""
        slot, lease = self.slot, self.identity.lease
        request = kv.Txn()
        kv.modified_at(slot.key, slot.mod_revision, into=request.compare.add())
        request.failure.add().request_range.key = slot.key
        branch = request.success
        if self.guard is not None and self.guard.compares:
            guarded = branch.add().request_txn
            guarded.compare.extend(self.guard.compares)
            if moves_anyway:
                kv.put(slot.key, _REFUSED, lease=lease, into=guarded.failure.add())
            branch = guarded.success
        for number, alternative in enumerate(self.alternatives):
            inner = branch.add().request_txn
            if alternative.compares:
                inner.compare.extend(alternative.compares)
            inner.success.extend(alternative.operations)
            if moves:
                kv.put(slot.key, b"%d" % number, lease=lease, into=inner.success.add())
            branch = inner.failure
        if self.otherwise:
            branch.extend(self.otherwise)
        if moves_anyway:
            kv.put(slot.key, _NONE, lease=lease, into=branch.add())
        return request


def _try(proof: _Proof, *, moves_first: bool = True) -> Operation[Outcome]:
    slot, what = proof.slot, proof.what
    first = proof.request(moves=moves_first, moves_anyway=False)
    # A try in doubt may still be on its way. The repetition moves the slot in any case, so that it comes too late.
    again = partial(proof.request, moves=True, moves_anyway=True)
    if moves_first:
        reply, doubt = yield from once_by(slot.key, slot.mod_revision, first, again, what=what)
    else:
        reply, doubt = yield from once(first, again, what=what)
    revision = reply.header.revision
    if reply.succeeded:
        responses: Sequence[pb.ResponseOp] = reply.responses
        if proof.guard is not None and proof.guard.compares:
            guarded = responses[0].response_txn
            if not guarded.succeeded:
                slot.mod_revision = revision if doubt else slot.mod_revision
                return Outcome(None, (), revision, is_refused=True)
            responses = guarded.responses
        taken, responses = _taken(responses, len(proof.alternatives))
        if doubt or (moves_first and taken is not None):
            slot.mod_revision = revision
            responses = responses[:-1]
        return Outcome(taken, responses, revision)
    found = reply.responses[0].response_range.kvs
    if not found:
        gone = LeaseNotFound(f"{what}: the session's keys are gone")
        if doubt:
            raise OutcomeUnknown(f"{what}: the session was lost together with the answer") from gone
        raise gone
    slot.mod_revision = found[0].mod_revision
    return _recorded(found[0])


def _recorded(slot: pb.KeyValue) -> Outcome:
    """Return the outcome that a slot tells of."""
    taken = None if slot.value in (_NONE, _REFUSED) else int(slot.value)
    return Outcome(taken, None, slot.mod_revision, is_refused=slot.value == _REFUSED)


def _taken(responses: Sequence[pb.ResponseOp], alternatives: int) -> tuple[int | None, Sequence[pb.ResponseOp]]:
    """Return which alternative was taken, and the responses of what was done."""
    for number in range(alternatives):
        inner = responses[0].response_txn
        responses = inner.responses
        if inner.succeeded:
            return number, responses
    return None, responses


def _abandon(identity: Identity, slot: Slot, undo: Callable[[Outcome], Operation[None]] | None) -> Operation[None]:
    """Keep a try that is still on its way from being applied, or undo it if it was; then the slot is known again.

    The slot is moved, not deleted: "it does not exist" is the guard of its first use, which may still be on its way.
    """
    fence = kv.txn(
        (kv.modified_at(slot.key, slot.mod_revision),),
        (kv.put(slot.key, _NONE, lease=identity.lease),),
        (kv.get(slot.key),),
    )
    try:
        reply = yield from txn_repeatable(fence)
    except LeaseNotFound:
        return  # the slot was never written, and nothing that names the lease can be applied any more
    if reply.succeeded:
        slot.mod_revision = reply.header.revision
    else:
        found = reply.responses[0].response_range.kvs
        if not found:
            return  # gone with the lease
        outcome = _recorded(found[0])
        if undo is not None and outcome.taken is not None:
            yield from undo(outcome)
        slot.mod_revision = found[0].mod_revision
    identity.return_slot(slot)
