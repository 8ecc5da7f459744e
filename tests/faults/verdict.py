"""What the histories of a load must be, whatever happened meanwhile: see `judge`."""

from __future__ import annotations

import json
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from skyward_etcd.active import Connection
from skyward_etcd.ops import kv
from skyward_etcd.session.session import Session
from skyward_etcd.testing.barrier_order import check_barrier
from skyward_etcd.testing.history import EMPTY, Operation, Verdict, singles
from skyward_etcd.testing.linearizability import (
    CounterModel,
    DictModel,
    LockModel,
    SetModel,
    check,
    check_queue_by_revision,
)
from skyward_etcd.testing.recorder import Recorder
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.faults.load import KEYS

READS = frozenset({"value", "get", "contains"})


@dataclass(slots=True)
class Committed:
    """What etcd's own history says about the queue: each commitment of an item, and what is left."""

    puts: list[tuple[Any, tuple[int, bytes]]] = field(default_factory=list[tuple[Any, tuple[int, bytes]]])
    """With what orders them: the revision, and of those that were put in one transaction the key."""
    remaining: list[Any] = field(default_factory=list[Any])
    up_to: int = 0
    """The revision up to which the history is known: it may be compacted up to there."""

    def skip(self, session: Session) -> None:
        """Begin here: what was before is of no interest."""
        self.up_to = _ask(session).header.revision

    def read(self, session: Session) -> None:
        """Read on, up to now. It takes neither a lease nor space, so that it can be done without either."""
        items = session.layout.collection("queue", "queue") + b"items/"
        now = _ask(session)
        self.remaining = [json.loads(found.value) for found in now.kvs]
        wire = Wire(session.endpoints)
        try:
            stream = wire.stream(methods.WATCH)
            everything = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=self.up_to + 1)
            stream.send(pb.WatchRequest(create_request=everything))
            responses = iter(stream)
            while self.up_to < now.header.revision:  # each revision has an event
                response = next(responses)
                assert not response.compact_revision, "the history of the queue is compacted"
                for event in response.events:
                    self.up_to = event.kv.mod_revision
                    if event.type == pb.Event.PUT and event.kv.key.startswith(items):
                        self.puts.append((json.loads(event.kv.value), (event.kv.mod_revision, event.kv.key)))
            stream.cancel()
        finally:
            wire.close()


def _ask(session: Session) -> pb.RangeResponse:
    """Return the queue's items, and with them the revision of now."""
    items = session.layout.collection("queue", "queue") + b"items/"
    wire = Wire(session.endpoints)
    try:
        return wire.call(methods.RANGE, kv.read(items, kv.prefix_end(items)), timeout_s=3.0)
    finally:
        wire.close()


class Histories:
    """The operations of all sessions, by collection."""

    def __init__(self) -> None:
        self.of: dict[str, list[Operation]] = {}

    def add(self, operation: Operation) -> None:
        """Take note of one; a worker's name begins with its collection's."""
        self.of.setdefault(operation.process.partition(" ")[0], []).append(operation)

    def __getitem__(self, kind: str) -> list[Operation]:
        return self.of.get(kind, [])

    def unknown(self) -> list[Operation]:
        """Return those of unknown outcome, of all kinds."""
        return [each for operations in self.of.values() for each in operations if each.is_unknown]

    def __str__(self) -> str:
        lines: list[str] = []
        for kind, operations in sorted(self.of.items()):
            calls = Tally(f"{each.call}{'?' if each.is_unknown else ''}" for each in operations)
            lines.append(f"{kind}: " + ", ".join(f"{count} {call}" for call, count in sorted(calls.items())))
        return "\n".join(lines)


def read_at_the_end(sky: Connection, histories: Histories) -> None:
    """Read everything once more, as operations after all others: what was acknowledged must be there now."""
    recorder = Recorder(histories.add)
    recorder.call("counter end", "value", (), lambda: sky.counter("counter", consistency="strong").value)
    entries, members = sky.dict("dict", consistency="strong"), sky.set("set", consistency="strong")
    for key in KEYS:
        recorder.call("dict end", "get", (key, None), partial(entries.get, key, None))
        recorder.call("set end", "contains", (key,), partial(members.contains, key))
    while (job := sky.queue("jobs").claim(timeout=0)) is not None:
        told = job.value, job.token
        recorder.call("jobs end", "claim", (), partial(tuple[Any, ...], told))
        recorder.call("jobs end", "ack", told, job.ack)
    recorder.call("lock end", "acquire", (), lambda: sky.lock("lock").acquire(timeout=30.0)).release()


def judge(histories: Histories, queue: Committed, *, parties: int, trusts_reads: bool = True) -> dict[str, Verdict]:
    """Check every collection's history. ``trusts_reads=False`` leaves out what only looked: see etcd #20418."""

    def of(kind: str) -> list[Operation]:
        return [each for each in histories[kind] if trusts_reads or each.call not in READS or "end" in each.process]

    return {
        "counter": check(CounterModel(), of("counter")),
        "dict": check(DictModel(), of("dict")),
        "set": check(SetModel(), of("set")),
        "lock": check(LockModel(), with_expiries(histories["lock"])),
        "queue": _check_queue(histories["queue"], queue),
        "jobs": check_jobs(histories["jobs"]),
        "barrier": check_barrier(parties, histories["barrier"]),
        "totals": _check_totals(histories["counter"]),
    }


def violations(verdicts: Mapping[str, Verdict]) -> list[str]:
    """Return what the checks that failed, or could not decide, have to say."""
    return [f"{kind}: {verdict}" for kind, verdict in verdicts.items() if not verdict]


def with_expiries(history: Iterable[Operation]) -> list[Operation]:
    """Say where a hold may have ended by itself: after an acquire or a release without an answer, and a lost hold."""
    told: list[Operation] = []
    for operation in history:
        told.append(operation)
        if operation.is_unknown or operation.result == "HoldLost":
            # A lost hold was lost some time before, but after it was acquired: how long, the fencing tokens say.
            since = _acquired(told, operation) if operation.call == "release" else operation.invoked
            told.append(replace(operation, call="expire", arguments=(), result=None, invoked=since, returned=None))
    return told


def _acquired(history: Sequence[Operation], release: Operation) -> float:
    """Return when the hold was acquired that this release was for."""
    return next(
        each.invoked
        for each in reversed(history)
        if each.call == "acquire" and each.process == release.process and each.result == release.arguments[0]
    )


def _check_totals(history: Sequence[Operation]) -> Verdict:
    totals = Tally(each.result for each in history if each.call == "increment" and not each.is_unknown)
    doubled = [total for total, times in totals.items() if times > 1]
    return Verdict(ok=not doubled, reason=f"totals that two increments returned: {doubled}")


def _check_queue(history: Sequence[Operation], queue: Committed) -> Verdict:
    """Check it item by item, where an item that was committed n times is n items, all but the first of unknown origin.

    That may be only if gets of unknown outcome had taken it: what such a get has taken is put back, at the end.
    """
    operations = [single for operation in map(_as_many_as_it_got, history) for single in singles(operation)]
    doubtful = [each for each in operations if each.call == "get" and each.is_unknown]
    revisions: dict[Any, int] = {}
    last: dict[Any, Any] = {}
    put_back = 0
    for place, (item, (revision, _)) in enumerate(sorted(queue.puts, key=lambda put: put[1])):
        name, number = item, 1
        while name in revisions:
            name, number = (item, number + 1), number + 1
        revisions[name] = place
        last[item] = name
        if name != item:
            put_back += 1
            if put_back > len(doubtful):
                return Verdict(ok=False, reason=f"{item!r} was put {number} times, again at revision {revision}")
            operations.append(replace(doubtful[0], call="put", arguments=(name,)))

    def names_the_last(get: Operation) -> Operation:
        """What a caller has got was put back no more: it is the last of its kind."""
        is_got = get.call == "get" and not get.is_unknown and get.result is not EMPTY
        return replace(get, result=last.get(get.result, get.result)) if is_got else get

    return check_queue_by_revision(
        [names_the_last(each) for each in operations], revisions, remaining=[last[item] for item in queue.remaining]
    )


def check_jobs(history: Sequence[Operation]) -> Verdict:
    """Check that each item was done once: acknowledged by its last claim, never claimed after that, and never lost."""
    answered = [each for each in history if not each.is_unknown]
    put = [each.arguments[0] for each in history if each.call == "put"]
    claims = [each.result for each in answered if each.call == "claim" and each.result is not None]
    acknowledged = [each.arguments for each in answered if each.call == "ack" and each.result is None]
    may_be_gone = {each.arguments[0] for each in history if each.call == "ack" and each.is_unknown}
    gone = dict(acknowledged)
    certain = {each.arguments[0] for each in answered if each.call == "put"}
    wrong = {
        "lost": certain - gone.keys() - may_be_gone,
        "never put": {item for item, _ in claims} - set(put),
        "acknowledged twice": {item for item, times in Tally(item for item, _ in acknowledged).items() if times > 1},
        "claimed by two with one token": {claim for claim, times in Tally(claims).items() if times > 1},
        "claimed after it was acknowledged": {(item, token) for item, token in claims if token > gone.get(item, token)},
    }
    reasons = [f"{what}: {sorted(found)}" for what, found in wrong.items() if found]
    return Verdict(ok=not reasons, reason="; ".join(reasons) or "each item was done once")


def _as_many_as_it_got(operation: Operation) -> Operation:
    """Take a ``get_many`` that got some for one that wanted no more.

    It returns what it has when nobody answers its next question: that there was no more is not said.
    """
    is_short = operation.call == "get_many" and not operation.is_unknown and operation.result
    return replace(operation, arguments=(len(operation.result),)) if is_short else operation
