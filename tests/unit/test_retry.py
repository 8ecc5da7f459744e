"""Pauses grow from 50 ms to 2 s, and differ between clients."""

from __future__ import annotations

from skyward_etcd.wire.retry import pause_before


def test_pauses_stay_within_their_bounds() -> None:
    for attempt in range(1, 40):
        longest = min(2.0, 0.05 * 2 ** max(0, attempt - 2))
        assert all(0 <= pause_before(attempt) <= longest for _ in range(50))


def test_clients_that_failed_together_do_not_return_together() -> None:
    assert len({pause_before(6) for _ in range(50)}) > 40
