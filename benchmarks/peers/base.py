"""What a peer is: how it is started, and what a worker does with it."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness import Timing, timed

__all__ = [
    "Maker",
    "Operation",
    "Peer",
    "Seat",
    "environment",
    "filled",
    "free_port",
    "installed",
    "module",
    "own_python",
    "seated",
    "started",
]

Operation = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker's place in one measurement; sent to it."""

    where: Any
    """What the peer's `Peer.running` gave."""
    name: str
    """A name that nothing has yet."""
    workers: int
    times: int | None = None
    """How often each worker does it; None: for a time."""
    number: int = 0


Maker = Callable[[Seat], Operation]
"""Makes a worker's operation. A function of a module, as it is sent to the workers."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another system."""

    name: str
    what: str
    """Which of its parts are used, and how it is set up, in a line."""
    python: Callable[[], str]
    """Returns the path of its Python; raises FileNotFoundError, with the remedy, if it cannot be measured here."""
    running: Callable[[int], AbstractContextManager[Any]]
    """Runs its servers for so many workers, and gives where they are."""
    operations: Mapping[str, Maker]
    """By the names in `benchmarks.versus`; what it does not have is not there."""
    reads: Literal["eventual", "strong"] = "strong"
    """Which of our reads its own are like."""
    is_rival: bool = True
    """Whether we want to be ahead: not of what keeps everything in one process, or one machine."""


def environment(name: str, program: str = "python") -> str:
    """Return the path of a program in one of the environments that `make bench-peers` makes."""
    path = Path(__file__).parent.parent.parent / f".venv-{name}" / "bin" / program
    if not path.exists():
        raise FileNotFoundError("not installed: make bench-peers")
    return str(path)


def installed(program: str, package: str) -> str:
    """Return the path of a program of the system."""
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"no {program}: apt-get install {package}")
    return found


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(command: list[str], *ports: int, **environ: str) -> Generator[None]:
    """Run a server, from when it listens on all of these ports until the end of the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environ}
    )
    try:
        for port in ports:
            _wait_for(port, process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


def module(name: str) -> Any:
    """Import a part of the peer. Type checkers know nothing of it: it is not installed where they run."""
    return importlib.import_module(name)


def own_python() -> str:
    """Return the Python that runs this."""
    return sys.executable


def filled(seat: Seat, make: Maker) -> None:
    """Put into a queue what this worker is going to take out."""
    put = make(seat)
    for _ in range(1 + (seat.times or 0)):
        put()


def seated(make: Maker, seat: Seat, seconds: float, number: int) -> Callable[[], Timing]:
    """Let a worker take its seat, do its operation once, as the first use of a name asks more, and then repeat it."""
    operation = make(replace(seat, number=number))
    operation()
    return partial(timed, operation, seat.times, seconds=seconds)
