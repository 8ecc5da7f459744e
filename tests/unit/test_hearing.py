"""What is heard of a member's machine when the member itself does not answer."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from skyward_etcd.cluster import membership
from skyward_etcd.cluster.membership import Heard, hear
from skyward_etcd.errors import Unavailable


class Silent:
    """A wire to a member that fails for a reason."""

    reason = ""

    def __init__(self, *_: object, **__: object) -> None: ...

    def call(self, *_: object, **__: object) -> Any:
        raise Unavailable(f"Status at 10.0.0.1:2379: unavailable: no connection: {self.reason}", maybe_applied=False)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("number", "heard"),
    [
        (errno.ECONNREFUSED, Heard.REFUSAL),
        (errno.ECONNRESET, Heard.REFUSAL),
        (errno.EHOSTUNREACH, Heard.NOTHING),
        (errno.ENETUNREACH, Heard.NOTHING),
    ],
)
def test_only_a_machine_that_is_there_refuses(number: int, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "Wire", Silent)
    monkeypatch.setattr(Silent, "reason", str(OSError(number, os.strerror(number))))
    assert hear("10.0.0.1:2379") is heard
