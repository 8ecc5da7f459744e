"""A second client of etcd that shares no line of code with us: the package etcd3, in an environment of its own.

It imports only with a protobuf that nobody else can use any more (docs/decisions/0002-etcd3-package.md).
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyward_etcd.active import Connection
from tests.integration.conftest import clusters, one_member, opened, solo

__all__ = ["clusters", "one_member", "opened", "solo"]

PYTHON = Path(__file__).parents[2] / ".venv-interop" / "bin" / "python"

PRELUDE = """
import json, sys
import etcd3
host, port = sys.argv[1].split(":", 1)
root = sys.argv[2]
etcd = etcd3.client(host=host, port=port, timeout=10)
def show(said):
    print(json.dumps(said), flush=True)
"""


class SecondClient:
    """Runs programs that use ``etcd``, a client of the package etcd3, and ``root``, the prefix of the namespace."""

    def __init__(self, connection: Connection) -> None:
        session = connection._session()
        self._arguments = [session.endpoints[0], session.layout.root.decode()]
        self._running: list[subprocess.Popen[str]] = []

    def start(self, program: str) -> subprocess.Popen[str]:
        """Start a program; it prints a JSON text a line, by ``show``."""
        process = subprocess.Popen(
            [PYTHON, "-c", PRELUDE + textwrap.dedent(program), *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    def run(self, program: str) -> list[Any]:
        """Run a program to its end, and return what it has shown."""
        return heard(self.start(program))

    def close(self) -> None:
        """End what still runs."""
        for process in self._running:
            process.kill()
            process.communicate()


def heard(process: subprocess.Popen[str]) -> list[Any]:
    """Wait for a program's end, and return what it has shown since."""
    out, complaints = process.communicate(timeout=30)
    assert process.returncode == 0, complaints
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def second(solo: Connection) -> Iterator[SecondClient]:
    """The second client, on the cluster and in the namespace of ``solo``."""
    assert PYTHON.exists(), "the second client has no environment: run `make .venv-interop/.installed`"
    client = SecondClient(solo)
    yield client
    client.close()
