"""Sending requests, and sending them again: the one place that repeats a request after a lost answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skyward_etcd.errors import Compacted, NoSpace, OutcomeUnknown, QuorumLost, SkywardEtcdError, Unavailable
from skyward_etcd.ops.effects import Backoff, Call, Now, Operation
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import DELETE_RANGE, RANGE, TXN, Method

__all__ = [
    "call_in_doubt",
    "delete_repeatable",
    "not_done",
    "once",
    "once_by",
    "range_",
    "recall",
    "repeatable",
    "txn_repeatable",
]


def repeatable(method: Method[Any, Any], request: Any) -> Operation[Any]:
    """Send a request that does no harm when it is applied twice, until it is answered.

    Raises:
        Unavailable: nobody answered in the time an operation has.
    """
    call = Call(method, request)
    try:
        return (yield call)
    except Unavailable as lost:
        error = lost
    since = yield Now()
    attempt = 2
    while True:
        yield Backoff(attempt, since, error)
        try:
            return (yield call)
        except Unavailable as lost:
            lost.maybe_applied = lost.maybe_applied or error.maybe_applied
            error = lost
        attempt += 1


def txn_repeatable(request: pb.TxnRequest) -> Operation[pb.TxnResponse]:
    """`repeatable` for a transaction that does no harm when it is applied twice."""
    reply: pb.TxnResponse = yield from repeatable(TXN, request)
    return reply


def delete_repeatable(key: bytes) -> Operation[None]:
    """Delete a key that nobody writes any more."""
    yield from repeatable(DELETE_RANGE, pb.DeleteRangeRequest(key=key))


def range_(request: pb.RangeRequest, *, seen: int) -> Operation[pb.RangeResponse]:
    """Read, repeatedly until answered.

    A serializable request is answered by one member from what it has. If that is older than the revision ``seen``,
    the question is asked again linearizably: one more round trip, and the session never goes back in time.
    """
    reply: pb.RangeResponse = yield from repeatable(RANGE, request)
    if request.serializable and reply.header.revision < seen:
        again = pb.RangeRequest()
        again.CopyFrom(request)
        again.serializable = False
        reply = yield from repeatable(RANGE, again)
    return reply


def recall(key: bytes, revision: int, *, what: str) -> Operation[pb.KeyValue | None]:
    """Return a key as it was at a past revision: how the answer of a write is found whose reply was lost.

    Raises:
        OutcomeUnknown: the history is gone (compacted), so that only *that* it was applied is known.
    """
    try:
        reply: pb.RangeResponse = yield from repeatable(RANGE, pb.RangeRequest(key=key, revision=revision))
    except Compacted:
        raise OutcomeUnknown(f"{what}: the write was applied, but its answer was lost and is no longer known") from None
    except Unavailable as lost:
        lost.maybe_applied = True
        raise
    return reply.kvs[0] if reply.kvs else None


def call_in_doubt(error: BaseException) -> None:
    """Let an `Unavailable` say that it may have been applied: other requests were, or one is owed to the background."""
    if isinstance(error, Unavailable):
        error.maybe_applied = True


def once(
    request: pb.TxnRequest, again: Callable[[], pb.TxnRequest] | None = None, *, what: str
) -> Operation[tuple[pb.TxnResponse, bool]]:
    """Send a transaction whose own compares keep a second application from doing anything.

    After a lost answer what ``again`` makes is sent instead, if it is given. Return the reply, and whether an earlier
    try is in doubt, so that the caller can tell a refusal by others from one by its own earlier try.

    Raises:
        OutcomeUnknown: no answer in the time an operation has; it was applied once or not at all.
        Unavailable: likewise, but certainly not applied.
    """
    try:
        return (yield Call(TXN, request)), False
    except Unavailable as lost:
        error = lost
        doubt = lost.maybe_applied
    since = yield Now()
    attempt = 2
    while True:
        try:
            yield Backoff(attempt, since, error)
        except Unavailable as over:
            if doubt:
                raise OutcomeUnknown(f"{what}: no answer, and it may have been applied: {over}") from over
            raise
        try:
            return (yield Call(TXN, again() if doubt and again else request)), doubt
        except Unavailable as lost:
            error = lost
            doubt = doubt or lost.maybe_applied
        except SkywardEtcdError as refused:
            if doubt:  # an earlier try may have been applied before this one was refused
                raise OutcomeUnknown(f"{what}: no answer, and it may have been applied: {refused}") from refused
            raise
        attempt += 1


def once_by(
    key: bytes,
    mod_revision: int,
    request: pb.TxnRequest,
    again: Callable[[], pb.TxnRequest] | None = None,
    *,
    what: str,
) -> Operation[tuple[pb.TxnResponse, bool]]:
    """`once`, for transactions that first compare a key with being as it was last written, and else get it.

    The key also tells what a `NoSpace` means: etcd says that as well of the write with which the quota is reached, and
    applies it nevertheless (its ``quotaApplierV3``). One round trip more then, and only then.

    Raises:
        NoSpace: the quota is reached, and nothing was applied.
        OutcomeUnknown: likewise, or nobody would say whether that is so.
    """
    try:
        return (yield from once(request, again, what=what))
    except NoSpace as refused:
        try:
            found = yield from range_(pb.RangeRequest(key=key), seen=0)
        except Unavailable as lost:
            raise OutcomeUnknown(f"{what}: {refused}; it may have been applied: {lost}") from lost
        if (found.kvs[0].mod_revision if found.kvs else 0) == mod_revision:
            raise
    return pb.TxnResponse(header=found.header, responses=[pb.ResponseOp(response_range=found)]), True


def not_done(message: str, doubt: OutcomeUnknown) -> Unavailable:
    """Return the error of an operation that gives back whatever it may have taken: nobody answered, that is all."""
    kind = QuorumLost if isinstance(doubt.__cause__, QuorumLost) else Unavailable
    return kind(f"{message}: {doubt}")
