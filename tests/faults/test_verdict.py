"""The checks of the fault lab that are not the library's own would tell."""

from __future__ import annotations

from typing import Any

import pytest

from skyward_etcd.testing.history import Operation
from tests.faults.verdict import check_jobs


def did(call: str, *arguments: Any, result: Any = None, returned: float | None = 2.0) -> Operation:
    return Operation("jobs a", call, arguments, result, 1.0, returned)


PUT, CLAIMED = did("put", "x"), did("claim", result=("x", 7))
DONE = did("ack", "x", 7)


@pytest.mark.parametrize(
    ("history", "wrong"),
    [
        ([PUT, CLAIMED, DONE], ""),
        ([PUT, CLAIMED, did("ack", "x", 7, result="HoldLost"), did("claim", result=("x", 9)), did("ack", "x", 9)], ""),
        ([PUT, CLAIMED, did("ack", "x", 7, returned=None)], ""),
        ([did("put", "x", returned=None)], ""),
        ([PUT, CLAIMED, did("ack", "x", 7, result="HoldLost")], "lost"),
        ([PUT], "lost"),
        ([CLAIMED, DONE], "never put"),
        ([PUT, CLAIMED, DONE, DONE], "acknowledged twice"),
        ([PUT, CLAIMED, CLAIMED, DONE], "claimed by two"),
        ([PUT, CLAIMED, DONE, did("claim", result=("x", 9))], "claimed after"),
    ],
)
def test_jobs_are_done_once(history: list[Operation], wrong: str) -> None:
    verdict = check_jobs(history)
    assert verdict.ok == (not wrong)
    assert wrong in verdict.reason
