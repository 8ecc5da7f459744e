"""What operators do to collections that are in use: as safe as the collections' own operations.

Each change is applied exactly once, also when its answer is lost, and no hold or claim is given on before whoever had
it can know that it is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from skyward_etcd.collections.places import Places
from skyward_etcd.collections.tail import Tail
from skyward_etcd.errors import LeaseNotFound, NotHeld, WrongKind
from skyward_etcd.operate.catalog import contents
from skyward_etcd.operate.reading import Reading, Who, settings_of
from skyward_etcd.operate.views import contenders, in_order
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import repeatable, txn_repeatable
from skyward_etcd.ops.effects import Await, Identify, Identity, Mind, Now, Operation
from skyward_etcd.ops.layout import Kind
from skyward_etcd.ops.proof import Alternative, Outcome, prove
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import LEASE_REVOKE, LEASE_TIME_TO_LIVE

__all__ = ["Ended", "break_lock", "end_holders", "end_session", "purge", "remove", "requeue"]


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that was ended, as if its process had died."""

    session: str
    locks: int
    """Locks that it held or waited for."""
    claims: int
    """Items that it had claimed, which are back at their old places."""
    waited_s: float
    """How long these were kept from others, so that it could hear of its end."""


def break_lock(mind: Mind, name: str, *, at_once: bool = False) -> Operation[Ended]:
    """Take a lock from its holder, by ending its session; see `end_session`.

    Raises:
        NoSuchCollection: nobody has used such a lock.
        NotHeld: nobody holds it.
    """
    reading = Reading(mind)
    yield from settings_of(reading, "lock", name)
    line = yield from contenders(reading, name)
    if not line:
        raise NotHeld(f"lock {name!r}: nobody holds it, and nobody waits for it")
    return (yield from end_session(mind, line[0].lease, at_once=at_once))


def end_holders(mind: Mind, name: str, *, node: str | None = None, at_once: bool = False) -> Operation[list[Ended]]:
    """Have the claimed items of a queue come back, by ending the sessions that hold them (those on ``node`` only).

    Raises:
        NoSuchCollection: nobody has used such a queue.
    """
    reading = Reading(mind)
    yield from settings_of(reading, "queue", name)
    claims = yield from reading.everything(_places(mind, name).all_claims)
    leases = sorted({claim.lease for claim in claims if node is None or _is_on(claim, node)})
    return (yield from _end(mind, leases, at_once=at_once))


def end_session(mind: Mind, lease: int, *, at_once: bool = False) -> Operation[Ended]:
    """End a session as if its process had died: its locks, claims and places at barriers are free.

    Its process hears of that at its next renewal. Until its lease would have ended by its own reckoning, which is how
    long ``hold.valid`` may say so, its locks and claims are kept from others, on our lease; with ``at_once`` they are
    not. What is written through its holds' `guard` is refused as soon as the lock is free.

    Raises:
        NoSpace: the quota is reached, so that they cannot be kept from others: there remains ``at_once``.
        LeaseNotFound: our own session was lost meanwhile, and all is free.
    """
    (ended,) = yield from _end(mind, [lease], at_once=at_once)
    return ended


def _end(mind: Mind, leases: Sequence[int], *, at_once: bool) -> Operation[list[Ended]]:
    """End sessions together, with one wait for all."""
    ended: list[Ended] = []
    kept: list[kv.KeyValue] = []
    for lease in leases:
        asked = pb.LeaseTimeToLiveRequest(ID=lease, keys=True)
        its: pb.LeaseTimeToLiveResponse = yield from repeatable(LEASE_TIME_TO_LIVE, asked)
        root = mind.layout.root
        locks = [key for key in its.keys if key.startswith(root + b"lock/")]
        claims = [key for key in its.keys if key.startswith(root + b"queue/") and b"/claims/" in key]
        its_kept: list[kv.KeyValue] = []
        for key in () if at_once else (*locks, *claims):
            its_kept.extend((yield from _taken_over(mind, key, lease)))
        with contextlib.suppress(LeaseNotFound):  # it has ended by itself
            yield from repeatable(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease))
        kept += its_kept
        ended.append(Ended(f"{lease:016x}", len(locks), len(claims), float(its.grantedTTL) if its_kept else 0.0))
    waited_s = max((each.waited_s for each in ended), default=0.0)
    if waited_s:
        now: float = yield Now()
        yield Await(now + waited_s, ())
    for each in kept:
        yield from _let_go(each)
    return ended


def requeue(mind: Mind, name: str, *, most: int | None = None) -> Operation[int]:
    """Put the dead items of a queue at its end, oldest first, each exactly once; return how many.

    Their deliveries are counted from 0 again.

    Raises:
        NoSuchCollection: nobody has used such a queue.
        UnsupportedType: an item is a signed pickle, which has to be signed anew, and there is no secret.
    """
    reading = Reading(mind)
    yield from settings_of(reading, "queue", name)
    living, dead = _places(mind, name), _places(mind, f"{name}.dead")
    tail = Tail(mind, living, f"queue {name!r}")
    found = yield from reading.everything(dead.all_items, keys_only=True)
    done = 0
    for item in in_order(dead, found)[:most]:
        there = yield from Reading(mind).one(item.key)
        if there is not None:  # else somebody was quicker
            value = mind.codec.rebound(there.value, source=dead.prefix, target=living.prefix)
            claim, deliveries = dead.claim_of(item.key), dead.deliveries_of(item.key)
            is_free = (kv.present(item.key), kv.absent(claim))
            taking = Alternative(is_free, (kv.delete(item.key), kv.delete(deliveries)))
            done += yield from tail.take_over(value, taking)
    return done


def purge(mind: Mind, name: str) -> Operation[int]:
    """Remove all items of a queue at once, the claimed ones too, and return how many.

    Raises:
        NoSuchCollection: nobody has used such a queue.
    """
    reading = Reading(mind)
    yield from settings_of(reading, "queue", name)
    places = _places(mind, name)
    there = yield from reading.count(places.all_items)
    wipe = [_wipe(prefix) for prefix in (places.all_items, places.all_claims, places.all_deliveries)]
    outcome = yield from prove([Alternative((), wipe)], what=f"queue {name!r}")
    return outcome.responses[0].response_delete_range.deleted if outcome.responses else there


def remove(mind: Mind, kind: Kind, name: str) -> Operation[int]:
    """Remove a collection and its name, at once, and return how many entries it had.

    Of a queue and a barrier the number stays that its processes may remember: a page, a generation. One that is used
    afterwards begins anew.

    Raises:
        NoSuchCollection: nobody has used the name for this kind.
        WrongKind: it is a lock that is held, or a barrier at which somebody waits. Nothing was removed.
    """
    reading = Reading(mind)
    yield from settings_of(reading, kind, name)
    prefix = mind.layout.collection(kind, name)
    places = _places(mind, name)
    there = yield from reading.count(contents(mind.layout, kind, name))
    compares: Sequence[kv.Compare] = ()
    wiped: Sequence[bytes] = (prefix,)
    if kind == "queue":
        wiped = (places.all_items, places.all_claims, places.all_deliveries)
    elif kind == "lock":
        compares = (kv.all_absent(prefix, kv.prefix_end(prefix)),)
    elif kind == "barrier":
        compares, wiped = (kv.all_absent(*contents(mind.layout, kind, name)),), ()
    operations = [*map(_wipe, wiped), kv.delete(mind.layout.meta(kind, name))]
    outcome: Outcome = yield from prove([Alternative(compares, operations)], what=f"{kind} {name!r}")
    if outcome.taken is None:
        way_out = "break it, or wait until it is free" if kind == "lock" else "reset it first"
        raise WrongKind(f"{kind} {name!r} is in use by somebody, who would never hear of its end: {way_out}")
    if not wiped:
        return 0
    return outcome.responses[0].response_delete_range.deleted if outcome.responses else there


def _taken_over(mind: Mind, key: bytes, lease: int) -> Operation[Sequence[kv.KeyValue]]:
    """Keep a key that would go with another's lease: on ours. Nothing else of it changes, nor who may delete it."""
    own: Identity = yield Identify()
    moved = kv.Op(request_put=pb.PutRequest(key=key, ignore_value=True, lease=own.lease))
    yield from txn_repeatable(kv.txn((kv.on_lease(key, lease),), (moved,)))
    found = yield from Reading(mind).one(key)
    return (found,) if found is not None and found.lease == own.lease else ()


def _let_go(kept: kv.KeyValue) -> Operation[None]:
    """Give on what we have kept, unless it was given up meanwhile. Sent twice, it does nothing the second time."""
    ends: list[kv.Op] = [kv.delete(kept.key)]
    compares = [kv.created_at(kept.key, kept.create_revision), kv.on_lease(kept.key, kept.lease)]
    if b"/claims/" in kept.key:
        queue, _, item = kept.key.rpartition(b"/claims/")
        compares.append(kv.present(queue + b"/items/" + item))
        ends += [kv.touch(queue + b"/items/" + item), kv.put(queue + b"/returns")]
    yield from txn_repeatable(kv.txn(compares, ends))


def _places(mind: Mind, name: str) -> Places:
    return Places(mind.layout.collection("queue", name), mind.layout)


def _wipe(prefix: bytes) -> kv.Op:
    return kv.delete(prefix, kv.prefix_end(prefix))


def _is_on(claim: kv.KeyValue, node: str) -> bool:
    return Who.read("", claim.value).node == node
