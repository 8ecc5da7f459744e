"""Ours beside another system: the same operations, from as many processes, in turn."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.harness import Contest, Fleet, Series, Timing, interleaved, merged, ratio
from benchmarks.measures import VALUE, Bench, from_member, session
from benchmarks.peers.base import Maker, Operation, Seat, filled, seated
from benchmarks.peers.dask import DASK
from benchmarks.peers.manager import MANAGER
from benchmarks.peers.ray import RAY
from benchmarks.peers.redis import REDIS
from benchmarks.peers.skyward import SKYWARD_1, SKYWARD_2
from benchmarks.peers.zookeeper import KAZOO
from skyward_etcd import Connection

__all__ = ["PEERS", "Pair", "pairs", "versus", "worst"]

PEERS = {peer.name: peer for peer in (SKYWARD_1, SKYWARD_2, RAY, DASK, KAZOO, REDIS, MANAGER)}


def _sky(seat: Seat) -> Connection:
    return session(from_member(seat.where, seat.number))


def _read_eventual(seat: Seat) -> Operation:
    entries = _sky(seat).dict(seat.name)
    entries["key"] = VALUE
    return partial(entries.get, "key")


def _read_strong(seat: Seat) -> Operation:
    entries = _sky(seat).dict(seat.name, consistency="strong")
    entries["key"] = VALUE
    return partial(entries.get, "key")


def _write(seat: Seat) -> Operation:
    return partial(_sky(seat).dict(seat.name).set, seat.number, VALUE)


def _add(seat: Seat) -> Operation:
    members, numbers = _sky(seat).set(seat.name), itertools.count()
    return lambda: members.add(f"{seat.number} {next(numbers)}")


def _increment(seat: Seat) -> Operation:
    return _sky(seat).counter(seat.name).increment


def _put(seat: Seat) -> Operation:
    return partial(_sky(seat).queue(seat.name).put, VALUE)


def _get(seat: Seat) -> Operation:
    filled(seat, _put)
    return partial(_sky(seat).queue(seat.name).get, timeout=30)


def _lock(seat: Seat) -> Operation:
    lock = _sky(seat).lock(seat.name)

    def both() -> None:
        with lock:
            pass

    return both


def _barrier(seat: Seat) -> Operation:
    return partial(_sky(seat).barrier(seat.name, n=seat.workers).wait, 60)


_BARRIER = "barrier"
_TIMES = {_BARRIER: (20, 20), "queue get": (150, 50)}
"""How often each worker does what can be done only so often; the second in a quick run."""

_OURS: dict[str, Maker] = {
    "dict read": _read_strong,
    "dict write": _write,
    "set add": _add,
    "counter": _increment,
    "queue put": _put,
    "queue get": _get,
    "lock": _lock,
    _BARRIER: _barrier,
}


def versus(bench: Bench, name: str) -> Contest:
    """Take each operation that the peer has, with 4 and 8 processes on one name (a written entry is each one's own).

    The contestants' names are those of `pairs`. An operation that the peer does wrong, or not in time, is left out,
    and said.

    Raises:
        FileNotFoundError: it is not installed; with the remedy.
    """
    peer = PEERS[name]
    python = peer.python()
    contest: dict[str, Series] = {}
    for workers in (4,) if bench.quick else (4, 8):
        with peer.running(workers) as where, Fleet(python) as fleet:
            for operation, theirs in peer.operations.items():
                ours = _read_eventual if (operation, peer.reads) == ("dict read", "eventual") else _OURS[operation]
                turn = partial(_turn, bench, operation, workers)
                our_turn = partial(turn, bench.fleet, ours, bench.endpoints(apart="peers"))
                their_turn = partial(turn, fleet, theirs, where)
                row = f"{operation}, {workers}"
                try:
                    contest |= interleaved({f"{row}: ours": our_turn, f"{row}: {name}": their_turn}, bench.pick(3, 1))
                except RuntimeError as error:
                    sys.stderr.write(f"{name}, {row}: {error}\n")
    return contest


def _turn(bench: Bench, operation: str, workers: int, fleet: Fleet, make: Maker, where: object) -> Timing:  # noqa: PLR0917
    times = bench.pick(*_TIMES[operation]) if operation in _TIMES else None
    seat = Seat(where, bench.fresh(), workers, times)
    return merged(fleet.run(partial(seated, make, seat, 60.0 if times else bench.window_s), workers))


@dataclass(frozen=True, slots=True)
class Pair:
    """One operation with so many processes: ours, and the peer's."""

    row: str
    peer: str
    ours: Series
    theirs: Series

    @property
    def ratio(self) -> float:
        """How many times as much a second goes through ours."""
        return ratio(self.ours.rate, self.theirs.rate)


def pairs(contest: Contest) -> Iterator[Pair]:
    """Return what stands beside each other in a contest of `versus`; nothing, if it is another."""
    for (ours, mine), (theirs, other) in zip(*[iter(contest.items())] * 2, strict=False):
        row, _, peer = theirs.partition(": ")
        if ours == f"{row}: ours":
            yield Pair(row, peer, mine, other)


def worst(contest: Contest) -> float:
    """Return the ratio of the operation in which we are least ahead; NaN if there is none."""
    return min((pair.ratio for pair in pairs(contest)), default=math.nan)
