"""Pending functions: written down now, sent where an operator says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, TypeVar, cast

import pytest

from skyward_etcd.errors import NotConnected
from skyward_etcd.pool.context import activated, sky
from skyward_etcd.pool.function import FunctionFuture, PendingFunction, PendingFunctionGroup, function, gather
from skyward_etcd.pool.streams import streamed_arguments

T = TypeVar("T")
R = TypeVar("R")


@function
def add(a: int, b: int = 0) -> int:
    return a + b


@function(timeout=5, retries=2)
def limited() -> None: ...


class Here:
    """A target that runs everything at once, in this process."""

    def run(self, pending: PendingFunction[T], /) -> T:
        return cast("T", pending.fn(*pending.args, **pending.kwargs))

    def run_async(self, pending: PendingFunction[T], /) -> FunctionFuture[T]:
        future: FunctionFuture[T] = FunctionFuture()
        future.set_result(self.run(pending))
        return future

    def broadcast(self, pending: PendingFunction[T], /) -> list[T]:
        return [self.run(pending)] * 2

    def run_parallel(self, group: PendingFunctionGroup[R], /) -> R:
        return cast("R", tuple(self.run(one) for one in group))


def test_calling_a_function_runs_nothing() -> None:
    @function
    def explode() -> None:
        raise AssertionError

    assert isinstance(explode(), PendingFunction)


def test_a_function_keeps_its_name_and_documentation() -> None:
    assert (add.__name__, limited.__name__) == ("add", "limited")


def test_the_operators_send_to_one_node_to_one_later_to_all_and_side_by_side() -> None:
    pool = Here()
    assert add(1, b=2) >> pool == 3
    assert (add(1) > pool).result() == 1
    assert add(1) @ pool == [1, 1]
    assert (add(1) & add(2)) >> pool == (1, 2)


async def test_what_is_sent_for_later_can_be_awaited() -> None:
    assert await (add(1, b=2) > Here()) == 3


def test_groups_grow_on_both_sides_in_order() -> None:
    a, b, c, d = (add(number) for number in range(4))
    assert ((a & b) & c).items == (a & (b & c)).items == (a, b, c)
    assert ((a & b) & (c & d)).items == (a, b, c, d)
    assert len(gather(a, b)) == 2
    assert list(gather(a, b)) == [a, b]


def test_a_group_of_one_gives_a_tuple_too() -> None:
    assert gather(add(1)) >> Here() == (1,)


def test_timeouts_and_retries_come_from_the_decorator_and_a_call_can_have_its_own() -> None:
    assert (limited().timeout, limited().retries) == (5, 2)
    longer = limited().with_timeout(60)
    assert (longer.timeout, longer.retries) == (60, 2)
    assert limited().timeout == 5, "the decorator's is untouched"
    assert (add(1) & add(2)).with_timeout(3).timeout == 3


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_a_positive_number(timeout: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        function(timeout=timeout)
    with pytest.raises(ValueError, match="positive"):
        add(1).with_timeout(timeout)


def test_negative_retries_are_refused() -> None:
    with pytest.raises(ValueError, match="retries"):
        function(retries=-1)


def test_only_functions_can_be_decorated() -> None:
    with pytest.raises(TypeError, match="decorates a function"):
        function(cast("Any", 3))


@pytest.mark.parametrize("target", [3, None, "pool", sys])
def test_a_wrong_target_is_named(target: Any) -> None:
    with pytest.raises(TypeError, match="sent to a pool"):
        _ = add(1) >> target


def test_sky_is_the_active_pool() -> None:
    with activated(Here()):
        assert add(1) >> sky == 1
        assert (add(1) & add(2)) >> sky == (1, 2)
        assert add(1) @ sky == [1, 1]
        assert (add(1) > sky).result() == 1


def test_the_module_imported_as_sky_stands_for_it() -> None:
    module = ModuleType("whatever")
    cast("Any", module).sky = sky
    with activated(Here()):
        assert add(1) >> module == 1
        assert add(1) @ module == [1, 1]


def test_outside_a_pool_sky_says_so() -> None:
    assert "no active pool" in repr(sky)
    with pytest.raises(NotConnected, match="with Compute"):
        _ = add(1) >> sky


def test_nested_pools_the_inner_one_counts() -> None:
    class Other(Here):
        def run(self, pending: PendingFunction[T], /) -> T:
            return cast("T", "other")

    with activated(Here()):
        with activated(Other()):
            assert cast("Any", add(1) >> sky) == "other"
        assert add(1) >> sky == 1


def test_iterators_are_streamed_to_parameters_that_say_so() -> None:
    def fn(plain: object, items: Iterator[int], *, more: object = None) -> None: ...

    assert streamed_arguments(fn, ([1], iter([1])), {}) == {1}
    assert streamed_arguments(fn, (iter([1]), [1]), {}) == set(), "a list is sent whole"
    assert streamed_arguments(fn, (1,), {"items": iter([1])}) == {"items"}


def test_generators_are_streamed_to_any_parameter() -> None:
    def fn(items: object, *, more: object = None) -> None: ...

    assert streamed_arguments(fn, ((n for n in [1]),), {"more": (n for n in [1])}) == {0, "more"}
