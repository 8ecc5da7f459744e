"""Pauses grow from 50 ms to 2 s, and differ between clients."""

from __future__ import annotations

import random

from skyward_etcd.wire.retry import pause_before


def test_pauses_stay_within_their_bounds() -> None:
    for attempt in range(1, 40):
        longest = min(2.0, 0.05 * 2 ** max(0, attempt - 2))
        assert all(0 <= pause_before(attempt) <= longest for _ in range(50))


def test_clients_that_failed_together_do_not_return_together() -> None:
    assert len({pause_before(6) for _ in range(50)}) > 40


def test_programs_that_are_seeded_alike_keep_their_numbers_and_do_not_return_together() -> None:
    """As on all nodes of a training. Our threads pause at moments that nobody foresees."""
    before = random.getstate()
    try:
        pauses: set[float] = set()
        numbers: set[float] = set()
        for _ in range(2):
            random.seed(7)
            pauses.add(pause_before(6))
            numbers.add(random.random())
        assert (len(pauses), len(numbers)) == (2, 1)
    finally:
        random.setstate(before)
