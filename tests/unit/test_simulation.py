"""Every collection, under everything that can go wrong, in simulated time; and proof that the simulation would tell.

A failing seed reproduces: ``SCENARIOS["queue"].play(417)``. ``SKYWARD_ETCD_SEEDS`` sets how many are played.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skyward_etcd.collections import barrier, claim, counter, dict, front, lock, near, places, queue, tail
from skyward_etcd.errors import LeaseNotFound, Unavailable
from skyward_etcd.ops import attempt, kv, merge, proof
from skyward_etcd.ops.effects import Await, Operation
from skyward_etcd.session import watch
from skyward_etcd.testing.simulator import Stuck
from skyward_etcd.wire import messages as pb
from tests.unit.simulated import SCENARIOS, SEEDS, Scenario

FOUND_WITHIN = 1500


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a queue of a few items have several pages, and a few contenders for a lock a long line."""
    monkeypatch.setattr(tail, "_PAGE", 3)
    monkeypatch.setattr(front, "_WINDOW", 2)
    monkeypatch.setattr(lock, "_NEAR", 2)
    monkeypatch.setattr(lock, "_SEEN", 4)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_promise_holds_whatever_goes_wrong(name: str) -> None:
    play(name, range(SEEDS))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_promise_holds_ten_thousand_times(name: str) -> None:
    play(name, range(10_000))


def play(name: str, seeds: range) -> None:
    """Play a scenario's histories, one for each seed, up to the first that breaks the promise."""
    for seed in seeds:
        verdict = SCENARIOS[name].play(seed)
        assert verdict.ok, f"{name}, seed {seed}: {verdict.reason}"


@pytest.mark.parametrize(("name", "seed"), [("counter", 557)])
def test_what_a_seed_has_found_stays_mended(name: str, seed: int) -> None:
    verdict = SCENARIOS[name].play(seed)
    assert verdict.ok, verdict.reason


def test_a_seed_reproduces_its_history() -> None:
    first, second = (str(SCENARIOS["counter"].play(seed=3)) for _ in range(2))
    assert first == second


Plant = Callable[[pytest.MonkeyPatch], None]


def retry_blindly(patch: pytest.MonkeyPatch) -> None:
    """Send again what may have been applied, without a slot that would tell."""

    def unguarded(self: Any, *, moves: bool, moves_anyway: bool) -> pb.TxnRequest:
        request = guarded(self, moves=moves, moves_anyway=moves_anyway)
        del request.compare[:]
        return request

    guarded = proof._Proof.request
    patch.setattr(proof._Proof, "request", unguarded)


def take_no_space_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    """Believe that what is answered with `NoSpace` was not done."""

    def believe(_key: bytes, _mod_revision: int, request: Any, again: Any = None, *, what: str) -> Operation[Any]:
        return (yield from attempt.once(request, again, what=what))

    for module in (counter, proof):
        patch.setattr(module, "once_by", believe)


def put_before_looking_at_the_proof(patch: pytest.MonkeyPatch) -> None:
    """Let the late first try of an overwritten value arrive."""

    def write(alternatives: Any, **_: Any) -> Operation[None]:
        yield from attempt.txn_repeatable(kv.txn(then=alternatives[0].operations))

    def read(self: Any, key: Any, default: Any = None) -> Operation[Any]:
        return (yield from dict.Dict._get(self, key, default))

    patch.setattr(dict, "prove", write)
    patch.setattr(dict.Dict, "_delete", read)
    patch.setattr(dict.Dict, "_pop", read)


def take_the_lock_at_once(patch: pytest.MonkeyPatch) -> None:
    def nobody_ahead(self: Any, *_: Any) -> Operation[None]:
        return
        yield

    patch.setattr(lock.Lock, "_follow", nobody_ahead)


def enter_without_a_key(patch: pytest.MonkeyPatch) -> None:
    """Enter once nobody is ahead, whether or not the own key still lives."""

    def careless(method: Callable[..., Operation[Any]]) -> Callable[..., Operation[Any]]:
        def ahead(*args: Any) -> Operation[Any]:
            try:
                return (yield from method(*args))
            except LeaseNotFound:
                return ()

        return ahead

    for name in ("_ahead_of", "_follow"):
        patch.setattr(lock.Lock, name, careless(getattr(lock.Lock, name)))


def write_through_a_lost_hold(patch: pytest.MonkeyPatch) -> None:
    def unguarded(_: lock.Hold, collection: Any) -> Any:
        return collection

    patch.setattr(lock.Hold, "guard", unguarded)


def take_any_item(patch: pytest.MonkeyPatch) -> None:
    """Take the item that a watch told of, whether or not older ones are left."""
    patch.setattr(places.Places, "siblings", _beyond_everything)
    patch.setattr(kv, "all_created_from", _always)


def lose_what_was_cancelled(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Any, *_: Any) -> Operation[None]:
        return
        yield

    patch.setattr(queue.Queue, "_give_back", keep)


def acknowledge_whatever_is_there(patch: pytest.MonkeyPatch) -> None:
    """Remove an item without looking whose claim it is."""

    def acknowledge(alternatives: Any, *, what: str, **_: Any) -> Operation[proof.Outcome]:
        return (yield from proof.prove([proof.Alternative((), alternatives[0].operations)], what=what))

    patch.setattr(claim, "prove", acknowledge)


def give_back_to_the_end(patch: pytest.MonkeyPatch) -> None:
    """Put a claimed item anew instead of giving it back at its old place."""

    def let_go(self: Any, item: bytes, token: int) -> Operation[None]:
        found = yield from attempt.range_(kv.read(item), seen=0)
        mine = self._places.claim_of(item)
        for old in found.kvs:
            again = old.key + b"0"  # younger than all that is there
            gone = (kv.delete(mine), kv.delete(item), kv.delete(self._places.deliveries_of(item)))
            ends = (*gone, kv.put(again, old.value), kv.put(self._places.returns))
            yield from attempt.txn_repeatable(kv.txn((kv.created_at(mine, token),), ends))

    patch.setattr(claim.Claims, "_let_go", let_go)


def forget_how_often_it_was_delivered(patch: pytest.MonkeyPatch) -> None:
    """Keep the count of deliveries on the lease, where it goes with the claim."""

    def claiming(self: Any, identity: Any, items: Any, delivered: Any) -> Any:
        operations = for_good(self, identity, items, delivered)
        operations[2].request_put.lease = identity.lease
        return operations

    for_good = claim.Claims._claiming
    patch.setattr(claim.Claims, "_claiming", claiming)


def claim_on_no_lease(patch: pytest.MonkeyPatch) -> None:
    """Let a claim outlive its process."""

    def claiming(self: Any, identity: Any, items: Any, delivered: Any) -> Any:
        operations = on_a_lease(self, identity, items, delivered)
        operations[1].request_put.lease = 0
        return operations

    on_a_lease = claim.Claims._claiming
    patch.setattr(claim.Claims, "_claiming", claiming)


def believe_an_old_view(patch: pytest.MonkeyPatch) -> None:
    """Pick the next candidate without asking whether older items have come back meanwhile."""

    def believe(*_: Any) -> tuple[kv.Compare, ...]:
        return ()

    patch.setattr(front.Front, "_guard", believe)


def take_what_somebody_has_just_claimed(patch: pytest.MonkeyPatch) -> None:
    """Believe that nothing is claimed in a queue of which nothing was."""

    def believe(*_: Any) -> tuple[kv.Compare, ...]:
        return ()

    patch.setattr(front.Front, "_unclaimed", believe)


def tell_nobody_of_what_is_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kv, "touch", kv.get)


def tell_nobody_whose_lease_has_ended(patch: pytest.MonkeyPatch) -> None:
    def told(self: Any, watching: Any, _: Any, deadline: Any) -> Operation[bool]:
        return bool((yield Await(deadline, (watching,))))

    patch.setattr(queue.Queue, "_told", told)


def open_the_gate_for_anybody(patch: pytest.MonkeyPatch) -> None:
    """Decide the barrier on the order of arrival alone."""
    patch.setattr(barrier._Gate, "is_unmoved", _always)


def begin_again_without_a_word(patch: pytest.MonkeyPatch) -> None:
    """Begin a watch from now on after its stream broke."""

    def from_now(self: Any) -> pb.WatchRequest:
        request = from_where_it_was(self)
        request.create_request.start_revision = 0
        return request

    from_where_it_was = watch._Watch.request
    patch.setattr(watch._Watch, "request", from_now)


def forget_what_was_compacted(patch: pytest.MonkeyPatch) -> None:
    """Begin a watch from now on after a compaction, and tell nobody."""

    def confirm(self: Any, confirmed: Any) -> None:
        confirmed.missed = False
        confirm_and_tell(self, confirmed)

    confirm_and_tell = watch.Watches._confirm
    patch.setattr(watch.Watches, "_confirm", confirm)


def merge_what_depends_on_each_other(patch: pytest.MonkeyPatch) -> None:
    """Let calls travel together that have to do with the same keys."""

    def always(*_: Any) -> bool:
        return True

    patch.setattr(merge.Footprint, "is_independent_of", always)


def lose_the_answers_of_all_but_one(patch: pytest.MonkeyPatch) -> None:
    """Take a lost answer of many for a refusal of all: who was applied is told that he was not."""

    def told(self: Any, error: Any) -> Any:
        if len(self.calls) > 1 and isinstance(error, Unavailable):
            return [Unavailable("lost", maybe_applied=False) for _ in self.calls]
        return as_it_is(self, error)

    as_it_is = merge.Batch.told
    patch.setattr(merge.Batch, "told", told)


def keep_what_may_be_old(patch: pytest.MonkeyPatch) -> None:
    """Keep what was read, though something newer was told or written meanwhile."""

    def keep(self: Any, at: bytes, found: Any, revision: int, **_: Any) -> None:
        self._set(at, near._Entry(found, revision))

    patch.setattr(near.Near, "keep", keep)


def keep_what_oneself_has_changed(patch: pytest.MonkeyPatch) -> None:
    def forget(*_: Any) -> None: ...

    patch.setattr(near.Near, "forget", forget)


def go_on_after_a_gap(patch: pytest.MonkeyPatch) -> None:
    """Believe what is kept, though changes of it may not have been told."""

    def tell(self: Any, events: Any) -> None:
        if events:
            of_all(self, events)

    of_all = near.Near.tell
    patch.setattr(near.Near, "tell", tell)


def prove_the_first_use_of_a_slot_by_its_absence(patch: pytest.MonkeyPatch) -> None:
    """Forget that a slot is also absent once its lease has ended."""

    def unmoved(tried: Any, *, moves_first: bool | None = None) -> Operation[Any]:
        return (yield from as_it_is(tried, moves_first=moves_first is None))

    as_it_is = proof._try
    patch.setattr(proof, "_try", unmoved)


def _nothing(*_: Any) -> bytes:
    return b"/nowhere"


def _beyond_everything(*_: Any) -> bytes:
    return b"\xff"


def _always(*_: Any) -> kv.Compare:
    return kv.absent(_nothing())


PLANTED: list[tuple[Plant, str]] = [
    (retry_blindly, "counter"),
    (retry_blindly, "set"),
    (retry_blindly, "queue"),
    (take_no_space_for_a_refusal, "counter without space"),
    (take_no_space_for_a_refusal, "set without space"),
    (take_no_space_for_a_refusal, "queue without space"),
    (put_before_looking_at_the_proof, "dict"),
    (prove_the_first_use_of_a_slot_by_its_absence, "dict that is kept near"),
    (keep_what_may_be_old, "dict that is kept near"),
    (keep_what_oneself_has_changed, "dict that is kept near"),
    (go_on_after_a_gap, "dict that is kept near"),
    (take_the_lock_at_once, "lock"),
    (enter_without_a_key, "lock that guards"),
    (write_through_a_lost_hold, "lock that guards"),
    (take_any_item, "queue"),
    (lose_what_was_cancelled, "queue with cancelled gets"),
    (acknowledge_whatever_is_there, "queue of claims"),
    (give_back_to_the_end, "queue of claims"),
    (forget_how_often_it_was_delivered, "queue of claims"),
    (forget_how_often_it_was_delivered, "queue with dead letters"),
    (claim_on_no_lease, "queue of claims"),
    (believe_an_old_view, "queue of claims"),
    (take_what_somebody_has_just_claimed, "queue of claims"),
    (tell_nobody_of_what_is_given_back, "queue of claims that are waited for"),
    (tell_nobody_whose_lease_has_ended, "queue of claims that are waited for"),
    (open_the_gate_for_anybody, "barrier in haste"),
    (merge_what_depends_on_each_other, "queue of many tasks"),
    (merge_what_depends_on_each_other, "lock of many tasks"),
    (lose_the_answers_of_all_but_one, "set of many tasks"),
    (lose_the_answers_of_all_but_one, "queue of many tasks"),
    (begin_again_without_a_word, "queue that is waited for"),
    (forget_what_was_compacted, "queue that is waited for"),
]


@pytest.mark.timeout(600)  # one of them needs hundreds of histories
@pytest.mark.parametrize(("plant", "name"), PLANTED, ids=[f"{plant.__name__}-{name}" for plant, name in PLANTED])
def test_a_planted_bug_is_found(plant: Plant, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(_fails(SCENARIOS[name], seed) for seed in range(FOUND_WITHIN))


def _fails(scenario: Scenario, seed: int) -> bool:
    try:
        return not scenario.play(seed).ok
    except (Stuck, AssertionError):
        return True
