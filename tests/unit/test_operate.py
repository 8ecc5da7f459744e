"""What operators see and do, on a model of etcd that loses requests and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyward_etcd.collections.barrier import Barrier
from skyward_etcd.collections.counter import Counter
from skyward_etcd.collections.dict import Dict
from skyward_etcd.collections.lock import Hold, Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.collections.set import Set
from skyward_etcd.errors import (
    BrokenBarrier,
    HoldLost,
    NoSuchCollection,
    NotHeld,
    OutcomeUnknown,
    UnsupportedType,
    WrongKind,
)
from skyward_etcd.operate import changes, transfer, views
from skyward_etcd.operate.catalog import catalog
from skyward_etcd.operate.reading import Reading
from skyward_etcd.ops.codec import Codec
from skyward_etcd.testing.simulator import Faults, Process, Simulation
from tests.unit.simulated import run

LOSSY = Faults(refused=0.05, lost_request=0.05, late_request=0.05, lost_reply=0.15)
SEEDS = range(30)
SECRET = b"a secret of enough bytes"


def play(program: Callable[[Simulation, Process], Coroutine[Any, Any, None]], *, seed: int = 1) -> None:
    """Run a program in a simulation, to its end."""
    with Simulation(seed, faults=Faults()) as simulation:
        process = simulation.process("operator")
        simulation.spawn(process, program(simulation, process), "program")
        run(simulation)


# ---- breaking a lock


@pytest.mark.parametrize("seed", SEEDS)
def test_a_broken_lock_is_given_on_only_when_its_holder_knows(seed: int) -> None:
    held: list[Hold] = []
    given_on: list[Hold] = []

    with Simulation(seed, faults=LOSSY) as simulation:
        holder, next_one, operator = (simulation.process(name) for name in ("holder", "next", "operator"))

        async def hold() -> None:
            held.append(await Lock(holder.as_session(), "l").acquire_async())
            await simulation.sleep(60.0)
            with pytest.raises(HoldLost):
                await held[0].release_async()

        async def wait() -> None:
            while not held:
                await simulation.sleep(1.0)
            given_on.append(await Lock(next_one.as_session(), "l").acquire_async())
            assert not held[0].valid
            assert given_on[0].token > held[0].token

        async def operate() -> None:
            while not held:
                await simulation.sleep(1.0)
            await simulation.sleep(10.0)
            assert held[0].valid
            ended = await operator.run_async(changes.break_lock(operator.as_session(), "l"))
            assert ended.session == holder_session(held[0])

        for process, program in ((holder, hold()), (next_one, wait()), (operator, operate())):
            simulation.spawn(process, program, "program")
        run(simulation)
    assert len(given_on) == 1


def holder_session(hold: Hold) -> str:
    return hold.key.rpartition(b"/")[2].partition(b"-")[0].decode()


def test_one_who_waits_in_a_session_that_is_ended_queues_up_again_at_the_end() -> None:
    order: list[str] = []
    with Simulation(3, faults=Faults()) as simulation:
        processes = {name: simulation.process(name) for name in ("holder", "ended", "third", "operator")}

        async def contend(name: str, after_s: float, for_s: float) -> None:
            await simulation.sleep(after_s)
            async with Lock(processes[name].as_session(), "l"):
                order.append(name)
                await simulation.sleep(for_s)

        async def operate() -> None:
            await simulation.sleep(5.0)
            operator = processes["operator"]
            (lease,) = (
                each.lease
                for each in await operator.run_async(views.contenders(Reading(operator.as_session()), "l"))
                if json.loads(each.value)["node"] == "ended"
            )
            await operator.run_async(changes.end_session(operator.as_session(), lease))

        for name, after_s, for_s in (("holder", 0.0, 60.0), ("ended", 1.0, 1.0), ("third", 2.0, 1.0)):
            simulation.spawn(processes[name], contend(name, after_s, for_s), name)
        simulation.spawn(processes["operator"], operate(), "operate")
        run(simulation)
    assert order == ["holder", "third", "ended"]


def test_a_lock_that_nobody_holds_cannot_be_broken() -> None:
    async def program(_: Simulation, process: Process) -> None:
        sky = process.as_session()
        with pytest.raises(NoSuchCollection, match="skyward-etcd ls"):
            await process.run_async(changes.break_lock(sky, "l"))
        async with Lock(sky, "l"):
            pass
        with pytest.raises(NotHeld):
            await process.run_async(changes.break_lock(sky, "l"))

    play(program)


# ---- queues


@pytest.mark.parametrize("seed", SEEDS)
def test_dead_items_are_requeued_exactly_once_in_their_order(seed: int) -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        sky = process.as_session()
        queue = Queue(sky, "q", max_deliveries=1)
        simulation.faults = Faults()
        await queue.put_many_async(range(9))
        for _ in range(9):
            await (await queue.claim_async()).release_async()
        await simulation.sleep(5.0)
        assert await queue.size_async() == 0
        buried, _ = await process.run_async(views.view(sky, "queue", "q.dead"))
        assert isinstance(buried, views.Queue)
        simulation.faults = LOSSY
        moved = await process.run_async(changes.requeue(sky, "q", most=4))
        moved += await process.run_async(changes.requeue(sky, "q"))
        simulation.faults = Faults()
        assert (moved, await queue.dead.size_async()) == (9, 0)
        assert await queue.get_many_async(20, timeout=0) == [item.value.json for item in buried.items]

    play(program, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_claimed_items_come_back_when_their_holder_knows(seed: int) -> None:
    with Simulation(seed, faults=LOSSY) as simulation:
        worker, other, operator = (simulation.process(name) for name in ("worker", "other", "operator"))
        done: list[str] = []

        async def work() -> None:
            queue = Queue(worker.as_session(), "q")
            await queue.put_async("x")
            claim = await queue.claim_async()
            simulation.spawn(other, take_over(claim), "take over")
            await simulation.sleep(80.0)
            with pytest.raises((HoldLost, OutcomeUnknown)):
                await claim.ack_async()

        async def take_over(first: Any) -> None:
            claim = await Queue(other.as_session(), "q").claim_async()
            assert not first.valid
            done.append(claim.value)
            assert claim.deliveries == 2
            await claim.ack_async()

        async def operate() -> None:
            await simulation.sleep(20.0)
            ended = await operator.run_async(changes.end_holders(operator.as_session(), "q", node="nobody"))
            assert ended == []
            (one,) = await operator.run_async(changes.end_holders(operator.as_session(), "q"))
            assert one.claims == 1

        simulation.spawn(worker, work(), "work")
        simulation.spawn(operator, operate(), "operate")
        run(simulation)
    assert done == ["x"]


def test_a_purged_queue_is_empty_and_a_claim_of_it_is_lost() -> None:
    async def program(_: Simulation, process: Process) -> None:
        sky = process.as_session()
        queue = Queue(sky, "q")
        await queue.put_many_async(range(5))
        claim = await queue.claim_async()
        assert await process.run_async(changes.purge(sky, "q")) == 5
        assert await queue.empty_async()
        with pytest.raises(HoldLost):
            await claim.ack_async()

    play(program)


# ---- removing


@pytest.mark.parametrize("seed", SEEDS)
def test_a_removed_queue_goes_on_with_those_who_know_it(seed: int) -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        simulation.faults = Faults()
        old = Queue(process.as_session(), "q")
        await old.put_many_async(range(200))
        assert len(await old.get_many_async(150, timeout=0)) == 150
        simulation.faults = LOSSY
        assert await process.run_async(changes.remove(process.as_session(), "queue", "q")) == 50
        simulation.faults = Faults()
        fresh = simulation.process("fresh").as_session()
        await Queue(fresh, "q").put_async("new")
        assert await old.get_async(timeout=0) == "new"

    play(program, seed=seed)


def test_nothing_is_left_of_a_removed_dict() -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        sky = process.as_session()
        await Dict(sky, "d").update_async(a=1, b=2)
        assert await process.run_async(changes.remove(sky, "dict", "d")) == 2
        assert not [key for key in simulation.etcd.dump(sky.layout.root) if b"/d" in key]

    play(program)


def test_a_lock_or_barrier_in_use_is_not_removed() -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        sky = process.as_session()
        other = simulation.process("other")

        async def wait() -> None:
            await Barrier(other.as_session(), "b", 2).wait_async()

        simulation.spawn(other, wait(), "wait")
        await simulation.sleep(1.0)
        with pytest.raises(WrongKind, match="in use"):
            await process.run_async(changes.remove(sky, "barrier", "b"))
        async with Lock(sky, "l"):
            with pytest.raises(WrongKind, match="in use"):
                await process.run_async(changes.remove(sky, "lock", "l"))
        await process.run_async(changes.remove(sky, "lock", "l"))
        await Barrier(sky, "b", 2).wait_async()
        await process.run_async(changes.remove(sky, "barrier", "b"))
        assert (await process.run_async(catalog(sky))).collections == []

    play(program)


# ---- looking


def test_each_kind_is_seen_as_it_is() -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        sky = process.as_session()
        other = simulation.process("other")
        held: list[Hold] = []

        async def the_other(its: Any) -> None:
            await Counter(its, "c").increment_async(2)
            queue = Queue(its, "q")
            await queue.put_many_async("abc")
            await queue.claim_async()
            async with Lock(its, "l") as hold:
                held.append(hold)
                with pytest.raises(BrokenBarrier):
                    await Barrier(its, "b", 3).wait_async()

        async def look(kind: Any, name: str) -> Any:
            return (await process.run_async(views.view(sky, kind, name)))[0]

        await Dict(sky, "d").update_async({"k": [1, 2], ("t", 1): date(2024, 2, 29)})
        seen = await look("dict", "d")
        assert [(key, value.text) for key, value in seen.entries] == [
            ('"k"', "[1, 2]"),
            ('["t",1]', "datetime.date(2024, 2, 29)"),
        ]
        await Set(sky, "s").add_async("m")
        assert (await look("set", "s")).entries == [('"m"', None)]

        simulation.spawn(other, the_other(other.as_session()), "the other")
        await Counter(sky, "c").increment_async(5)
        await simulation.sleep(1.0)
        counter = await look("counter", "c")
        shards = sorted((value, lives) for _, value, lives in counter.shards)
        assert (counter.total, shards) == (7, [(2, True), (5, True)])
        jobs = await look("queue", "q")
        assert (jobs.waiting, jobs.claimed, jobs.dead) == (2, 1, 0)
        assert [(item.value.text, item.deliveries) for item in jobs.items] == [('"a"', 1), ('"b"', 0), ('"c"', 0)]
        assert jobs.items[0].claimed_by.node == "other"

        async def wait_for_the_lock() -> None:
            await (await Lock(sky, "l").acquire_async()).release_async()

        simulation.spawn(process, wait_for_the_lock(), "waits")
        await simulation.sleep(1.0)
        lock = await look("lock", "l")
        assert (lock.holder.who.node, lock.holder.token) == ("other", held[0].token)
        assert [waiter.who.node for waiter in lock.waiters] == ["operator"]
        assert lock.holder.who.since.endswith("Z")
        barrier = await look("barrier", "b")
        assert (barrier.n, barrier.missing) == (3, 2)
        assert [who.node for who in barrier.waiting] == ["other"]
        (absent,) = barrier.absent
        assert absent.session not in (who.session for who in barrier.waiting)

        listed = {(each.kind, each.name): each.entries for each in (await process.run_async(catalog(sky))).collections}
        expected = {("dict", "d"): 2, ("set", "s"): 1, ("counter", "c"): 2, ("queue", "q"): 3}
        assert listed == {**expected, ("lock", "l"): 2, ("barrier", "b"): 1}
        await Barrier(sky, "b", 3).abort_async()

    play(program)


def test_a_large_collection_is_sampled_or_read_whole() -> None:
    async def program(_: Simulation, process: Process) -> None:
        sky = process.as_session()
        await Dict(sky, "d").update_async({number: "x" * number for number in range(40)})
        (sampled,) = (await process.run_async(catalog(sky))).collections
        (read,) = (await process.run_async(catalog(sky, exact=True))).collections
        assert (sampled.entries, sampled.is_exact, read.is_exact) == (40, False, True)
        assert sampled.bytes != read.bytes
        prefix = len(sky.layout.collection("dict", "d"))
        assert read.bytes == sum(prefix + len(str(number)) + len(f'"{"x" * number}"') for number in range(40))

    play(program)


# ---- export and import

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)
KEYS = st.text() | st.integers() | st.binary() | st.tuples(st.text(), st.integers())


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(KEYS, VALUES, max_size=8), st.lists(VALUES, max_size=8), st.sets(KEYS, max_size=5), st.integers()
)
def test_what_is_exported_is_imported_unchanged(
    entries: dict[Any, Any], items: list[Any], members: set[Any], total: int
) -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        sky = process.as_session()
        await Dict(sky, "d").update_async(entries)
        await Queue(sky, "q").put_many_async(items)
        await Set(sky, "s").update_async(members)
        await Counter(sky, "c").increment_async(total)
        before = contents(simulation, sky)
        lines = await export(process)
        for kind, name in (("dict", "d"), ("queue", "q"), ("set", "s"), ("counter", "c")):
            await process.run_async(changes.remove(sky, kind, name))  # type: ignore[arg-type]
        await load(process, lines)
        assert contents(simulation, sky) == before
        assert await Counter(sky, "c").value_async() == total
        assert await Queue(sky, "q").get_many_async(100, timeout=0) == items
        assert dict(await Dict(sky, "d").items_async()) == entries

    play(program)


def contents(simulation: Simulation, sky: Any) -> dict[bytes, bytes]:
    """Return the keys and values of dicts and sets, byte by byte."""
    return {
        key: value
        for kind in ("dict", "set")
        for key, value in simulation.etcd.dump(sky.layout.root + kind.encode()).items()
    }


async def export(process: Process) -> list[str]:
    lines: list[str] = []
    await process.run_async(transfer.exported(process.as_session(), lambda line: lines.append(json.dumps(line))))
    return lines


async def load(process: Process, lines: list[str], *, skip: int = 0) -> None:
    for part in transfer.parts_of(lines, skip=skip):
        await process.run_async(transfer.import_part(process.as_session(), part))


@pytest.mark.parametrize("seed", SEEDS)
def test_an_import_is_exact_when_answers_are_lost(seed: int) -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        sky = process.as_session()
        simulation.faults = Faults()
        await Queue(sky, "q").put_many_async(range(150))
        await Counter(sky, "c").increment_async(7)
        lines = await export(process)
        simulation.faults = LOSSY
        await load(process, lines)
        simulation.faults = Faults()
        assert await Queue(sky, "q").get_many_async(400, timeout=0) == [*range(150), *range(150)]
        assert await Counter(sky, "c").value_async() == 14

    play(program, seed=seed)


def test_an_import_goes_on_after_the_lines_that_are_done() -> None:
    async def program(_: Simulation, process: Process) -> None:
        sky = process.as_session()
        await Queue(sky, "q").put_many_async(range(5))
        lines = await export(process)
        await process.run_async(changes.purge(sky, "q"))
        await load(process, lines, skip=4)  # the head, the settings, and two items
        assert await Queue(sky, "q").get_many_async(9, timeout=0) == [2, 3, 4]

    play(program)


HEAD = '{"skyward-etcd":1,"namespace":"n"}'
SETTINGS = '{"kind":"set","name":"s","settings":{}}'


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["nonsense"],
        ['{"skyward-etcd":2}'],
        [HEAD],
        [HEAD, SETTINGS],
        [HEAD, SETTINGS, '{"end":2}'],
        [HEAD, '{"kind":"set","name":"s","key":{"json":1}}', '{"end":1}'],
        [HEAD, '{"kind":"heap","name":"s","settings":{}}', '{"end":1}'],
        [HEAD, SETTINGS, '{"kind":"set","name":"s","key":{"base64":"?"}}', '{"end":2}'],
        [HEAD, SETTINGS, "[]", '{"end":2}'],
    ],
)
def test_what_is_no_whole_export_is_refused(lines: list[str]) -> None:
    with pytest.raises(transfer.NotAnExport):
        list(transfer.parts_of(lines))


def test_a_signed_value_is_signed_anew_for_its_new_place() -> None:
    codec = Codec(SECRET)
    stored = codec.encode(SECRET_VALUE, key=b"here", what="x")
    moved = codec.rebound(stored, source=b"here", target=b"there")
    assert codec.decode(moved, key=b"there") == SECRET_VALUE
    with pytest.raises(UnsupportedType, match="secret"):
        Codec().rebound(stored, source=b"here", target=b"there")
    with pytest.raises(ValueError, match="signed with another secret"):
        Codec(SECRET * 2).rebound(stored, source=b"here", target=b"there")


class Point(tuple[int, int]):
    """No data of the codec's: it is pickled."""

    __slots__ = ()


SECRET_VALUE = Point((1, 2))
