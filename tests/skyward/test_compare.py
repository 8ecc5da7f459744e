"""The same pool on Skyward's default backend and with the plugin, on one machine: what it takes, and what is left."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from skyward.core.errors import SkywardError

from tests.skyward.conftest import LAB, kill_node, pool_of
from tests.skyward.functions import fill, left, nodes_by_rank, rates

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NODES = 3
ENTRIES = 300
PATIENCE_S = 60.0


def test_what_was_acknowledged_outlives_a_node_and_the_figures_are_kept() -> None:
    """The figures are for `docs/skyward.md`; they are written to the lab's ``compare.json``."""
    found = {name: _measured(ours=ours) for name, ours in (("skyward's own", False), ("with the plugin", True))}
    Path(LAB, "compare.json").write_text(json.dumps(found, indent=2))
    assert found["with the plugin"]["left"] == [ENTRIES, ENTRIES], found


def _measured(*, ours: bool) -> dict[str, Any]:
    began = time.monotonic()
    with pool_of(NODES, ours=ours) as pool:
        ready = time.monotonic() - began
        alone = rates("alone", 2.0) >> pool
        together = rates("together", 2.0) @ pool
        assert fill("kept", ENTRIES) >> pool == ENTRIES
        kill_node((nodes_by_rank() @ pool)[-1])
        killed = time.monotonic()
        kept: Any = None
        while kept is None and time.monotonic() < killed + PATIENCE_S:
            with suppress(SkywardError, RuntimeError, TimeoutError):
                kept = left("kept") >> pool
        return {
            "ready_s": ready,
            "alone": alone,
            "together": {operation: sum(each[operation] for each in together) for operation in alone},
            "left": list(kept or ()),
            "answered_after_s": time.monotonic() - killed,
        }
