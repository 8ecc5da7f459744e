"""The same pool on Skyward's default backend and with the plugin, on one machine: what it takes, and what is left."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skyward.core.errors import SkywardError

from tests.skyward.conftest import LAB, kill_node, pool_of
from tests.skyward.functions import fill, left, node, rates

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NODES = 3
ENTRIES = 300
EACH_S = 1.0
PATIENCE_S = 60.0


def test_what_was_acknowledged_outlives_a_node_and_the_figures_are_kept() -> None:
    """The figures are for `docs/skyward.md`; they are left in the lab's ``compare.json``."""
    found = {name: _measured(ours=ours) for name, ours in (("skyward's own", False), ("with the plugin", True))}
    Path(LAB, "compare.json").write_text(json.dumps(found, indent=2))
    assert found["with the plugin"]["left"] == [ENTRIES, ENTRIES], found
    assert found["with the plugin"]["failures"] == [], found


def _measured(*, ours: bool) -> dict[str, Any]:
    began = time.monotonic()
    with pool_of(NODES, ours=ours) as pool:
        ready_s = time.monotonic() - began
        failures: list[str] = []
        alone: dict[str, float] = _answer(failures, lambda: rates("alone", EACH_S) >> pool) or {}
        together: list[dict[str, float]] = _answer(failures, lambda: rates("together", EACH_S) @ pool) or []
        filled = _answer(failures, lambda: fill("kept", ENTRIES) >> pool)
        nodes = _answer(failures, lambda: node() @ pool)
        kill_node(nodes[-1])
        killed = time.monotonic()
        kept = _answer([], lambda: left("kept") >> pool)  # which may be sent to the node that is gone, and fail
        return {
            "ready_s": ready_s,
            "alone": alone,
            "together": {operation: sum(each[operation] for each in together) for operation in alone},
            "filled": filled,
            "left": list(kept or ()),
            "answered_after_s": time.monotonic() - killed,
            "failures": failures,
        }


def _answer(failures: list[str], call: Callable[[], Any]) -> Any:
    """Return what a call comes to, however often it fails; None if it does not end."""
    answers: list[Any] = []
    ends = time.monotonic() + PATIENCE_S

    def ask() -> None:
        while not answers and time.monotonic() < ends:
            try:
                answers.append(call())
            except (SkywardError, RuntimeError, TimeoutError) as error:
                failures.append(str(error))
                time.sleep(0.2)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    if not answers:
        failures.append(f"no answer in {PATIENCE_S:g} s")
    return answers[0] if answers else None
