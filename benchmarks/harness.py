"""How a measurement is taken: contestants in turn (A B A B …), medians of the repeats, ratios of the medians.

What is compared always runs in the same minutes of the same machine, so that its moods strike both.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = [
    "Contest",
    "Fleet",
    "Job",
    "Series",
    "Timing",
    "interleaved",
    "merged",
    "percentile",
    "ratio",
    "serve",
    "timed",
    "timed_threads",
]

T = TypeVar("T")

_ROOT = Path(__file__).parent.parent

_START_IN_S = 0.03
"""How long before the common start the workers are told of it: longer than a message takes to all of them."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One repeat of one contestant."""

    latencies: tuple[float, ...]
    """Seconds, one an operation."""
    began: float = 0.0
    """Moments of the machine's monotonic clock, which all its processes share; both 0 where a rate means nothing."""
    ended: float = 0.0
    cpu: float = math.nan
    """Seconds of the workers' CPU, all their threads together."""
    items: int = 0
    """What went through, if that is not one an operation."""
    counted: float = math.nan
    """What else was counted; the measurement says what."""
    members_cpu: float = math.nan
    """Seconds of the etcd members' CPU, all together."""

    @property
    def seconds(self) -> float:
        """How long it took, from the first to the last of all workers."""
        return self.ended - self.began

    @property
    def rate(self) -> float:
        """Operations, or items, a second."""
        return ratio(self.items or len(self.latencies), self.seconds)

    @property
    def cpu_each(self) -> float:
        """Seconds of CPU an operation."""
        return ratio(self.cpu, len(self.latencies))


@dataclass(frozen=True, slots=True)
class Series:
    """All repeats of one contestant. Each figure is the median of the repeats' figures, in seconds or a second."""

    timings: tuple[Timing, ...]

    @property
    def p50(self) -> float:
        """Half of the operations took no longer."""
        return statistics.median(percentile(timing.latencies, 50) for timing in self.timings)

    @property
    def p99(self) -> float:
        """Ninety-nine of a hundred operations took no longer."""
        return statistics.median(percentile(timing.latencies, 99) for timing in self.timings)

    @property
    def rate(self) -> float:
        """Operations, or items, a second, of all workers together."""
        return statistics.median(timing.rate for timing in self.timings)

    @property
    def cpu_each(self) -> float:
        """Seconds of CPU an operation."""
        return statistics.median(timing.cpu_each for timing in self.timings)

    @property
    def members_cpu_each(self) -> float:
        """Seconds of the members' CPU an operation."""
        return statistics.median(ratio(timing.members_cpu, len(timing.latencies)) for timing in self.timings)

    @property
    def seconds(self) -> float:
        """How long one repeat took."""
        return statistics.median(timing.seconds for timing in self.timings)

    @property
    def counted(self) -> float:
        """What the measurement counted."""
        return statistics.median(timing.counted for timing in self.timings)

    @property
    def operations(self) -> int:
        """How many operations the figures are made of."""
        return sum(len(timing.latencies) for timing in self.timings)


Contest = Mapping[str, Series]
"""The contestants of one measurement, by name."""


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest of the values that at least ``percent`` of a hundred do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ratio(one: float, other: float) -> float:
    """Return how many times the other the one is; NaN where that means nothing."""
    return one / other if other else math.nan


def interleaved(contestants: Mapping[str, Callable[[], Timing]], repeats: int) -> Contest:
    """Let each run once in turn, ``repeats`` times: A B A B, never A A B B."""
    timings: dict[str, list[Timing]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            timings[name].append(run())
    return {name: Series(tuple(each)) for name, each in timings.items()}


def timed(
    operation: Callable[[], Any],
    times: int | None = None,
    *,
    seconds: float = math.inf,
    before: Callable[[], Any] | None = None,
) -> Timing:
    """Run an operation so many times, or for so many seconds. What runs ``before`` each is not in the latencies."""
    latencies: list[float] = []
    cpu, began = time.process_time(), time.monotonic()
    ends = began + seconds
    while (times is None or len(latencies) < times) and time.monotonic() < ends:
        if before is not None:
            before()
        start = time.perf_counter()
        operation()
        latencies.append(time.perf_counter() - start)
    return Timing(tuple(latencies), began, time.monotonic(), time.process_time() - cpu)


def merged(timings: Sequence[Timing]) -> Timing:
    """Return what several workers did side by side, as one."""
    return Timing(
        tuple(latency for timing in timings for latency in timing.latencies),
        min(timing.began for timing in timings),
        max(timing.ended for timing in timings),
        sum(timing.cpu for timing in timings),
        sum(timing.items for timing in timings),
    )


def timed_threads(operation: Callable[[], Any], threads: int, seconds: float) -> Timing:
    """`timed` on several threads at once, with a common start."""
    ready = threading.Barrier(threads)

    def one() -> Timing:
        ready.wait()
        return timed(operation, seconds=seconds)

    cpu = time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        together = merged([future.result() for future in [pool.submit(one) for _ in range(threads)]])
    return replace(together, cpu=time.process_time() - cpu)  # each has seen that of all


# ---- worker processes

Job = Callable[[int], Callable[[], T]]
"""What a worker is told: called with its number, it prepares, and returns what all do at the common start. It has to
be picklable: a function of a module, or a `functools.partial` of one."""


class Fleet:
    """Worker processes, started when they are first needed, each an interpreter of its own; for ``with``.

    ``python`` may be that of another environment: then what they are sent imports only what is to be had there.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def run(self, job: Job[T], workers: int) -> list[T]:
        """Let ``workers`` processes prepare the job, then do it all from the same moment on.

        Raises:
            RuntimeError: one of them failed; with its traceback.
        """
        while len(self._workers) < workers:
            self._start()
        try:
            return self._run(job, [pipe for _, pipe in self._workers[:workers]])
        except BaseException:
            self.kill()  # the others are in the middle of it: the next job gets new ones
            raise

    def _run(self, job: Job[T], pipes: Sequence[Connection]) -> list[T]:
        for pipe in pipes:
            pipe.send(job)
        for pipe in pipes:
            _received(pipe)
        at = time.monotonic() + _START_IN_S
        for pipe in pipes:
            pipe.send(at)
        return [_received(pipe) for pipe in pipes]

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        process = subprocess.Popen(
            [self._python, "-m", "benchmarks.worker", str(theirs.fileno()), str(len(self._workers))],
            pass_fds=[theirs.fileno()],
            cwd=_ROOT,
        )
        theirs.close()
        self._workers.append((process, ours))

    def kill(self) -> None:
        """End all workers; what they had at etcd ends with the cluster."""
        for process, pipe in self._workers:
            process.kill()
            process.wait()
            pipe.close()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@dataclass(frozen=True, slots=True)
class _Failed:
    trace: str


def _received(pipe: Connection) -> Any:
    answer = pipe.recv()
    if isinstance(answer, _Failed):
        raise RuntimeError(f"a worker failed:\n{answer.trace}")  # noqa: TRY004 - it is no question of types
    return answer


def serve(pipe: Connection, number: int) -> None:
    """Do what comes through the pipe, until we are killed or our owner is no more: the life of a worker."""
    while True:
        try:
            job: Job[Any] = pipe.recv()
        except EOFError:
            return
        try:
            go = job(number)
            pipe.send("ready")
            time.sleep(max(0.0, pipe.recv() - time.monotonic()))
            pipe.send(go())
        except Exception:  # noqa: BLE001 - told to the one who waits for it
            pipe.send(_Failed(traceback.format_exc()))
