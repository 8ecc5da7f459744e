"""The check of a barrier's history accepts what can be, and nothing else."""

from __future__ import annotations

from skyward_etcd.testing.barrier_order import check_barrier
from skyward_etcd.testing.history import Operation


def wait(process: str, result: object, invoked: float, returned: float | None) -> Operation:
    return Operation(process, "wait", (), result, invoked, returned)


def test_generations_that_all_pass_and_some_that_break() -> None:
    history = [wait("a", 0, 0, 3), wait("b", 1, 2, 4), wait("a", 1, 5, 8), wait("b", 0, 4, 7)]
    assert check_barrier(2, [*history, wait("a", "BrokenBarrier", 9, 10)])


def test_one_that_passes_alone_is_found() -> None:
    history = [wait("a", 0, 0, 3), wait("b", "BrokenBarrier", 1, 4)]
    assert not check_barrier(2, history)


def test_two_that_passed_one_after_the_other_are_found() -> None:
    assert not check_barrier(2, [wait("a", 0, 0, 1), wait("b", 1, 2, 3)])


def test_two_of_the_same_rank_are_found() -> None:
    assert not check_barrier(2, [wait("a", 0, 0, 3), wait("b", 0, 1, 4)])
    assert not check_barrier(2, [wait("a", 0, 0, 3), wait("b", 2, 1, 4)])


def test_an_unknown_outcome_may_be_the_missing_one_once() -> None:
    unknown = wait("b", None, 0, None)
    assert check_barrier(2, [wait("a", 0, 0, 3), unknown])
    assert not check_barrier(2, [wait("a", 0, 0, 3), wait("a", 0, 4, 5), unknown])
    assert not check_barrier(2, [wait("a", 0, 0, 3), wait("b", None, 4, None)])
