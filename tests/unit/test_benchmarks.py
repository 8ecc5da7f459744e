"""The arithmetic of the benchmarks: a wrong figure looks like any other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from benchmarks.harness import Series, Timing, interleaved, merged, percentile, ratio, timed
from benchmarks.targets import CURVES, TARGETS, Goal


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3, 1, 2], 50, 2),
        ([4, 1, 3, 2], 50, 2),
        (range(1, 101), 99, 99),
        (range(1, 101), 100, 100),
        ([7], 99, 7),
        ([5, 1], 0, 1),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_what_means_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
    assert math.isnan(ratio(1, 0))
    assert math.isnan(Timing((1.0,)).rate)
    assert not Goal("≤", 5, "s").met(math.nan)
    assert not Goal("≥", 5, "s").met(math.nan)


def test_contestants_take_turns() -> None:
    turns: list[str] = []

    def contestant(name: str) -> Callable[[], Timing]:
        def run() -> Timing:
            turns.append(name)
            return Timing((float(len(turns)),))

        return run

    contest = interleaved({"A": contestant("A"), "B": contestant("B")}, 3)
    assert turns == ["A", "B", "A", "B", "A", "B"]
    assert [timing.latencies for timing in contest["A"].timings] == [(1.0,), (3.0,), (5.0,)]
    assert [timing.latencies for timing in contest["B"].timings] == [(2.0,), (4.0,), (6.0,)]


def test_a_figure_is_the_median_of_the_repeats_and_one_bad_repeat_does_not_move_it() -> None:
    series = Series((Timing((1.0, 1.0, 9.0), 0, 1), Timing((2.0, 2.0, 2.0), 0, 3), Timing((50.0, 60.0, 70.0), 0, 300)))
    assert series.p50 == 2.0
    assert series.p99 == 9.0
    assert series.rate == 1.0
    assert series.operations == 9


def test_workers_side_by_side_count_from_the_first_start_to_the_last_end() -> None:
    together = merged([Timing((0.5, 0.5), 10.0, 11.0, cpu=0.2), Timing((0.1, 0.1), 10.5, 12.0, cpu=0.4)])
    assert together.seconds == 2.0
    assert together.rate == 2.0
    assert together.cpu_each == pytest.approx(0.15)


def test_items_are_counted_instead_of_operations_where_one_operation_moves_many() -> None:
    assert Timing((0.1,), 0.0, 2.0, items=100).rate == 50.0


def test_what_runs_before_each_operation_is_not_in_its_latency() -> None:
    order: list[str] = []
    timing = timed(lambda: order.append("timed"), 2, before=lambda: order.append("before"))
    assert order == ["before", "timed", "before", "timed"]
    assert len(timing.latencies) == 2


@pytest.mark.parametrize(
    ("bound", "met"), [("≤", (True, True, False)), ("≥", (False, True, True)), ("=", (False, True, False))]
)
def test_a_goal_is_met_at_its_bound(bound: str, met: tuple[bool, bool, bool]) -> None:
    goal = Goal(bound, 5, "")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert (goal.met(4), goal.met(5), goal.met(6)) == met


def test_every_target_is_measured_or_says_why_not() -> None:
    for target in TARGETS:
        assert (target.measure is None) == (target.figure is None) == bool(target.why_not), target.name
    names = [target.name for target in TARGETS] + [curve.name for curve in CURVES]
    assert len(set(names)) == len(names)
