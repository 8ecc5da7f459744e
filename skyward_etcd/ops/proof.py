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

from skyward_etcd.errors import LeaseNotFound, OutcomeUnknown
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import once, txn_repeatable
from skyward_etcd.ops.effects import Identify, Identity, Later, Operation, Renounce, Slot
from skyward_etcd.wire import messages as pb

__all__ = ["Alternative", "Outcome", "prove", "write"]

_NONE = b"-"


@dataclass(frozen=True, slots=True)
class Alternative:
    """Operations, and what must hold for them."""

    compares: Sequence[pb.Compare]
    operations: Sequence[pb.RequestOp]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a proven transaction did."""

    taken: int | None
    """The number of the alternative, or ``None``."""
    responses: Sequence[pb.ResponseOp] | None
    """Its operations' results (of ``otherwise`` when none was taken); ``None`` when the answer was lost."""
    revision: int
    """The revision it was applied at."""


def prove(
    alternatives: Sequence[Alternative],
    *,
    guard: Sequence[pb.Compare] = (),
    otherwise: Sequence[pb.RequestOp] = (),
    undo: Callable[[Outcome], Operation[None]] | None = None,
    identity: Identity | None = None,
    what: str,
) -> Operation[Outcome]:
    """Apply the first alternative that holds, exactly once, and say which. One round trip.

    ``otherwise`` may only read. Nothing is written when no alternative holds. Where the ``guard`` does not hold, none
    is looked at and nothing read: there are no responses. If this is cancelled while the answer is on its way, and an
    alternative was taken, ``undo`` is done in the background. Operations that name the lease of an ``identity`` are
    tried with that one only.

    Raises:
        OutcomeUnknown: the session was lost together with the answer.
        LeaseNotFound: the ``identity`` that was asked for is lost, and nothing was applied.
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
        except BaseException:
            # Nobody knows now what the slot holds: it is not given back before that is found out.
            yield Later(partial(_abandon, own, slot, undo))
            raise
        own.return_slot(slot)
        return outcome


def write(operations: Sequence[pb.RequestOp], *, what: str) -> Operation[None]:
    """Apply operations that may be applied again, and never after this has returned. One round trip.

    Only a repetition moves the slot, which keeps earlier tries from arriving late: without that, a value that was
    overwritten long ago could come back.
    """
    while True:
        own: Identity = yield Identify()
        slot = own.borrow_slot()
        proof = _Proof((Alternative((), operations),), (), own, slot, what)
        try:
            yield from _try(proof, moves_first=False)
        except LeaseNotFound:
            yield Renounce(own)
            continue
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
    guard: Sequence[pb.Compare] = ()

    def request(self, *, moves: bool, moves_anyway: bool) -> pb.TxnRequest:
        """Return the transaction; which of its branches move the slot is what tells the tries apart."""
        slot, lease = self.slot, self.identity.lease
        moving = (kv.put(slot.key, _NONE, lease=lease),) if moves_anyway else ()
        chain = (*self.otherwise, *moving)
        for number in range(len(self.alternatives) - 1, -1, -1):
            alternative = self.alternatives[number]
            record = (kv.put(slot.key, b"%d" % number, lease=lease),) if moves else ()
            chain = (kv.nested(alternative.compares, (*alternative.operations, *record), chain),)
        if self.guard:
            chain = (kv.nested(self.guard, chain, moving),)
        return kv.txn((kv.modified_at(slot.key, slot.mod_revision),), chain, (kv.get(slot.key),))


def _try(proof: _Proof, *, moves_first: bool = True) -> Operation[Outcome]:
    slot, what = proof.slot, proof.what
    first = proof.request(moves=moves_first, moves_anyway=False)
    # A try in doubt may still be on its way. The repetition moves the slot in any case, so that it comes too late.
    again = proof.request(moves=True, moves_anyway=True)
    reply, doubt = yield from once(first, again, what=what)
    revision = reply.header.revision
    if reply.succeeded:
        taken, responses = _taken(reply, proof)
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
    return Outcome(None if found[0].value == _NONE else int(found[0].value), None, found[0].mod_revision)


def _taken(reply: pb.TxnResponse, proof: _Proof) -> tuple[int | None, Sequence[pb.ResponseOp]]:
    responses: Sequence[pb.ResponseOp] = reply.responses
    if proof.guard:
        guarded = responses[0].response_txn
        responses = guarded.responses
        if not guarded.succeeded:
            return None, responses
    for number in range(len(proof.alternatives)):
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
    reply = yield from txn_repeatable(fence)
    if reply.succeeded:
        slot.mod_revision = reply.header.revision
    else:
        found = reply.responses[0].response_range.kvs
        if not found:
            return  # gone with the lease
        if undo is not None and found[0].value != _NONE:
            yield from undo(Outcome(int(found[0].value), None, found[0].mod_revision))
        slot.mod_revision = found[0].mod_revision
    identity.return_slot(slot)
