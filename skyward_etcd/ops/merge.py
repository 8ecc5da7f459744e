"""Merging: calls that wait at the same time travel as one transaction, and get each its own answer.

The whole is applied at one revision, its compares before any of its operations. So the calls of a batch must be
independent: none writes what another reads, compares or writes. Then each is answered as if it had come alone just
then, and any order of them explains what all of them saw. A call that depends on one of the batch goes with the next.

A transaction that only reads is never sent: etcd before 3.4.20 and 3.5.5 panics when its client goes away meanwhile
(etcd #14110). A nested one counts as a write, whatever it holds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from skyward_etcd.errors import EtcdError, NoSpace, SkywardEtcdError
from skyward_etcd.ops.effects import Call
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import RANGE, TXN

__all__ = ["Batch", "Footprint", "footprint", "may_be_merged", "puts"]

_MOST_CALLS = 64
_MOST_PARTS = 60
"""Compares and operations of one call. etcd counts along a path of nested ones, to 128 (``--max-txn-ops``)."""
_MOST_BYTES = 512 * 1024
"""etcd refuses requests over 1.5 MiB."""


def may_be_merged(call: Call) -> bool:
    """Tell whether a call may travel with others: transactions, and linearizable reads of one key.

    A serializable read must not wait for a quorum, and a large one would hold up all writes of the cluster.
    """
    if call.method is TXN:
        return True
    request = call.request
    return call.method is RANGE and not (request.serializable or request.range_end or request.revision)


@dataclass(slots=True)
class Footprint:
    """The keys that a call has to do with."""

    written: set[bytes] = field(default_factory=set[bytes])
    read: set[bytes] = field(default_factory=set[bytes])
    intervals: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    """Read or compared as a whole: from the first key up to the second."""
    parts: int = 0
    """Compares and operations."""
    size: int = 0
    """Of the request, in bytes."""

    def is_independent_of(self, other: Footprint) -> bool:
        """Tell whether neither writes what the other reads or writes."""
        return not (self._spoils(other) or other._spoils(self))

    def add(self, other: Footprint) -> None:
        """Take in what another call has to do with."""
        self.written |= other.written
        self.read |= other.read
        self.intervals += other.intervals
        self.size += other.size

    def _spoils(self, other: Footprint) -> bool:
        return not (self.written.isdisjoint(other.read) and self.written.isdisjoint(other.written)) or any(
            start <= key < end for start, end in other.intervals for key in self.written
        )


def footprint(call: Call) -> Footprint | None:
    """Return what a call has to do with; ``None`` if that is too much for it to travel with others."""
    found = Footprint(size=call.request.ByteSize())
    if found.size > _MOST_BYTES // 4:
        return None
    if call.method is RANGE:
        found.read.add(call.request.key)
        return found
    return found if _walk(call.request, found) else None


def puts(request: pb.TxnRequest) -> bool:
    """Tell whether a transaction may write anything but deletions."""
    operations = (*request.success, *request.failure)
    return any(each.HasField("request_put") or _puts_inside(each) for each in operations)


def _puts_inside(operation: pb.RequestOp) -> bool:
    return operation.HasField("request_txn") and puts(operation.request_txn)


def _walk(request: pb.TxnRequest, found: Footprint) -> bool:
    for compare in request.compare:
        found.parts += 1
        _reads(compare, found)
    for branch in (request.success, request.failure):
        for operation in branch:
            found.parts += 1
            kind = operation.WhichOneof("request")
            if kind == "request_put":
                found.written.add(operation.request_put.key)
            elif kind == "request_range":
                _reads(operation.request_range, found)
            elif kind == "request_delete_range" and not operation.request_delete_range.range_end:
                found.written.add(operation.request_delete_range.key)
            elif kind == "request_delete_range" or not _walk(operation.request_txn, found):
                return False
    return found.parts <= _MOST_PARTS


def _reads(what: Any, found: Footprint) -> None:
    end = what.range_end
    if end:
        found.intervals.append((what.key, end))
    else:
        found.read.add(what.key)


class Batch:
    """Calls that travel together."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._footprint = Footprint()

    @property
    def is_full(self) -> bool:
        """Whether no other call fits."""
        return len(self.calls) >= _MOST_CALLS

    def takes(self, call: Call, its: Footprint) -> bool:
        """Take in a call if it fits; tell whether it did."""
        fits = self.fits(its)
        if fits:
            self.add(call, its)
        return fits

    def fits(self, its: Footprint) -> bool:
        """Tell whether there is room for a call that depends on none that is in."""
        mine = self._footprint
        return not self.is_full and mine.size + its.size <= _MOST_BYTES and mine.is_independent_of(its)

    def add(self, call: Call, its: Footprint) -> None:
        """Take in a call that fits."""
        self._footprint.add(its)
        self.calls.append(call)

    def as_call(self) -> Call:
        """Return what is sent: a call that is alone, as it is."""
        if len(self.calls) == 1:
            return self.calls[0]
        merged = pb.TxnRequest()
        for call in self.calls:
            operation = merged.success.add()
            if call.method is TXN:
                operation.request_txn.CopyFrom(call.request)
            else:
                operation.request_txn.success.add().request_range.CopyFrom(call.request)
        return Call(TXN, merged)

    def answers(self, reply: Any) -> Sequence[Any]:
        """Return each call's reply, in order."""
        if len(self.calls) == 1:
            return (reply,)
        header = reply.header
        answers: list[Any] = []
        for call, response in zip(self.calls, reply.responses, strict=True):
            answer = response.response_txn
            if call.method is RANGE:
                answer = answer.responses[0].response_range
            answer.header.CopyFrom(header)
            answers.append(answer)
        return answers

    def told(self, error: SkywardEtcdError) -> Sequence[SkywardEtcdError | None]:
        """Return what an error of the whole means to each call; ``None``: it has to be sent again, by itself.

        etcd refuses before it applies anything, but for `NoSpace`: whoever writes has to look for himself.
        """
        if len(self.calls) == 1 or not isinstance(error, EtcdError):
            return [copy.copy(error) for _ in self.calls]  # each is raised, and added to, by itself
        if not isinstance(error, NoSpace):
            return [None for _ in self.calls]
        return [copy.copy(error) if call.method is TXN and puts(call.request) else None for call in self.calls]
