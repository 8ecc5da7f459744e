"""What is only remembered to save a round trip is bounded, and forgotten without harm."""

from __future__ import annotations

import pytest

from skyward_etcd.ops.notes import Notes
from skyward_etcd.testing import simulator
from tests.unit.simulated import SCENARIOS


def test_what_was_used_lately_is_remembered() -> None:
    notes = Notes(3)
    for number in range(100):
        notes["often"] = notes.get("often") or object()
        notes[number] = number
    assert notes.get("often") is not None
    assert [notes.get(number) for number in range(97, 100)] == [97, 98, 99]
    assert notes.get(0) is None
    assert len(notes) <= 6


def test_what_is_written_again_is_as_it_was_written_last() -> None:
    notes = Notes(2)
    for number in range(20):
        notes["one"] = number
        notes["two"] = -number
        notes[number] = number
        assert (notes.get("one"), notes.get("two")) == (number, -number)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_promise_holds_where_everything_is_forgotten_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Notes):
        def __setitem__(self, key: object, value: object) -> None:
            pass

    monkeypatch.setattr(simulator, "Notes", Forgetful)
    for seed in range(8):
        verdict = SCENARIOS[name].play(seed)
        assert verdict.ok, f"{name}, seed {seed}: {verdict.reason}"
