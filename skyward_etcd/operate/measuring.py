"""How long this cluster takes for one read and one write, measured from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import repeatable
from skyward_etcd.ops.effects import Identify, Identity, Mind, Now, Operation
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import DELETE_RANGE, PUT, RANGE

__all__ = ["Latency", "measure"]

_FEWEST = 10


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one kind of request took, in seconds, one after the other."""

    what: str
    count: int
    p50_s: float
    p99_s: float
    longest_s: float
    round_trips: float
    """The median in bare round trips: what the majority and its disks add."""


def measure(mind: Mind, *, for_s: float = 3.0, value_bytes: int = 100) -> Operation[Sequence[Latency]]:
    """Make requests one after the other, of each kind for a third of the time. What is written goes with our lease.

    Raises:
        NoSpace, Unavailable: as any write.
    """
    own: Identity = yield Identify()
    key = mind.layout.root + f"bench/{own.id}".encode()
    kinds: Sequence[tuple[str, Callable[[], Operation[object]]]] = (
        ("round trip", lambda: repeatable(RANGE, kv.read(key, serializable=True))),
        ("get", lambda: repeatable(RANGE, kv.read(key))),
        ("put", lambda: repeatable(PUT, pb.PutRequest(key=key, value=b"x" * value_bytes, lease=own.lease))),
    )
    latencies: list[Latency] = []
    try:
        for what, ask in kinds:
            took = yield from _repeated(ask, for_s / len(kinds))
            p50, bare = took[len(took) // 2], latencies[0].p50_s if latencies else took[len(took) // 2]
            p99 = took[min(len(took) - 1, len(took) * 99 // 100)]
            latencies.append(Latency(what, len(took), p50, p99, took[-1], p50 / bare if bare else 0.0))
    finally:
        yield from repeatable(DELETE_RANGE, pb.DeleteRangeRequest(key=key))
    return latencies


def _repeated(ask: Callable[[], Operation[object]], for_s: float) -> Operation[list[float]]:
    """Return how long each took, sorted."""
    took: list[float] = []
    start: float = yield Now()
    now = start
    while now < start + for_s or len(took) < _FEWEST:
        yield from ask()
        then, now = now, (yield Now())
        took.append(now - then)
    return sorted(took)
