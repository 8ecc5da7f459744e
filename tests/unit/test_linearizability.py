"""The linearizability checker: it agrees with trying all orders, shows what is wrong, and keeps up with real runs."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from skyward_etcd import ABSENT
from skyward_etcd.testing.linearizability import (
    EMPTY,
    CounterModel,
    DictModel,
    LockModel,
    Model,
    Operation,
    QueueModel,
    SetModel,
    check,
    check_queue_by_revision,
    one_by_one,
)

HISTORIES = 600
"""Random histories for each collection."""


def operation(
    process: str, call: str, *arguments: Any, at: tuple[float, float | None], result: Any = None
) -> Operation:
    return Operation(process, call, arguments, result, *at)


# ---- the reference: Python's own collections, called in every order


class Refused(Exception):
    """The operation cannot come here."""


class Dict:
    def __init__(self) -> None:
        self.entries: dict[Any, Any] = {}

    def call(self, done: Operation) -> Any:  # noqa: PLR0911 - one for each method
        key, *rest = done.arguments
        match done.call:
            case "set":
                self.entries[key] = rest[0]
                return None
            case "contains":
                return key in self.entries
            case "delete":
                return self.entries.pop(key, EMPTY) is not EMPTY
            case "compare_and_set":
                if self.entries.get(key, ABSENT) != rest[0]:
                    return False
                self.entries[key] = rest[1]
                return True
            case "pop":
                return self.entries.pop(key, *(rest or [None]))
            case _:
                return getattr(self.entries, done.call)(key, *rest)


class Counter:
    def __init__(self) -> None:
        self.total = 0

    def call(self, done: Operation) -> Any:
        if done.call == "reset":
            (self.total,) = done.arguments or (0,)
            return None
        sign = {"value": 0, "increment": 1, "decrement": -1}[done.call]
        self.total += sign * (done.arguments or (1,))[0]
        return self.total


class Set:
    def __init__(self) -> None:
        self.members: set[Any] = set()

    def call(self, done: Operation) -> Any:
        (member,) = done.arguments
        before = member in self.members
        if done.call == "contains":
            return before
        getattr(self.members, done.call)(member)
        return before != (member in self.members)


class Lock:
    """A hold whose token nobody saw has the next one."""

    def __init__(self) -> None:
        self.holder = ""
        self.token: int = 0

    def call(self, done: Operation) -> Any:
        if done.call == "acquire":
            return self.acquire(done) if done.is_unknown or done.result is not None else None
        is_mine = self.holder == done.process and done.arguments in ((), (self.token,))
        if is_mine:
            self.holder = ""
        return is_mine if done.call == "release" else None

    def acquire(self, done: Operation) -> int:
        token: int = self.token + 1 if done.is_unknown else done.result
        if self.holder or token <= self.token:
            raise Refused
        self.holder, self.token = done.process, token
        return token


class Queue:
    def __init__(self) -> None:
        self.items: list[Any] = []

    def call(self, done: Operation) -> Any:
        match done.call:
            case "put":
                return self.items.append(done.arguments[0])
            case "put_many":
                return self.items.extend(done.arguments[0])
            case "get":
                return self.items.pop(0) if self.items else EMPTY
            case _:
                (n,) = done.arguments
                taken, self.items = self.items[:n], self.items[n:]
                return taken


Reference = Dict | Counter | Set | Lock | Queue


def every_order(history: Sequence[Operation]) -> Iterator[tuple[Operation, ...]]:
    """All orders that keep real time, with each choice of what happened of the operations of unknown outcome."""
    known = [done for done in history if not done.is_unknown]
    unknown = [done for done in history if done.is_unknown]
    for count in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *happened]):
                if all(first.invoked <= later.until for first, later in itertools.combinations(order, 2)):
                    yield order


def explains(order: Sequence[Operation], reference: Reference) -> bool:
    try:
        return all(reference.call(done) == done.result or done.is_unknown for done in order)
    except Refused:
        return False


# ---- random histories


def a_dict_call(rng: random.Random, _: int) -> tuple[str, tuple[Any, ...]]:
    key, one, other = rng.choice("xxxy"), rng.randrange(2), rng.randrange(2)
    calls = [("set", one), ("get",), ("get", ABSENT), ("contains",), ("delete",), ("pop",), ("pop", one)]
    calls += [("setdefault", one), ("compare_and_set", other, one), ("compare_and_set", ABSENT, one)]
    name, *rest = rng.choice(calls)
    return str(name), (key, *rest)


def a_counter_call(rng: random.Random, _: int) -> tuple[str, tuple[Any, ...]]:
    choices: list[tuple[str, tuple[Any, ...]]] = [
        ("increment", ()),
        ("increment", (2,)),
        ("decrement", ()),
        ("value", ()),
    ]
    return rng.choice([*choices, *choices, ("reset", ()), ("reset", (3,))])


def a_set_call(rng: random.Random, _: int) -> tuple[str, tuple[Any, ...]]:
    return rng.choice(["add", "discard", "contains"]), (rng.choice("aab"),)


def a_lock_call(rng: random.Random, _: int) -> tuple[str, tuple[Any, ...]]:
    return rng.choice(
        [("acquire", ()), ("acquire", ()), ("release", ()), ("release", (rng.randrange(1, 5),)), ("expire", ())]
    )


def a_queue_call(rng: random.Random, number: int) -> tuple[str, tuple[Any, ...]]:
    many = ("put_many", ([number, number + 100],)), ("get_many", (2,))
    return rng.choice([("put", (number,)), ("put", (number,)), ("get", ()), ("get", ()), *many])


@dataclass(frozen=True)
class Kind:
    model: Model[Any]
    reference: Callable[[], Reference]
    a_call: Callable[[random.Random, int], tuple[str, tuple[Any, ...]]]
    results: tuple[Any, ...]


KINDS = {
    "dict": Kind(DictModel(), Dict, a_dict_call, (None, 0, 1, True, False, ABSENT)),
    "counter": Kind(CounterModel(), Counter, a_counter_call, (0, 1, 2, 3, 4)),
    "set": Kind(SetModel(), Set, a_set_call, (True, False)),
    "lock": Kind(LockModel(), Lock, a_lock_call, (1, 2, 3, 4)),
    "queue": Kind(QueueModel(), Queue, a_queue_call, (0, 1, 2, 3, EMPTY)),
}


def a_history(kind: Kind, rng: random.Random, length: int) -> list[Operation]:
    """Calls one after the other, each made longer than it was; in half of the histories one result is another."""
    reference, history = kind.reference(), list[Operation]()
    for number in range(length):
        name, arguments = kind.a_call(rng, number)
        invoked, returned = number - rng.randrange(4), number + rng.randrange(4)
        done = Operation(rng.choice("pqr"), name, arguments, None, invoked, None if rng.random() < 0.2 else returned)
        if kind.reference is Lock and name == "acquire" and not done.is_unknown and rng.random() < 0.8:
            done = replace(done, result=number + 1)
        try:
            done = replace(done, result=reference.call(done))
        except Refused:
            continue
        if not done.is_unknown or rng.random() < 0.7:
            history.append(done)
    if history and rng.random() < 0.5:
        spoilt = rng.randrange(len(history))
        if isinstance(history[spoilt].result, (bool, int)) or history[spoilt].result is EMPTY:
            wrong = rng.choice([True, False] if isinstance(history[spoilt].result, bool) else kind.results)
            history[spoilt] = replace(history[spoilt], result=wrong)
    rng.shuffle(history)
    return history


@pytest.mark.parametrize("name", KINDS)
def test_the_search_agrees_with_trying_all_orders(name: str) -> None:
    kind = KINDS[name]
    verdicts: list[bool] = []
    for seed in range(HISTORIES):
        history = a_history(kind, random.Random(seed), length=5)
        expected = any(explains(order, kind.reference()) for order in every_order(history))
        verdict = check(kind.model, history)
        assert verdict.ok == expected, f"seed {seed}: {verdict}"
        if verdict:
            assert explains(verdict.linearized, kind.reference()), f"seed {seed}: the order shown is none"
        verdicts.append(expected)
    assert min(verdicts.count(True), verdicts.count(False)) > HISTORIES / 20  # both were tried


def test_the_same_history_gets_the_same_verdict() -> None:
    kind = KINDS["queue"]
    for seed in range(50):
        first, second = (check(kind.model, a_history(kind, random.Random(seed), length=8)) for _ in range(2))
        assert first == second


# ---- examples


def test_a_read_may_see_either_side_of_a_write_that_overlaps_it() -> None:
    write = operation("p", "set", "x", 1, at=(0, 10))
    for seen in (None, 1):
        assert check(DictModel(), [write, operation("q", "get", "x", at=(5, 6), result=seen)])


def test_a_stale_read_is_caught_and_shown() -> None:
    verdict = check(
        DictModel(),
        [
            operation("p", "set", "x", 1, at=(0, 1)),
            operation("p", "set", "x", 2, at=(2, 3)),
            operation("q", "get", "x", at=(4, 5), result=1),
            operation("r", "get", "y", at=(0, 9)),
        ],
    )
    assert verdict.ok is False
    assert [done.process for done in verdict.stuck] == ["q"]
    assert str(verdict).splitlines() == [
        "not linearizable (part 'x'): the longest order explains 2 of 3 operations",
        "  its last operations:",
        "    [0 .. 1] p: set('x', 1) -> None",
        "    [2 .. 3] p: set('x', 2) -> None",
        "  the state after them: 2",
        "  what could come next; none leads on:",
        "    [4 .. 5] q: get('x') -> 1",
    ]


def test_a_read_that_goes_back_in_time_is_caught_while_the_write_runs() -> None:
    write = operation("p", "set", "x", 1, at=(0, 10))
    new, old = (operation("q", "get", "x", at=(at, at + 1), result=result) for at, result in ((2, 1), (4, None)))
    verdict = check(DictModel(), [write, new, old])
    assert verdict.ok is False
    assert "q: get('x') -> None" in verdict.reason


def test_a_write_of_unknown_outcome_may_come_late_or_never_but_not_twice() -> None:
    lost = operation("p", "increment", at=(0, None))
    early, late = (operation("q", "value", at=(at, at + 1), result=result) for at, result in ((2, 0), (50, 1)))
    assert check(CounterModel(), [lost])
    assert check(CounterModel(), [lost, early])
    assert check(CounterModel(), [lost, early, late])
    twice = check(CounterModel(), [lost, early, late, operation("q", "value", at=(60, 61), result=2)])
    assert twice.ok is False
    before = check(CounterModel(), [replace(lost, invoked=5), operation("q", "value", at=(2, 3), result=1)])
    assert before.ok is False
    assert "what may have happened" not in before.reason  # it had not begun


def test_two_holders_of_a_lock_are_caught_unless_the_first_may_have_expired() -> None:
    first, second = operation("p", "acquire", at=(0, 1), result=5), operation("q", "acquire", at=(2, 3), result=8)
    assert check(LockModel(), [first, second]).ok is False
    expired = operation("p", "expire", at=(1, None))
    assert check(LockModel(), [first, second, expired])
    lost = operation("p", "release", 5, at=(4, 5), result=False)
    assert check(LockModel(), [first, second, expired, lost])
    assert check(LockModel(), [first, second, expired, replace(lost, result=None)]).ok is False


def test_a_token_that_does_not_grow_is_caught() -> None:
    hold = operation("p", "acquire", at=(0, 1), result=5)
    release = operation("p", "release", at=(2, 3), result=True)
    for token, expected in ((5, False), (4, False), (6, True)):
        assert check(LockModel(), [hold, release, operation("q", "acquire", at=(4, 5), result=token)]).ok is expected


def test_a_get_many_that_others_got_in_between_is_right_item_by_item_only() -> None:
    history = [
        operation("p", "put_many", ["a", "b", "c"], at=(0, 1)),
        operation("q", "get_many", 3, at=(2, 9), result=["a", "c"]),
        operation("r", "get", at=(3, 4), result="b"),
    ]
    assert check(QueueModel(), history).ok is False
    assert check(QueueModel(), one_by_one(history))
    assert check_queue_by_revision(history, {"a": 1, "b": 1, "c": 1})


def test_many_equal_operations_of_unknown_outcome_stay_one_case() -> None:
    lost = [operation(f"p{n}", "increment", at=(0, None)) for n in range(60)]
    found = [operation("q", "value", at=(n, n), result=n // 2) for n in range(1, 100)]
    assert check(CounterModel(), [*lost, *found], limit=10_000)
    too_many = check(CounterModel(), [*lost, *found, operation("q", "value", at=(100, 100), result=61)], limit=10_000)
    assert too_many.ok is False


def test_what_the_limit_does_not_let_it_decide_is_neither_right_nor_wrong() -> None:
    lost = [operation(f"p{n}", "increment", 2**n, at=(0, None)) for n in range(20)]
    verdict = check(CounterModel(), [*lost, operation("q", "value", at=(1, 2), result=-1)], limit=1000)
    assert verdict.ok is None
    assert not verdict
    assert "undecided" in verdict.reason
    wrong = operation("q", "value", at=(0, 0), result=1)
    assert check(CounterModel(), [wrong, *(replace(done, invoked=5) for done in lost)], limit=1000).ok is False


def test_a_part_that_is_wrong_counts_more_than_one_that_is_undecided() -> None:
    lost = [operation(f"p{n}", "set", "x", n, at=(0, None)) for n in range(20)]
    undecided = [*lost, operation("q", "get", "x", at=(1, 2), result=-1)]
    assert check(DictModel(), undecided, limit=100).ok is None
    assert check(DictModel(), [*undecided, operation("q", "get", "y", at=(3, 4), result=-1)], limit=100).ok is False


def test_what_no_model_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule for 'size'"):
        check(CounterModel(), [operation("p", "size", at=(0, 1))])
    with pytest.raises(ValueError, match="before it was invoked"):
        operation("p", "value", at=(1, 0))


# ---- queues by revision


def test_the_order_of_revisions_decides_as_trying_all_orders_does() -> None:
    verdicts: list[bool] = []
    for seed in range(2 * HISTORIES):
        rng = random.Random(seed)
        history, revisions, remaining = a_queue_run(rng, length=6)
        expected = any(
            explains(order, queue := Queue())
            and sorted(queue.items) == sorted(remaining)
            and [done.arguments[0] for done in order if done.call == "put"]
            == sorted(revisions, key=revisions.__getitem__)
            for order in every_order(history)
        )
        verdict = check_queue_by_revision(history, revisions, remaining=remaining)
        assert verdict.ok == expected, f"seed {seed}: {verdict}"
        verdicts.append(expected)
    assert min(verdicts.count(True), verdicts.count(False)) > HISTORIES / 10


def a_queue_run(rng: random.Random, *, length: int) -> tuple[list[Operation], dict[Any, int], list[Any]]:
    """A run with what a watch saw of it; in two of three, one result, one revision or one remaining item is wrong."""
    queue, history = Queue(), list[Operation]()
    revisions: dict[Any, int] = {}
    for number in range(length):
        name, arguments = rng.choice([("put", (number,)), ("get", ())])
        invoked, returned = number - rng.randrange(4), number + rng.randrange(4)
        done = Operation("p", name, arguments, None, invoked, None if rng.random() < 0.2 else returned)
        if not done.is_unknown or rng.random() < 0.7:
            done = replace(done, result=queue.call(done))
            revisions.update(dict.fromkeys(arguments, number))
        history.append(done)
    remaining = list(queue.items)
    spoil = rng.choice(["result", "remaining", "revisions", "times", "", ""])
    if spoil == "result":
        got = [number for number, done in enumerate(history) if done.call == "get"]
        for number in got[:1]:
            history[number] = replace(history[number], result=rng.choice([EMPTY, *range(length)]))
    elif spoil == "remaining" and remaining:
        remaining.pop(rng.randrange(len(remaining)))
    elif spoil == "revisions" and revisions:
        revisions[rng.choice(list(revisions))] = -1
    elif spoil == "times":
        history = [done if done.is_unknown else replace(done, invoked=done.until) for done in history]
        rng.shuffle(history)
    return history, revisions, remaining


A, B = operation("p", "put", "a", at=(0, 1)), operation("p", "put", "b", at=(2, 3))
GETS = operation("q", "get", at=(4, 5), result="a"), operation("q", "get", at=(6, 7), result="b")


@pytest.mark.parametrize(
    ("history", "revisions", "remaining", "complaint"),
    [
        ([A, B, *GETS], {"a": 1, "b": 2}, [], ""),
        ([A, B, GETS[0]], {"a": 1, "b": 2}, ["b"], ""),
        ([A, B, GETS[0]], {"a": 1, "b": 2}, [], "'b' is lost"),
        ([A, B, GETS[0], replace(GETS[1], returned=None)], {"a": 1, "b": 2}, [], ""),
        ([A, B, GETS[0], replace(GETS[0], invoked=6, returned=7)], {"a": 1, "b": 2}, [], "'a' was got twice"),
        ([A, *GETS], {"a": 1}, [], "'b' was got, and never put"),
        ([A, B, *GETS], {"b": 2}, [], "'a' was never committed"),
        ([A, replace(B, returned=None), GETS[0]], {"a": 1}, [], ""),
        ([A, B, *GETS], {"a": 1, "b": 2}, ["b"], "'b' was got, and is still there"),
        ([A], {"a": 1}, ["a", "z"], "'z' is in the queue, and was never put"),
        ([A, B, *GETS], {"a": 2, "b": 1}, [], "'b' was committed before 'a', whose put had ended before"),
        ([A, B, GETS[1]], {"a": 1, "b": 2}, ["a"], "'b' was taken before 'a', which is older"),
        ([A, B, replace(GETS[0], invoked=8, returned=9), GETS[1]], {"a": 1, "b": 2}, [], "'b' was taken before 'a'"),
        ([A, replace(GETS[0], invoked=-2, returned=-1)], {"a": 1}, [], "'a' was got before it"),
        ([A, operation("r", "get", at=(2, 3), result=EMPTY), GETS[0]], {"a": 1}, [], "not empty: 'a' was there"),
        ([A, operation("r", "get", at=(1, 3), result=EMPTY), GETS[0]], {"a": 1}, [], ""),
        (
            [operation("p", "put_many", "ab", at=(0, 1)), operation("q", "get_many", 2, at=(4, 5), result=["b", "a"])],
            {"a": 1, "b": 1},
            [],
            "another order",
        ),
        (
            [operation("p", "put_many", "ab", at=(0, 1)), operation("q", "get_many", 9, at=(4, 5), result=["a"])],
            {"a": 1, "b": 1},
            ["b"],
            "not empty: 'b' was there",
        ),
    ],
)
def test_what_is_wrong_in_a_queue_is_named(
    history: list[Operation], revisions: dict[Any, int], remaining: list[Any], complaint: str
) -> None:
    verdict = check_queue_by_revision(history, revisions, remaining=remaining)
    assert verdict.ok is (not complaint)
    assert complaint in verdict.reason


def test_equal_items_cannot_be_told_apart() -> None:
    with pytest.raises(ValueError, match="put twice"):
        check_queue_by_revision([A, A], {"a": 1})


# ---- speed


def a_run(
    calls: Callable[[random.Random, int], tuple[str, tuple[Any, ...]]], reference: Reference, *, length: int
) -> list[Operation]:
    """A linearizable run of eight processes that are always busy; one answer in a hundred is lost."""
    rng = random.Random(1)
    free = [0.0] * 8
    history: list[Operation] = []
    for number in range(length):
        process = min(range(8), key=free.__getitem__)
        happened = max(free[process], float(number)) + rng.random()
        name, arguments = calls(rng, number)
        done = Operation(f"p{process}", name, arguments, None, free[process], None)
        free[process] = happened + 8 * rng.random()
        done = replace(done, result=reference.call(done))
        history.append(done if rng.random() < 0.01 else replace(done, returned=free[process]))
        free[process] += 0.001
    return history


def on_one_register(rng: random.Random, number: int) -> tuple[str, tuple[Any, ...]]:
    calls = ("get", ("x",)), ("set", ("x", number)), ("compare_and_set", ("x", rng.randrange(number + 1), number))
    return rng.choice(calls)


def test_five_thousand_operations_on_a_register_take_less_than_two_seconds() -> None:
    history = a_run(on_one_register, Dict(), length=5000)
    started = time.process_time()
    assert check(DictModel(), history)
    assert time.process_time() - started < 2.0


def test_one_wrong_read_among_hundreds_of_operations_is_found() -> None:
    history = a_run(on_one_register, Dict(), length=500)
    wrong = max(number for number, done in enumerate(history[:300]) if done.call == "get" and not done.is_unknown)
    stale = min(done.result for done in history if done.call == "get" and isinstance(done.result, int))
    history[wrong] = replace(history[wrong], result=stale)
    verdict = check(DictModel(), history)
    assert verdict.ok is False
    assert history[wrong] in verdict.stuck


def test_fifty_thousand_operations_on_a_queue_are_decided_by_revision_in_two_seconds() -> None:
    def on_a_queue(rng: random.Random, number: int) -> tuple[str, tuple[Any, ...]]:
        return rng.choice([("put", (number,)), ("get", ())])

    queue = Queue()
    history = a_run(on_a_queue, queue, length=50_000)
    revisions = {done.arguments[0]: number for number, done in enumerate(history) if done.call == "put"}
    started = time.process_time()
    assert check_queue_by_revision(history, revisions, remaining=queue.items)
    assert time.process_time() - started < 2.0
