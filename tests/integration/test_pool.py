"""The pool: functions, streams, prints, errors and time limits, on real nodes, mostly without a cluster."""
# ruff: noqa: T201  what functions print is part of the subject

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from skyward_etcd.errors import (
    BinaryNotFound,
    NodeLost,
    NotConnected,
    PoolError,
    UnsafeEtcd,
    UnsupportedType,
)
from skyward_etcd.pool.compute import Compute
from skyward_etcd.pool.context import sky
from skyward_etcd.pool.function import function, gather
from skyward_etcd.pool.output import redirect_output
from skyward_etcd.pool.runtime import instance_info, shard, silent, stdout
from skyward_etcd.pool.session import Session
from skyward_etcd.pool.spec import Image, Options, Worker
from tests.conftest import started_by

EXECUTORS: tuple[Literal["thread", "process"], ...] = ("thread", "process")


def alone(executor: Any = "thread", concurrency: int = 1, **options: Any) -> Options:
    """A pool without a cluster."""
    return Options(cluster=False, worker=Worker(concurrency=concurrency, executor=executor), **options)


@pytest.fixture(scope="module", params=EXECUTORS)
def pool(request: pytest.FixtureRequest) -> Iterator[Compute]:
    with Compute(nodes=2, options=alone(request.param, concurrency=2), image=Image(env={"GREETING": "hi"})) as pool:
        yield pool


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


@function
def double(x: int) -> int:
    return 2 * x


@function
def where() -> int:
    return instance_info().node


@function
def pid() -> int:
    return os.getpid()


@function
def meet(place: Path, number: int) -> int:
    """Return the node once as many have come to the place."""
    (place / f"{os.getpid()}-{threading.get_ident()}").touch()
    until(lambda: len(list(place.iterdir())) >= number, 30)
    return instance_info().node


@function
def rest(seconds: float) -> int:
    time.sleep(seconds)
    return instance_info().node


# --- running ---


def test_one_node_every_node_later_and_side_by_side(pool: Compute) -> None:
    assert double(2) >> pool == 4
    assert where() @ pool == [0, 1]
    assert (double(2) > pool).result(10) == 4
    assert (double(1) & double(2) & where()) >> pool in ((2, 4, 0), (2, 4, 1))
    assert gather(*(double(n) for n in range(10))) >> pool == tuple(range(0, 20, 2))


def test_sky_is_the_pool_of_the_block_also_in_threads(pool: Compute) -> None:
    assert double(2) >> sky == 4
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(double(3) >> sky))
    thread.start()
    thread.join()
    assert results == [6]


def test_map_keeps_the_order_and_takes_plain_functions_and_lambdas(pool: Compute) -> None:
    assert pool.map(lambda x: x + 1, range(50)) == list(range(1, 51))
    assert pool.map(double, [1, 2]) == [2, 4]
    assert pool.map(str, []) == []


def test_map_takes_items_only_as_places_become_free(pool: Compute) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken = number
            yield number

    def fail_at_five(number: int) -> None:
        if number == 5:
            raise ValueError(number)

    with pytest.raises(ValueError, match="5"):
        pool.map(fail_at_five, items())
    assert taken < 100


def test_a_call_can_ask_for_its_node(pool: Compute) -> None:
    assert [pool.run(where(), target=1) for _ in range(3)] == [1, 1, 1]
    assert pool.run(where(), target="head") == 0
    with pytest.raises(ValueError, match="numbered from 0 to 1"):
        pool.run(where(), target=2)


def test_nodes_take_turns_and_a_busy_one_holds_nobody_up(pool: Compute, tmp_path: Path) -> None:
    busy = [pool.run_async(meet(tmp_path, 3), target=0) for _ in range(2)]
    assert pool.map(lambda _: instance_info().node, range(6)) == [1] * 6
    assert pool.run(meet(tmp_path, 3), target=1) == 1
    assert [call.result() for call in busy] == [0, 0]


def test_a_node_runs_as_many_functions_at_a_time_as_it_has_places(pool: Compute, tmp_path: Path) -> None:
    assert (pool.concurrency, pool.current_nodes()) == (2, 2)
    assert sorted(gather(*(meet(tmp_path, 4) for _ in range(4))) >> pool) == [0, 0, 1, 1], "all at the same time"


def test_each_share_goes_to_its_node(pool: Compute) -> None:
    @function
    def share() -> list[int]:
        return shard(list(range(5)))

    assert share() @ pool == [[0, 2, 4], [1, 3]]


def test_the_node_knows_its_pool(pool: Compute) -> None:
    info = pool.run(function(instance_info)(), target=1)
    assert (info.node, info.total_nodes, info.job_id) == (1, 2, pool.name)
    assert [peer.get("node") for peer in info.peers] == [0, 1]
    assert info.head_port > 0


def test_a_program_that_a_function_starts_knows_the_pool_too(pool: Compute) -> None:
    @function
    def program() -> str:
        code = "from skyward_etcd.pool.runtime import instance_info; print(instance_info().node)"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    assert program() @ pool == ["0\n", "1\n"]


def test_the_images_environment_is_there(pool: Compute) -> None:
    assert function(os.getenv)("GREETING") >> pool == "hi"


def test_large_arguments_and_results(pool: Compute) -> None:
    data = os.urandom(20 << 20)
    assert function(bytes)(data) >> pool == data


def test_classes_and_closures_of_the_caller_work_on_the_node(pool: Compute) -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    offset = 10

    @function
    def shifted(point: Point) -> Point:
        return Point(point.x + offset)

    assert (shifted(Point(1)) >> pool).x == 11


def test_coroutines_run_on_the_nodes_loop(pool: Compute) -> None:
    @function
    async def waits(x: int) -> int:
        await asyncio.sleep(0.01)
        return x

    assert waits(3) >> pool == 3
    assert waits(3) @ pool == [3, 3]


# --- errors ---


class Refused(Exception):
    def __init__(self, code: int, *, because: str) -> None:
        super().__init__(f"refused with {code}")
        self.code = code
        self.because = because


def remote_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_an_exception_keeps_its_type_and_shows_where_it_was_raised(pool: Compute) -> None:
    @function
    def look_up() -> None:
        {}["missing"]  # type: ignore[index]  # pyright: ignore[reportUnusedExpression]

    with pytest.raises(KeyError) as caught:
        _ = look_up() >> pool
    assert caught.value.args == ("missing",)
    assert "in look_up" in remote_text(caught.value)
    assert "on node " in remote_text(caught.value)


def test_an_exception_that_pickle_cannot_restore_keeps_type_and_attributes(pool: Compute) -> None:
    @function
    def refuse() -> None:
        error = Refused(7, because="no")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(Refused, match="refused with 7") as caught:
        _ = refuse() >> pool
    assert (caught.value.code, caught.value.because) == (7, "no")
    assert not hasattr(caught.value, "lock")


@pytest.mark.parametrize("base", [KeyError, OSError, UnicodeError, RuntimeError])
def test_an_exception_that_cannot_be_sent_comes_as_one_of_the_same_name_and_base(
    pool: Compute, base: type[Exception]
) -> None:
    @function
    def refuse() -> None:
        # A lock of the class: it can be pickled neither by name nor by value.
        raise type("Stuck", (base,), {"lock": threading.Lock()})("no way")

    with pytest.raises(base, match="no way") as caught:
        _ = refuse() >> pool
    assert type(caught.value).__name__ == "Stuck"
    assert isinstance(caught.value, PoolError)
    assert "in refuse" in remote_text(caught.value)
    assert "It cannot be sent from node" in remote_text(caught.value)


def test_the_cause_of_an_exception_is_in_the_text(pool: Compute) -> None:
    @function
    def wrap() -> None:
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("wrapped") from error

    with pytest.raises(RuntimeError, match="wrapped") as caught:
        _ = wrap() >> pool
    assert "invalid literal" in remote_text(caught.value)


def test_a_result_that_cannot_be_sent_is_named(pool: Compute) -> None:
    with pytest.raises(UnsupportedType, match=r"returned a lock, which cannot be pickled"):
        _ = function(threading.Lock)() >> pool


def test_arguments_that_cannot_be_sent_fail_before_anything_runs(pool: Compute) -> None:
    with pytest.raises(UnsupportedType, match="double with its arguments cannot be pickled"):
        _ = double(threading.Lock()) >> pool  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_the_first_error_of_a_group_is_raised_and_what_has_not_begun_does_not_begin(pool: Compute) -> None:
    @function
    def fail() -> None:
        raise ValueError("first")

    calls = [fail(), *(rest(0.5) for _ in range(20))]
    started = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        _ = gather(*calls) >> pool
    _ = double(1) @ pool
    assert time.monotonic() - started < 4


def test_a_group_has_a_time_limit_of_its_own(pool: Compute) -> None:
    with pytest.raises(TimeoutError, match="2 functions"):
        _ = (rest(0.1) & rest(3)).with_timeout(0.3) >> pool


def test_a_function_that_overruns_its_timeout_leaves_a_usable_node(pool: Compute) -> None:
    started = time.monotonic()
    for _ in range(4):
        with pytest.raises(TimeoutError, match=r"more than 0\.2 s on node 1"):
            pool.run(rest(30).with_timeout(0.2), target=1)
    assert pool.run(where(), target=1) == 1
    assert time.monotonic() - started < 25, "nobody waited for one of them"


def test_a_queued_call_can_be_cancelled(pool: Compute) -> None:
    busy = [rest(0.5) > pool for _ in range(4)]
    queued = double(1) > pool
    assert queued.cancel()
    with pytest.raises(CancelledError):
        queued.result()
    for call in busy:
        call.result()


def test_a_pool_inside_a_function_is_not_the_drivers(pool: Compute) -> None:
    @function
    def nested() -> int:
        return double(1) >> sky

    with pytest.raises(NotConnected, match="no pool is active"):
        _ = nested() >> pool


# --- prints ---


def test_prints_arrive_with_the_nodes_name_before_the_result(pool: Compute, capfd: pytest.CaptureFixture[str]) -> None:
    @function
    def talk() -> None:
        for number in range(100):
            print("line", number)
        print("error", file=sys.stderr)
        print("no end", end="")

    pool.run(talk(), target=1)
    seen = capfd.readouterr()
    assert seen.out.splitlines() == [*(f"[node 1] line {n}" for n in range(100)), "[node 1] no end"]
    assert seen.err == "[node 1] error\n"


def test_functions_that_print_at_the_same_time_do_not_mix_their_lines(
    pool: Compute, capfd: pytest.CaptureFixture[str]
) -> None:
    @function
    def spell(letter: str) -> None:
        for _ in range(50):
            for _ in range(5):
                print(letter, end="")
                time.sleep(0)
            print()

    _ = gather(*(spell(letter) for letter in "abcd")) >> pool
    lines = {line.partition("] ")[2] for line in capfd.readouterr().out.splitlines()}
    assert lines == {"aaaaa", "bbbbb", "ccccc", "ddddd"}


def test_the_callers_redirection_gets_what_its_own_call_prints(pool: Compute) -> None:
    @function
    def talk(word: str) -> None:
        print(word)

    heard: list[str] = []
    with redirect_output(heard.append):
        pool.run(talk("mine"), target=0)
    assert "".join(heard) == "[node 0] mine\n"


def test_only_the_head_prints(pool: Compute, capfd: pytest.CaptureFixture[str]) -> None:
    @stdout(only="head")
    @function
    def talk() -> int:
        print("here")
        return 1

    @silent
    @function
    def hush() -> int:
        print("here")
        return 1

    assert talk() @ pool == hush() @ pool == [1, 1]
    assert capfd.readouterr().out == "[node 0] here\n"


def test_a_long_broadcast_shows_a_line_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with Compute(nodes=2, options=alone()) as pool:
        for terminal in (io.StringIO(), Terminal()):
            monkeypatch.setattr(sys, "stderr", terminal)
            _ = rest(1.8) @ pool
            assert ("rest @ 2 nodes: 0/2 done, 1 s" in terminal.getvalue()) is terminal.isatty()
        assert terminal.getvalue().endswith("\r\033[K")


# --- streams ---


@function
def count(n: int) -> Generator[int, None, None]:
    yield from range(n)


def test_a_generator_function_gives_an_iterator(pool: Compute) -> None:
    items = count(1000) >> pool
    assert next(items) == 0
    assert list(items) == list(range(1, 1000))
    assert list(items) == []


def test_asynchronous_generators_too(pool: Compute) -> None:
    @function
    async def acount(n: int) -> AsyncIterator[int]:
        for number in range(n):
            await asyncio.sleep(0)
            yield number

    stream: Any = acount(40) >> pool  # an asynchronous generator there, a plain one here
    assert list(stream) == list(range(40))


def test_every_node_gives_its_own_iterator(pool: Compute) -> None:
    streams = count(30) @ pool
    assert [list(stream) for stream in streams] == [list(range(30))] * 2


def test_a_generator_waits_for_its_consumer(pool: Compute, tmp_path: Path) -> None:
    made = tmp_path / "made"

    @function
    def produce() -> Iterator[int]:
        for number in range(1000):
            made.write_text(str(number))
            yield number

    items = produce() >> pool
    assert next(items) == 0
    time.sleep(0.3)
    assert int(made.read_text()) < 40


def test_dropping_or_closing_the_iterator_ends_the_generator(pool: Compute, tmp_path: Path) -> None:
    @function
    def forever(name: str) -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            (tmp_path / name).touch()

    for number in forever("dropped") >> pool:
        if number == 50:
            break
    until((tmp_path / "dropped").exists)
    items = forever("closed") >> pool
    items.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    until((tmp_path / "closed").exists)
    assert double(1) @ pool == [2, 2]


def test_an_error_in_a_generator_comes_after_what_it_yielded(pool: Compute) -> None:
    @function
    def breaks() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    items = breaks() >> pool
    assert next(items) == 1
    with pytest.raises(KeyError, match="broken") as caught:
        next(items)
    assert "in breaks" in remote_text(caught.value)


def test_iterators_are_streamed_to_the_node(pool: Compute) -> None:
    taken = 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        taken = -1
        while taken < 999:
            taken += 1
            yield taken

    @function
    def total(items: Iterator[int], limit: int) -> int:
        result = 0
        for number in items:
            result += number
            if number == limit:
                break
        return result

    assert total(numbers(), 10_000) >> pool == sum(range(1000))
    assert total(numbers(), limit=10) >> pool == 55
    until(lambda: taken < 100)


def test_streams_go_both_ways_at_once(pool: Compute) -> None:
    @function
    def squares(items: Iterator[int]) -> Iterator[int]:
        for number in items:
            yield number * number

    assert list(squares(iter(range(100))) >> pool) == [n * n for n in range(100)]


def test_an_error_in_the_callers_iterator_is_raised_in_the_function(pool: Compute) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("at the caller")

    @function
    def consume(items: Iterator[int]) -> list[int]:
        return list(items)

    with pytest.raises(LookupError, match="at the caller"):
        _ = consume(numbers()) >> pool


def test_an_iterator_cannot_go_to_every_node(pool: Compute) -> None:
    @function
    def consume(items: Iterator[int]) -> list[int]:
        return list(items)

    with pytest.raises(TypeError, match="read once"):
        _ = consume(iter([1])) @ pool


def test_results_of_a_group_stream_in_order_or_as_they_come(pool: Compute) -> None:
    @function
    def after(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    calls = [after(0.4), after(0.0), after(0.2)]
    assert list(gather(*calls, stream=True) >> pool) == [0.4, 0.0, 0.2]
    assert list(gather(*calls, stream=True, ordered=False) >> pool) == [0.0, 0.2, 0.4]


# --- asyncio ---


async def test_a_pool_can_be_used_from_asyncio() -> None:
    async with Compute(nodes=2, options=alone()) as pool:
        results = await asyncio.gather(*(double(n) > pool for n in range(5)))
        assert results == [0, 2, 4, 6, 8]
        assert double(4) >> sky == 8
    assert not pool.is_active


async def test_cancelling_the_start_leaves_nothing() -> None:
    before = set(psutil.Process().children())

    async def start() -> None:
        async with Compute(nodes=2, options=alone()):
            raise AssertionError("it was cancelled")

    task = asyncio.create_task(start())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(psutil.Process().children()) <= before


# --- loss ---


def test_a_node_that_dies_fails_its_calls_and_is_replaced() -> None:
    with Compute(nodes=2, options=alone(concurrency=2)) as pool:
        before = pid() @ pool
        neighbour = pool.run_async(rest(30), target=0)
        with pytest.raises(NodeLost, match=r"node 0 ended with -9 while it ran .*die"):
            pool.run(die(), target=0)
        with pytest.raises(NodeLost):
            neighbour.result(5)
        assert double(1) >> pool == 2, "the other node goes on"
        until(lambda: pool.current_nodes() == 2)
        after = pid() @ pool
        assert after[0] != before[0]
        assert after[1] == before[1]


@function
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_functions_that_may_run_twice_are_run_again(tmp_path: Path) -> None:
    @function(retries=1)
    def dies_once() -> str:
        tries = tmp_path / "tries"
        tries.open("a").write("x")
        if tries.stat().st_size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return tries.read_text()

    with Compute(nodes=1, options=alone()) as pool:
        assert dies_once() >> pool == "xx"


def test_a_stream_of_a_lost_node_ends_with_node_lost() -> None:
    @function
    def breaks_off() -> Iterator[int]:
        yield 1
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    with Compute(nodes=1, options=alone()) as pool:
        items = breaks_off() >> pool
        assert next(items) == 1
        with pytest.raises(NodeLost, match="breaks_off"):
            next(items)


def test_a_worker_process_that_dies_is_named_and_replaced() -> None:
    with Compute(nodes=1, options=alone("process")) as pool:
        node = psutil.Process(pid() >> pool)
        with pytest.raises(NodeLost, match=r"worker 0 of node 0 ended with -9 while it ran .*die"):
            _ = die() >> pool
        assert double(1) >> pool == 2
        assert (pid() >> pool) != node.pid
        assert pool.current_nodes() == 1


def test_a_timeout_kills_the_worker_process() -> None:
    with Compute(nodes=1, options=alone("process")) as pool:
        first = pid() >> pool
        with pytest.raises(TimeoutError):
            _ = rest(30).with_timeout(0.2) >> pool
        until(lambda: not psutil.pid_exists(first))
        assert double(1) >> pool == 2


def test_a_fresh_process_for_each_call() -> None:
    worker = Worker(executor="process", reuse_processes=False)
    with Compute(nodes=1, options=Options(cluster=False, worker=worker)) as pool:
        assert len({pid() >> pool for _ in range(3)}) == 3


def test_a_pool_that_is_closed_fails_what_it_still_had() -> None:
    with Compute(nodes=1, options=alone()) as pool:
        running, queued = rest(30) > pool, rest(30) > pool
        started = time.monotonic()
    assert time.monotonic() - started < 15
    for call in (running, queued):
        with pytest.raises(PoolError, match="closed"):
            call.result(1)
    with pytest.raises(PoolError, match="closed"):
        _ = double(1) >> pool


def test_what_is_no_call_of_a_function_is_refused(pool: Compute) -> None:
    for wrong in (3, double, lambda: None):
        with pytest.raises(TypeError, match="a call of a @function"):
            pool.run(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_pool_cannot_be_opened_twice() -> None:
    with Compute(nodes=1, options=alone()) as pool:
        pass
    with pytest.raises(PoolError, match="make another"), pool:
        pass


def test_an_error_in_the_block_leaves_no_process() -> None:
    pids: list[int] = []

    def fail() -> None:
        with Compute(nodes=2, options=alone("process")) as pool:
            pids.extend(pid() @ pool)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(psutil.pid_exists(one) for one in pids)


def test_a_session_holds_several_pools() -> None:
    with Session(console=False) as session:
        small = session.compute(nodes=1, name="small", options=alone())
        large = session.compute(nodes=2, name="large", options=alone())
        assert (len(where() @ small), len(where() @ large)) == (1, 2)
        with pytest.raises(ValueError, match="small"):
            session.compute(nodes=1, name="small")
        assert session.stop_pool("small")
        assert not small.is_active
        assert large.is_active
    assert not large.is_active
    with pytest.raises(PoolError, match="not open"):
        session.compute(nodes=1)


# --- with a cluster ---


def test_collections_are_shared_by_driver_nodes_and_workers() -> None:
    from skyward_etcd import active

    @function
    def use(key: str) -> int:
        active.dict("seen")[key] = instance_info().node
        return active.counter("uses").increment()

    for executor in EXECUTORS:
        with Compute(nodes=1, options=Options(worker=Worker(executor=executor))) as pool:
            assert use("a") >> pool == 1
            assert pool.dict("seen")["a"] == 0
            assert active.counter("uses").increment() == 2
    with pytest.raises(NotConnected):
        active.counter("uses").increment()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_handles_and_absent_can_be_sent_to_a_function(executor: Any) -> None:
    from skyward_etcd import active
    from skyward_etcd.collections.counter import Counter
    from skyward_etcd.collections.dict import ABSENT

    @function
    def count(counter: Counter) -> int:
        return counter.increment()

    @function
    def first(expected: object) -> bool:
        return active.dict("firsts").compare_and_set("one", expected, "mine")

    with Compute(nodes=2, options=Options(worker=Worker(executor=executor))) as pool:
        counter = pool.counter("sent")
        assert sorted(count(counter) @ pool) == [1, 2]
        assert sorted(pool.map(lambda _: counter.increment(), range(3))) == [3, 4, 5]
        assert [first(ABSENT) >> pool for _ in range(2)] == [True, False]


def test_without_a_cluster_collections_say_so() -> None:
    from skyward_etcd import active

    @function
    def use() -> int:
        return active.counter("uses").increment()

    with Compute(nodes=1, options=alone()) as pool:
        with pytest.raises(NotConnected, match="cluster=False"):
            _ = use() >> pool
        with pytest.raises(RuntimeError, match="cluster=False"):
            pool.dict("x")


def test_objects_travel_through_collections_with_the_pools_secret() -> None:
    from skyward_etcd import active

    @function
    def put() -> None:
        active.dict("objects")["path"] = Path("/somewhere")

    with Compute(nodes=1) as pool:
        _ = put() >> pool
        assert pool.dict("objects")["path"] == Path("/somewhere")


def test_a_durable_pool_finds_its_state_again(tmp_path: Path) -> None:
    try:
        with Compute(nodes=3, durable=tmp_path / "state", namespace="mine") as pool:
            pool.dict("kept")["a"] = 1
            _ = function(int)() @ pool
    except UnsafeEtcd:
        pytest.skip("the only etcd here is one that durable clusters refuse")
    with Compute(nodes=3, durable=tmp_path / "state", namespace="mine") as pool:
        assert pool.dict("kept")["a"] == 1
    with pytest.raises(PoolError, match="3 members"), Compute(nodes=1, durable=tmp_path / "state"):
        pass


def test_what_is_wrong_with_the_start_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(BinaryNotFound), Compute(nodes=1, etcd=tmp_path / "no-such-etcd"):
        pass
    broken = Image(env={"PYTHONHOME": str(tmp_path)})
    with pytest.raises(PoolError, match=r"node \d ended with 1 while it was starting"), Compute(nodes=2, image=broken):
        pass
    assert set(psutil.Process().children()) <= before


# --- the driver dies ---

DRIVER = """
    import sys, time
    from skyward_etcd.pool.compute import Compute
    from skyward_etcd.pool.function import function
    from skyward_etcd.pool.spec import Options, Worker

    @function
    def block():
        import os, re
        print("blocking", os.getpid(), flush=True)
        re.match(r"(a+)+$", "a" * 64 + "b")  # in C, holding the interpreter's lock

    with Compute(nodes=3, options=Options(worker=Worker(executor=sys.argv[1]))) as pool:
        calls = [pool.run_async(block(), target=node) for node in range(3)]
        {then}
"""


@contextlib.contextmanager
def start_driver(tmp_path: Path, executor: str, then: str) -> Generator[subprocess.Popen[str]]:
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER).replace("{then}", then))
    with subprocess.Popen(
        [sys.executable, script, executor],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as driver:
        try:
            yield driver
        finally:
            driver.kill()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_nothing_is_left_when_the_driver_is_killed(tmp_path: Path, executor: str) -> None:
    with start_driver(tmp_path, executor, "time.sleep(60)") as driver:
        assert driver.stdout
        assert sorted(driver.stdout.readline().split()[0:3:2] for _ in range(3)) == [["[node", "blocking"]] * 3
        children = psutil.Process(driver.pid).children(recursive=True)
        assert len([child for child in children if child.name() == "etcd"]) == 3
        driver.kill()
        gone, left = psutil.wait_procs(children, timeout=5)
        assert len(gone) >= 12
        assert left == []


def test_ctrl_c_ends_the_pool_and_shows_a_keyboard_interrupt(tmp_path: Path) -> None:
    with start_driver(tmp_path, "process", "calls[0].result()") as driver:
        assert driver.stdout
        assert driver.stderr
        driver.stdout.readline()
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(15) != 0
        assert "KeyboardInterrupt" in driver.stderr.read()
        assert psutil.wait_procs(children, timeout=5)[1] == []


AT_WORK = """
    from skyward_etcd.pool.compute import Compute
    from skyward_etcd.pool.function import function

    @function
    def one():
        return 1

    while True:
        with Compute(nodes=3) as pool:
            for _ in range(5):
                assert list(one() @ pool) == [1, 1, 1]
                pool.counter("c").increment()
"""


@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_at_any_moment_ends_the_pool(tmp_path: Path, seed: int) -> None:
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(AT_WORK))
    mark = f"CTRL_C_TEST={tmp_path}"
    environment = {**os.environ, "CTRL_C_TEST": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, env=environment) as driver:
        time.sleep(random.Random(seed).uniform(0.5, 4.0))
        driver.send_signal(signal.SIGINT)
        try:
            _, complaints = driver.communicate(timeout=15)
        finally:
            driver.kill()
    assert driver.returncode == -signal.SIGINT, complaints
    assert complaints.rstrip().endswith("KeyboardInterrupt"), complaints
    until(lambda: not started_by(mark), timeout=5)
