"""Says aloud when no test has run on a real pool."""

from __future__ import annotations

import pytest

from tests.skyward.conftest import is_inside


def test_the_tests_on_a_real_pool_run_here() -> None:
    if not is_inside():
        pytest.skip("NOT ON A REAL SKYWARD POOL: `make test-skyward` runs these tests, with Python 3.12 and as root")
