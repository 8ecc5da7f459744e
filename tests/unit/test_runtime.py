"""What a function asks on its node: its share, and whether to print."""
# ruff: noqa: T201  printing is what these tests are about

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward_etcd.errors import NotConnected
from skyward_etcd.pool import runtime
from skyward_etcd.pool.function import function
from skyward_etcd.pool.output import CallbackWriter, redirect_output
from skyward_etcd.pool.runtime import InstanceInfo, instance_info, is_head, shard, silent, stderr, stdout


@pytest.fixture
def as_node(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def become(node: int, total_nodes: int = 3) -> None:
        monkeypatch.setattr(runtime, "_HERE", [InstanceInfo(node=node, total_nodes=total_nodes)])

    return become


def test_outside_a_pool_there_is_no_instance_info() -> None:
    assert InstanceInfo.current() is None
    with pytest.raises(NotConnected, match=r"inside a @sky\.function"):
        instance_info()


def test_workers_are_numbered_across_nodes() -> None:
    info = InstanceInfo(node=2, total_nodes=3, worker=1, workers_per_node=4)
    assert (info.global_worker_index, info.total_workers, info.is_head) == (9, 12, False)
    assert is_head(InstanceInfo(node=0, total_nodes=3))


# --- shard ---


def test_a_share_is_every_nth_item(as_node: Callable[[int], None]) -> None:
    as_node(1)
    assert shard([0, 1, 2, 3, 4, 5, 6]) == [1, 4]
    assert shard((0, 1, 2, 3, 4)) == (1, 4)
    assert shard(range(7)) == [1, 4]


def test_outside_a_pool_the_share_is_everything() -> None:
    assert shard([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("data", [{1, 2}, frozenset([1]), {0: "a", 1: "b"}, 5, iter([1])])
def test_what_has_no_order_cannot_be_shared_out_on_any_node(data: Any) -> None:
    for node in range(3):
        with pytest.raises(TypeError, match=r"shard\(\) takes sequences"):
            shard(data, node=node, total_nodes=3)


def test_numpy_arrays_stay_arrays() -> None:
    shared = shard(np.arange(12).reshape(6, 2), node=1, total_nodes=3)
    assert isinstance(shared, np.ndarray)
    assert shared.tolist() == [[2, 3], [8, 9]]
    assert shard(np.arange(1), node=1, total_nodes=3).shape == (0,)


def test_several_at_once_stay_aligned_when_shuffled() -> None:
    x, y = shard(list(range(20)), np.arange(20) * 10, shuffle=True, seed=3, node=1, total_nodes=3)
    assert [10 * one for one in x] == y.tolist()
    assert x != sorted(x)


def test_the_same_seed_gives_the_same_shares_and_another_seed_others() -> None:
    def share(seed: int) -> list[int]:
        return shard(list(range(50)), shuffle=True, seed=seed, node=0, total_nodes=2)

    assert share(1) == share(1) != share(2)


@given(
    items=st.lists(st.integers(), max_size=40),
    nodes=st.integers(1, 7),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_shares_are_disjoint_and_complete(items: list[int], nodes: int, *, shuffle: bool, drop_last: bool) -> None:
    numbered = list(enumerate(items))
    shares = [
        shard(numbered, shuffle=shuffle, drop_last=drop_last, node=node, total_nodes=nodes) for node in range(nodes)
    ]
    together = [one for share in shares for one in share]
    assert len(set(together)) == len(together)
    if drop_last:
        assert {len(share) for share in shares} == {len(items) // nodes}
    else:
        assert sorted(together) == numbered
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_data_for_training_and_for_testing_can_be_shared_out_at_once() -> None:
    x, y, u, v = shard([1, 2, 3, 4], ["a", "b", "c", "d"], [5, 6], ["e", "f"], node=1, total_nodes=2)
    assert (x, y, u, v) == ([2, 4], ["b", "d"], [6], ["f"])


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"these are of \[3, 2\]"):
        shard([1, 2, 3], [1, 2])


def test_wrong_arguments_of_shard_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        shard()
    with pytest.raises(ValueError, match="not one of the 3 nodes"):
        shard([1], node=3, total_nodes=3)


# --- printing ---


def printed(run: Callable[[], object]) -> str:
    lines: list[str] = []
    with redirect_output(lines.append):
        run()
    return "".join(lines)


@stdout(only="head")
def speak() -> str:
    print("out")
    print("err", file=sys.stderr)
    return "said"


def test_only_the_head_prints(as_node: Callable[[int], None]) -> None:
    as_node(0)
    assert printed(speak) == "out\nerr\n"
    as_node(1)
    assert printed(speak) == "err\n"


def test_a_predicate_says_who_prints(as_node: Callable[[int], None]) -> None:
    as_node(2)
    loud = stderr(only=lambda info: info.node == 2)(speak.__wrapped__)  # type: ignore[attr-defined]
    quiet = stderr(only=lambda info: info.node == 1)(speak.__wrapped__)  # type: ignore[attr-defined]
    assert printed(loud) == "out\nerr\n"
    assert printed(quiet) == "out\n"


def test_silent_prints_nowhere_not_even_outside_a_pool() -> None:
    assert printed(silent(speak)) == ""


def test_outside_a_pool_anybody_prints() -> None:
    assert printed(speak) == "out\nerr\n"


def test_the_order_of_decorators_does_not_matter(as_node: Callable[[int], None]) -> None:
    @stdout(only="head")
    @function(timeout=7)
    def above() -> None:
        print("out")

    @function(timeout=7)
    @stdout(only="head")
    def below() -> None:
        print("out")

    as_node(1)
    for pending in (above(), below()):
        assert pending.timeout == 7
        assert printed(pending.fn) == ""


def test_generators_are_quiet_while_they_run_and_their_consumer_is_not() -> None:
    @silent
    def numbers() -> Iterator[int]:
        print("hidden")
        yield 1
        print("hidden")

    def consume() -> None:
        for number in numbers():
            print(number)

    assert printed(consume) == "1\n"


async def test_coroutines_and_asynchronous_generators_are_quiet() -> None:
    @silent
    async def coroutine() -> int:
        await asyncio.sleep(0)
        print("hidden")
        return 1

    @silent
    async def numbers() -> AsyncIterator[int]:
        print("hidden")
        yield 1
        print("hidden")

    lines: list[str] = []
    with redirect_output(lines.append):
        assert await coroutine() == 1
        async for number in numbers():
            print(number)
    assert "".join(lines) == "1\n"


def test_threads_do_not_redirect_each_other() -> None:
    heard: dict[str, list[str]] = {"a": [], "b": []}
    meet = threading.Barrier(2)

    def talk(name: str) -> None:
        with redirect_output(heard[name].append):
            for _ in range(50):
                meet.wait()
                print(name)

    threads = [threading.Thread(target=talk, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: set("".join(lines).split()) for name, lines in heard.items()} == {"a": {"a"}, "b": {"b"}}


def test_redirections_nest() -> None:
    outer: list[str] = []
    with redirect_output(outer.append):
        print("before")
        assert printed(lambda: print("inside")) == "inside\n"
        print("after")
    assert "".join(outer) == "before\nafter\n"


def test_what_is_not_redirected_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_output(lambda _: None):
        pass
    print("seen")
    assert capsys.readouterr().out == "seen\n"


def test_a_callback_writer_hands_on_and_keeps() -> None:
    heard: list[str] = []
    writer = CallbackWriter(heard.append)
    with contextlib.redirect_stdout(writer):  # as in code written for Skyward
        print("one", "two")
    assert "".join(heard) == writer.getvalue() == "one two\n"
    assert isinstance(writer, io.TextIOBase)


@pytest.mark.parametrize("only", ["tail", 3, None])
def test_wrong_predicates_are_refused(only: Any) -> None:
    with pytest.raises(ValueError, match='only is "head"'):
        stdout(only=only)
