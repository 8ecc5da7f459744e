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

from collections.abc import Sequence
from dataclasses import dataclass

from skyward_etcd.errors import LeaseNotFound, OutcomeUnknown
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import once
from skyward_etcd.ops.effects import Identify, Identity, Later, Operation, Renounce, Slot
from skyward_etcd.wire import messages as pb

__all__ = ["Alternative", "Outcome", "prove"]

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
    alternatives: Sequence[Alternative], *, otherwise: Sequence[pb.RequestOp] = (), what: str
) -> Operation[Outcome]:
    """Apply the first alternative that holds, exactly once, and say which. One round trip.

    ``otherwise`` may only read. Nothing is written when no alternative holds.

    Raises:
        OutcomeUnknown: the session was lost together with the answer.
    """
    while True:
        identity: Identity = yield Identify()
        slot = identity.borrow_slot()
        try:
            outcome = yield from _try(alternatives, otherwise, identity, slot, what)
        except LeaseNotFound:
            yield Renounce(identity)
            continue
        except BaseException:
            # Nobody knows what the slot holds: it is never used again.
            if slot.mod_revision:
                yield Later(kv.deleting(slot.key))
            raise
        identity.return_slot(slot)
        return outcome


def _try(
    alternatives: Sequence[Alternative], otherwise: Sequence[pb.RequestOp], identity: Identity, slot: Slot, what: str
) -> Operation[Outcome]:
    request = _guarded(alternatives, otherwise, identity, slot)
    # A try in doubt may still be on its way. The repetition moves the slot in any case, so that it comes too late.
    again = _guarded(alternatives, (*otherwise, kv.put(slot.key, _NONE, lease=identity.lease)), identity, slot)
    reply, doubt = yield from once(request, again, what=what)
    if reply.succeeded:
        return _read(reply, len(alternatives), slot, moved_anyway=doubt)
    found = reply.responses[0].response_range.kvs
    if not found:
        if doubt:
            raise OutcomeUnknown(f"{what}: the session was lost together with the answer")
        raise LeaseNotFound(f"{what}: the session's keys are gone")
    slot.mod_revision = found[0].mod_revision
    taken = None if found[0].value == _NONE else int(found[0].value)
    return Outcome(taken, None, found[0].mod_revision)


def _guarded(
    alternatives: Sequence[Alternative], otherwise: Sequence[pb.RequestOp], identity: Identity, slot: Slot
) -> pb.TxnRequest:
    chain: Sequence[pb.RequestOp] = otherwise
    for number in range(len(alternatives) - 1, -1, -1):
        alternative = alternatives[number]
        record = kv.put(slot.key, b"%d" % number, lease=identity.lease)
        chain = (kv.nested(alternative.compares, (*alternative.operations, record), chain),)
    return kv.txn((kv.modified_at(slot.key, slot.mod_revision),), chain, (kv.get(slot.key),))


def _read(reply: pb.TxnResponse, alternatives: int, slot: Slot, *, moved_anyway: bool) -> Outcome:
    revision = reply.header.revision
    responses: Sequence[pb.ResponseOp] = reply.responses
    for number in range(alternatives):
        inner = responses[0].response_txn
        responses = inner.responses
        if inner.succeeded:
            slot.mod_revision = revision
            return Outcome(number, responses[:-1], revision)
    if moved_anyway:
        slot.mod_revision = revision
    return Outcome(None, responses, revision)
