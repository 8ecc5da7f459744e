"""The front of a queue: which items are the oldest that nobody has taken or claimed, and how one of them is picked.

An item is *free* if it is there, not claimed, and not delivered too often. What a process knows of the front is a
`View`: the free items of one page as they once were, all else before them being gone for good or claimed. A claim ends
in one of three ways, and none goes unnoticed by a transaction: an acknowledged item is gone; one that is given back is
written into ``returns``; and with a lease its session's key goes too. So a transaction that compares ``returns`` and
the keys of the sessions that hold something before the candidates may take the first candidate that is free by then,
and knows that it is the oldest free item of the whole queue. It need not look at the claimed ones again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from skyward_etcd.collections.places import Places
from skyward_etcd.collections.tail import MANY, Tail, read_number
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import range_, txn_repeatable
from skyward_etcd.ops.effects import Identity, Later, Mind, Operation
from skyward_etcd.ops.proof import Alternative, Guard, Outcome, prove

__all__ = ["Act", "Front", "View"]

_LONGEST_CHAIN = 8
"""Candidates that one transaction tries at most where items are claimed."""
_LONGEST_PLAIN_CHAIN = 16
"""And elsewhere, where each costs etcd less: enough for as many consumers at once."""
_LOOK_AHEAD = 2
"""Pages looked at together otherwise: when the first is used up, the second is known at once."""
_WINDOW = 64
"""Pages looked at together when the head has fallen behind."""
_MANY_AMONG_CLAIMS = 8
"""Items taken together where others are claimed: each is compared by itself then."""
_MOST_HOLDERS = 48
"""Sessions whose life one transaction compares; with the chain they stay under etcd's 128 of everything."""

Act = Callable[[Sequence[bytes], bool], Sequence[kv.Op]]
"""What to do with the items that were picked. The first operations are about them, in their order.

It is also told whether they may have been delivered before: else there are no counts of that.
"""
Undo = Callable[[Sequence[bytes], Outcome], Operation[None]]


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the front of a queue; each is true by itself, so that threads replace it without a lock."""

    first: int = 0
    """All pages before have no items, and will stay so."""
    page: int = 0
    """The page of the candidates: in those from `first` to here there are claimed items at most."""
    candidates: Sequence[bytes] = ()
    """What was free in the page, oldest first: what has come since is younger."""
    holders: frozenset[str] = frozenset()
    """The sessions that held the claims of items before the candidates."""
    since: int = 0
    """The revision from which on this was so, unless one of the holders has ended or something was given back."""
    deliveries: Mapping[bytes, int] = field(default_factory=dict[bytes, int])
    """How often candidates had been delivered, as far as that is known."""

    def afresh(self) -> View:
        """Return what is true without any doubt: where to begin to look."""
        return View(self.first, self.first)


@dataclass(frozen=True, slots=True)
class _Look:
    """What was in some pages at one moment."""

    revision: int
    items: Sequence[kv.KeyValue]
    claims: Sequence[kv.KeyValue] = ()
    deliveries: Mapping[bytes, int] = field(default_factory=dict[bytes, int])


@dataclass(slots=True)
class _Memory:
    view: View = field(default_factory=View)
    is_known: bool = False
    hinted: int = 0
    """The page that the queue's ``head`` key tells newcomers to begin at."""
    looked_back_at: int = 0
    """The page we were at when we last looked at everything from the first on."""
    chain: int = 2
    """Candidates to try at once: more where others have been quicker lately. Each costs etcd some work."""
    has_claims: bool = False
    """Whether this queue is one whose items are claimed: then we ask about claims whenever we look."""


class Front:
    """The front of one queue, and what this process knows of it."""

    def __init__(
        self,
        mind: Mind,
        places: Places,
        tail: Tail,
        what: str,
        *,
        max_deliveries: int | None = None,
        bury: Callable[[bytes], Operation[None]],
    ) -> None:
        self._mind = mind
        self._places = places
        self._tail = tail
        self._what = what
        self._most = max_deliveries
        self._bury = bury

    @property
    def page(self) -> int:
        """The first page that may have free items, as far as we know."""
        return self._memory().view.page

    def delivered(self, item: bytes) -> int:
        """Return how often an item was delivered, as far as we know."""
        return self._memory().view.deliveries.get(item, 0)

    # ---- picking

    def pick(
        self, n: int, act: Act, *, undo: Undo, identity: Identity | None = None
    ) -> Operation[tuple[Sequence[bytes], Outcome] | None]:
        """Act on the first free items, up to ``n``, exactly once; return which, or ``None`` if there are none.

        One round trip while candidates are known, two to find some.
        """
        memory = self._memory()
        while True:
            view = memory.view
            if not view.candidates:
                view = yield from self.find()
                if not view.candidates:
                    return None
            choices, singles = self._choices(view, n)
            is_plain = not memory.has_claims  # what is not claimed is compared once for all then
            looks = self._looks_ahead(view, max(singles, len(choices[0]))) if is_plain else self._looks(view.page)
            alternatives = [
                self._acting(keys, act, view, looks if is_plain or number else (), is_plain=is_plain)
                for number, keys in enumerate(choices)
            ]
            outcome = yield from prove(
                alternatives,
                guard=Guard(self._unclaimed(view.page) if is_plain else self._guard(view)),
                otherwise=looks,
                undo=partial(_undone, undo, choices),
                identity=identity,
                what=self._what,
            )
            if outcome.is_refused or (outcome.taken is None and outcome.responses is None):
                memory.has_claims = memory.has_claims or outcome.is_refused
                memory.view = memory.view.afresh()
                continue
            picked = () if outcome.taken is None else choices[outcome.taken]
            passed = choices[len(choices) - singles : outcome.taken]
            if outcome.responses is None:
                memory.view = memory.view.afresh()  # who holds what was passed over is not known
            else:
                seen = outcome.responses[-len(looks) :] if looks and (is_plain or outcome.taken != 0) else ()
                yield from self._pass_over(passed, picked, outcome, () if is_plain else seen, identity)
                if is_plain and seen and not memory.has_claims:
                    self._see_ahead(view, outcome.revision, seen[0].response_range.kvs)
            longest = _LONGEST_PLAIN_CHAIN if is_plain else _LONGEST_CHAIN
            memory.chain = min(longest, 2 * len(passed) + 2) if picked else longest
            if picked:
                memory.hinted = max(memory.hinted, view.first)
                return picked, outcome

    def pick_fresh(
        self, item: kv.KeyValue, act: Act, *, undo: Undo, identity: Identity | None = None
    ) -> Operation[tuple[Sequence[bytes], Outcome] | None]:
        """Act on the item that a watch told of, if nothing older is left: one round trip from put to get."""
        memory = self._memory()
        view, places, keys = memory.view, self._places, (item.key,)
        page = places.page_of(item.key)
        if view.holders or page < view.first:
            return None  # something older is there for certain, or was lately: this would be in vain
        is_oldest = (
            kv.all_created_from(item.create_revision, places.items(view.first), places.items(page + 1)),
            # What a session has put in one transaction has one revision, and goes in the order of the keys.
            kv.all_absent(places.siblings(item.key), item.key),
        )
        acting = self._acting(keys, act, view, (), is_plain=False)
        fresh = Alternative((*acting.compares, *is_oldest), acting.operations)
        outcome = yield from prove([fresh], undo=partial(undo, keys), identity=identity, what=self._what)
        if outcome.taken is None:
            return None
        memory.hinted = max(memory.hinted, view.first)
        memory.has_claims = memory.has_claims or identity is not None
        return keys, outcome

    def _choices(self, view: View, n: int) -> tuple[list[Sequence[bytes]], int]:
        """Return what to try, in this order, and how many of them are single items."""
        memory = self._memory()
        most, longest = (_MANY_AMONG_CLAIMS, _LONGEST_CHAIN) if memory.has_claims else (MANY, _LONGEST_PLAIN_CHAIN)
        wanted = view.candidates[: min(n, most)]
        singles: list[Sequence[bytes]] = [[key] for key in view.candidates[: min(memory.chain, longest)]]
        return ([wanted, *singles] if len(wanted) > 1 else singles), len(singles)

    def _acting(
        self, keys: Sequence[bytes], act: Act, view: View, looks: Sequence[kv.Op], *, is_plain: bool
    ) -> Alternative:
        memory, places = self._memory(), self._places
        compares = [kv.present(key) for key in keys]
        if not is_plain:
            compares += [kv.absent(places.claim_of(key)) for key in keys]
            if self._most is not None:
                compares += [kv.fewer_writes(places.deliveries_of(key), self._most) for key in keys]
        hint = [kv.put(places.head, b"%d" % view.first)] if view.first > memory.hinted else []
        return Alternative(compares, (*act(keys, not is_plain), *hint, *looks))

    def _unclaimed(self, page: int) -> Sequence[kv.Compare]:
        """Where nothing was claimed so far: nothing has been since either, here and where we look ahead."""
        places, end = self._places, page + _LOOK_AHEAD
        return (
            kv.all_absent(places.claims(page), places.claims(end)),
            kv.all_absent(places.deliveries(page), places.deliveries(end)),
        )

    def _guard(self, view: View) -> Sequence[kv.Compare]:
        """What must hold for the view to be true still: nobody has given back what is before the candidates."""
        if not view.holders:
            return ()
        # Where more processes than that hold claims, an item whose holder ends may be passed over, but only until the
        # candidates at hand are used up: then `find` begins from the first page.
        living = sorted(view.holders)[:_MOST_HOLDERS]
        sessions = [kv.present(self._mind.layout.session(holder)) for holder in living]
        return [kv.unmoved_since(self._places.returns, view.since), *sessions]

    def _looks_ahead(self, view: View, tried: int) -> Sequence[kv.Op]:
        """Where all candidates are tried at once, what there is afterwards is asked for in the same round trip."""
        if len(view.candidates) > tried:
            return ()
        return (kv.get(self._places.items(view.page), self._places.items(view.page + _LOOK_AHEAD), keys_only=True),)

    def _see_ahead(self, view: View, revision: int, items: Sequence[kv.KeyValue]) -> None:
        found = self._advanced(view, _Look(revision, items), items)
        if found.candidates:
            self._memory().view = found

    def _looks(self, page: int) -> Sequence[kv.Op]:
        claims, deliveries = self._places.claims(page), self._places.deliveries(page)
        looks = [kv.get(claims, kv.prefix_end(claims), keys_only=True)]
        if self._most is not None:
            looks.append(kv.get(deliveries, kv.prefix_end(deliveries), keys_only=True))
        return looks

    def _pass_over(
        self,
        passed: Sequence[Sequence[bytes]],
        picked: Sequence[bytes],
        outcome: Outcome,
        seen: Sequence[kv.Result],
        identity: Identity | None = None,
    ) -> Operation[None]:
        """Forget candidates that are gone, and remember who holds those that are claimed."""
        memory, places = self._memory(), self._places
        claims = seen[0].response_range.kvs if seen else ()
        claimed = {claim.key for claim in claims}
        holders = _holders(claims)
        if identity is not None and picked:  # and so claimed
            holders |= {identity.id}
        memory.has_claims = memory.has_claims or bool(holders)
        last = picked[-1] if picked else passed[-1][-1]
        view = memory.view
        if last in view.candidates:
            rest = view.candidates[view.candidates.index(last) + 1 :]
            memory.view = replace(
                view,
                candidates=[key for key in rest if places.claim_of(key) not in claimed] if claimed else rest,
                holders=view.holders | holders,
                since=view.since if view.holders else outcome.revision,
            )
        if self._most is not None and len(seen) > 1:
            often = {count.key for count in seen[1].response_range.kvs if count.version >= self._most}
            for (key,) in passed:
                if places.deliveries_of(key) in often and places.claim_of(key) not in claimed:
                    yield Later(partial(self._bury, key))

    # ---- looking

    def find(self) -> Operation[View]:
        """Look for the first page with free items, from the last known one on. One round trip in the steady state.

        A view without candidates says that there was a moment at which there were none in the queue.
        """
        memory = self._memory()
        if not memory.is_known:
            memory.hinted = yield from read_number(self._places.head)
            memory.view = View(memory.hinted, memory.hinted)
            memory.has_claims = memory.has_claims or self._most is not None
            memory.is_known = True
        view = memory.view
        if view.page >= memory.looked_back_at + _WINDOW or len(view.holders) > _MOST_HOLDERS:
            # What was claimed long ago is done by now: the first page is another.
            memory.looked_back_at = view.page
            view = view.afresh()
        if view.page == view.first:
            view = (
                view.afresh()
            )  # all that is claimed will be seen again, and nobody else has to be thought of any more
        while (found := (yield from self._search(view))) is None:
            view = view.afresh()
        memory.view = found
        memory.has_claims = memory.has_claims or bool(found.holders)
        return found

    def _search(self, view: View) -> Operation[View | None]:
        """Look on from a view's page; ``None`` if the view is not true any more."""
        tail, window = self._tail, _LOOK_AHEAD
        while True:
            sealed, end = tail.page, view.page + window
            look = yield from self._look(view, end)
            if look is None:
                return None
            free = yield from self._free(look)
            view = self._advanced(view, look, free)
            if free:
                return view
            if sealed >= end:
                view, window = self._beyond(view, look, end), _WINDOW
                continue
            # Only pages that ended before we looked have got all that they will get.
            view = self._beyond(view, look, sealed)
            current = yield from read_number(self._places.page)
            if current <= sealed:
                return view
            tail.is_at(current)

    def _advanced(self, view: View, look: _Look, free: Sequence[kv.KeyValue]) -> View:
        """Return the view with the claims that were seen, and with the candidates if some are free."""
        places = self._places
        page = min((places.page_of(item.key) for item in free), default=None)
        passed = [claim for claim in look.claims if page is None or places.page_of(claim.key) <= page]
        found = replace(
            view,
            candidates=(),
            holders=view.holders | _holders(passed),
            since=view.since if view.holders else look.revision,
            deliveries=look.deliveries,
        )
        if page is None:
            return found
        ordered = sorted((item.create_revision, item.key) for item in free if places.page_of(item.key) == page)
        return replace(self._beyond(found, look, page), candidates=[key for _, key in ordered])

    def _beyond(self, view: View, look: _Look, page: int) -> View:
        """Return the view at a later page; the first page moves along over those that have no items at all."""
        first = view.first
        if first == view.page:
            first = min([page, *(self._places.page_of(item.key) for item in look.items)])
        return replace(view, first=max(first, view.first), page=max(page, view.page))

    def _free(self, look: _Look) -> Operation[Sequence[kv.KeyValue]]:
        places, claimed = self._places, {claim.key for claim in look.claims}
        unclaimed = [item for item in look.items if places.claim_of(item.key) not in claimed]
        if self._most is None:
            return unclaimed
        free: list[kv.KeyValue] = []
        for item in unclaimed:
            if look.deliveries.get(item.key, 0) < self._most:
                free.append(item)
            else:
                yield Later(partial(self._bury, item.key))
        return free

    def _look(self, view: View, end: int) -> Operation[_Look | None]:
        """Read what is in the pages from the view's on, at one moment; ``None`` if the view is not true then."""
        places = self._places
        items = places.items(view.page), places.items(end)
        if not self._memory().has_claims:
            # Some may be claimed nevertheless: the transaction passes them over, and tells us.
            reply = yield from range_(kv.read(*items, keys_only=True), seen=0)
            return _Look(reply.header.revision, reply.kvs)
        claims = places.claims(view.page), places.claims(end)
        deliveries = places.deliveries(view.page), places.deliveries(end)
        reads = [kv.get(*interval, keys_only=True) for interval in (items, claims, deliveries)]
        # Nested, for the sake of old members: see `skyward_etcd.ops.naming.agree`.
        answer = yield from txn_repeatable(kv.txn(then=[kv.nested(self._guard(view), reads)]))
        looked = answer.responses[0].response_txn
        if not looked.succeeded:
            return None
        found = [response.response_range.kvs for response in looked.responses]
        counts = {places.item_of(count.key): count.version for count in found[2]}
        return _Look(answer.header.revision, found[0], found[1], counts)

    def _memory(self) -> _Memory:
        notes, key = self._mind.notes, (self._places.prefix, "front")
        found: _Memory | None = notes.get(key)
        if found is None:
            found = notes[key] = _Memory()
        return found


def _holders(claims: Iterable[kv.KeyValue]) -> frozenset[str]:
    """Return the sessions on whose leases the claims are."""
    return frozenset(f"{claim.lease:016x}" for claim in claims)


def _undone(undo: Undo, choices: Sequence[Sequence[bytes]], outcome: Outcome) -> Operation[None]:
    if outcome.taken is not None:
        yield from undo(choices[outcome.taken], replace(outcome, taken=0))
