"""What we want to be, as a table: each target with what it asks, how that is measured, and its goal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks import measures, one_process, versus
from benchmarks.harness import Contest, ratio
from benchmarks.measures import Measure

__all__ = ["CURVES", "TARGETS", "Curve", "Goal", "Point", "Result", "Scale", "Target"]

Figure = Callable[[Contest], float]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure shall be."""

    bound: Literal["≤", "≥", "="]
    value: float
    unit: str

    def met(self, figure: float) -> bool:
        """Tell whether a figure is good enough; one that is not a number is not."""
        match self.bound:
            case "≤":
                return figure <= self.value
            case "≥":
                return figure >= self.value
            case "=":
                return figure == self.value

    def __str__(self) -> str:
        return f"{self.bound} {self.value:,g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table."""

    name: str
    asks: str
    goal: Goal | None
    """None: the figure is printed for information."""
    measure: Measure | None = None
    figure: Figure | None = None
    why_not: str = ""
    """Why it is not measured, if it is not."""
    note: str = ""
    """Where the measurement differs from what the goal says."""
    quick_note: str = ""
    """Where that of a quick run does."""
    why: str = ""
    """What keeps it from its goal, as profiles have shown: said where it is not met, with what was measured there."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a cost grows with."""

    over: str
    """In the plural."""
    points: tuple[int, ...]
    quick_points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """How a cost grows."""

    name: str
    asks: str
    measure: Callable[..., Contest]
    """Takes a `Bench` and a point of the scale."""
    scale: Scale


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a target."""

    target: Target
    contest: Contest
    figure: float
    why_not: str = ""
    """Why there is no figure, if there is none."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if it was not measured, or has no goal."""
        return None if self.why_not or self.target.goal is None else self.target.goal.met(self.figure)


@dataclass(frozen=True, slots=True)
class Point:
    """A curve at one place."""

    curve: Curve
    at: int
    contest: Contest


# ---- how a figure comes from a contest


def p50(one: str, other: str, times: float = 1) -> Figure:
    """How many times the other's p50 (or ``times`` of them) the one's is."""
    return lambda contest: ratio(contest[one].p50, times * contest[other].p50)


def rate(one: str, other: str | None = None) -> Figure:
    """How many a second, or how many times the other's."""
    return lambda contest: ratio(contest[one].rate, contest[other].rate if other else 1)


def slower(one: str, other: str) -> Figure:
    """How many times longer the other takes: its p50 by the one's."""
    return p50(other, one)


def cpu_over(one: str, other: str) -> Figure:
    """Microseconds of CPU an operation that the one takes more than the other."""
    return lambda contest: (contest[one].cpu_each - contest[other].cpu_each) * 1e6


def counted(one: str) -> Figure:
    """What was counted."""
    return lambda contest: contest[one].counted


def microseconds(one: str) -> Figure:
    """How long half of its operations took at most."""
    return lambda contest: 1e6 * contest[one].p50


def seconds(one: str) -> Figure:
    """How long it took."""
    return lambda contest: contest[one].seconds


# ---- the table

_READ_STRONG = Measure(measures.dict_read, ("strong",))
_READ_EVENTUAL = Measure(measures.dict_read, ("eventual",))
_WRITE = Measure(measures.dict_write)
_ADD = Measure(measures.set_add)
_ONE_CALLER = (
    ("dict-read-strong", "d[k] of a strong dict", _READ_STRONG),
    ("dict-read-eventual", "d[k] of an eventual dict", _READ_EVENTUAL),
    ("dict-write", "d[k] = v", _WRITE),
    ("set-add", "s.add(m)", _ADD),
)
_THREADS = Measure(measures.counter_threads, (32,))
_SHARED_CORES = "three members apply every write, on the cores that the clients use"
_MANY = Measure(measures.queue_many)

_OURS: tuple[Target, ...] = (
    *(
        Target(
            name,
            f"{what}: p50, one thread, one member",
            Goal("≤", 1.15, "× the stub"),
            measure,
            p50("ours", "stub"),
        )
        for name, what, measure in _ONE_CALLER
    ),
    *(
        Target(
            f"cpu-{name}",
            f"{what}: CPU of our layers an operation",
            Goal("≤", 15, "µs"),
            measure,
            cpu_over("ours", "wire"),
            note="more than the same RPC on our own transport takes",
            why="Python's own work: a message takes 0.2 to 1 µs, a field 0.1 µs, a step of a generator about "
            "1 µs, and a write, with its proof, is some ten messages",
        )
        for name, what, measure in _ONE_CALLER
    ),
    Target(
        "counter-8",
        "8 processes on one counter: increments/s",
        Goal("≥", 5, "× the textbook"),
        Measure(measures.counter, (8,)),
        rate("ours", "textbook"),
    ),
    Target(
        "counter-32",
        "32 processes on one counter: increments/s",
        Goal("≥", 15, "× the textbook"),
        Measure(measures.counter, (32,)),
        rate("ours", "textbook"),
        why=_SHARED_CORES + ": the contenders of the recipe are slowed down by the same, and so fail less often",
    ),
    Target(
        "counter-threads",
        "32 threads of one process on one counter: increments/s",
        Goal("≥", 100, "× the textbook"),
        _THREADS,
        rate("ours", "textbook"),
        why="a batch takes a round trip, and its 32 threads two switches each",
    ),
    Target(
        "counter-threads-rate",
        "the same, alone",
        Goal("≥", 15_000, "/s"),
        _THREADS,
        rate("ours"),
        why="a batch takes a round trip, and its 32 threads two switches each",
    ),
    Target("counter-threads-unique", "totals that two got", Goal("=", 0, "totals"), _THREADS, counted("ours")),
    Target(
        "queue-length",
        "q.get() with 1,000,000 items waiting: p50",
        Goal("≤", 1.3, "× at 10"),
        Measure(measures.queue_length, (1_000_000, 100_000)),
        p50("ours", "ours at 10"),
        quick_note="100,000 items",
    ),
    Target(
        "queue-textbook",
        "q.get() with 100,000 items waiting: p50",
        Goal("≥", 500, "× quicker than the textbook"),
        Measure(measures.queue_textbook, (100_000,)),
        slower("ours", "textbook"),
        why="the recipe sorts all items for each get, on a core that it has alone; ours is bound by the round trip",
    ),
    Target(
        "queue-get-8",
        "8 consumers of one queue: items/s",
        Goal("≥", 0.8, "× the stub's deletes"),
        Measure(measures.queue_get, (8,)),
        rate("ours", "stub"),
        why="strict order: all eight want the same items, so each transaction names those that others may have taken, "
        "and the members compare them; the stubs share nothing",
    ),
    Target(
        "queue-put-8",
        "8 producers of one queue: items/s",
        Goal("≥", 0.8, "× the stub's puts"),
        Measure(measures.queue_put, (8,)),
        rate("ours", "stub"),
        why="a put writes the item and its proof, and compares the page; " + _SHARED_CORES,
    ),
    Target(
        "queue-put-many",
        "q.put_many(), one caller",
        Goal("≥", 20_000, "items/s"),
        _MANY,
        rate("put_many"),
        why=_SHARED_CORES,
    ),
    Target(
        "queue-get-many",
        "q.get_many(), one caller",
        Goal("≥", 20_000, "items/s"),
        _MANY,
        rate("get_many"),
        why=_SHARED_CORES,
    ),
    Target(
        "queue-wake",
        "from a put's beginning to the end of another process's waiting get: p50",
        Goal("≤", 2, "round trips"),
        Measure(measures.wake_up),
        p50("ours", "stub"),
        note="a round trip is a Put of the stub",
        why="put, event, take: two round trips, and a switch from the thread that hears to the one that waits",
    ),
    Target(
        "queue-waiters",
        "100 waiting threads, one put: requests of all of them",
        Goal("≤", 3, "requests"),
        Measure(measures.waiters, (100,)),
        counted("ours"),
        note="counted by etcd; more than the waiters that make one, if one makes two",
    ),
    Target(
        "lock-alone",
        "acquire and release of a free lock: requests",
        Goal("=", 2, "requests"),
        Measure(measures.lock_alone),
        lambda contest: round(contest["ours"].counted, 1),
        note="counted by etcd",
    ),
    *(
        Target(
            f"lock-handover-{contenders}",
            f"lock, {contenders} contending processes: from a release to the next acquire, p50",
            Goal("≤", 3, "round trips"),
            Measure(measures.lock_handover, (contenders,)),
            p50("ours", "stub"),
            note="a round trip is a Put of the stub",
            why="a release, and an event for each who is near, whose processes share two cores with the members",
        )
        for contenders in (2, 32)
    ),
    Target(
        "barrier-64",
        "barrier: from the last of 64 arrivals until all go on, p50",
        Goal("≤", 5, "× that of 2"),
        Measure(measures.barrier, (8, 8)),
        p50("ours", "ours, 2"),
        note="8 processes of 8 threads",
        why="the last arrivals of eight threads of each process wait for each other's interpreter",
    ),
    Target(
        "dict-update",
        "d.update() of 1,000 entries: entries/s",
        Goal("≥", 15, "× one put each"),
        Measure(measures.dict_update),
        rate("update", "one by one"),
    ),
    Target(
        "dict-items",
        "d.items() of 100,000 entries",
        Goal("≤", 1, "s"),
        Measure(measures.dict_items, (100_000,)),
        seconds("ours"),
        why="etcd's ranges are a part of it (the stub), the rest is reading keys and values in Python",
    ),
    *(
        Target(
            f"near-cache-{kind}",
            f"read of a near-cached {kind}: p50",
            Goal("≤", 2, "µs"),
            Measure(one_process.near_cache, (kind,)),
            microseconds("ours"),
        )
        for kind in ("dict", "set")
    ),
    Target(
        "coalescing-threads",
        "32 threads, independent strong reads and writes: operations/s",
        Goal("≥", 5, "× the stub from 32 threads"),
        Measure(one_process.threads, (32,)),
        rate("ours", "stub"),
        why="the interpreter's lock: what is above the transport costs more than a request saves, and each call that "
        "waits costs two switches",
    ),
    Target(
        "coalescing-tasks",
        "1,000 concurrent tasks, independent strong reads and writes: operations/s",
        Goal("≥", 5, "× the grpc.aio stub"),
        Measure(one_process.tasks, (1000,)),
        rate("ours", "stub"),
        why="CPU of one core: messages, footprints and generators of a call, though 64 of them share a request",
    ),
    Target(
        "coalescing-alone",
        "what a lone caller pays for it",
        Goal("≤", 3, "% of a read's p50"),
        Measure(one_process.alone),
        lambda contest: 100 * ratio(contest["with"].p50 - contest["without"].p50, contest["ours"].p50),
    ),
)

_AHEAD = Goal("≥", 1, "× it, the worst of all")

_PEERS = tuple(
    Target(
        f"peer-{peer.name}",
        f"every operation, 4 and 8 processes, beside {peer.name}",
        _AHEAD if peer.is_rival else None,
        Measure(versus.versus, (peer.name,)),
        versus.worst,
        note=peer.what,
        quick_note="4 processes",
        why="three members agree on each write and each strong read, on the cores that the workers use; most of these "
        "answer from one process's memory",
    )
    for peer in versus.PEERS.values()
)

TARGETS: tuple[Target, ...] = (*_OURS, *_PEERS)

_PROCESSES = Scale("processes", (1, 2, 4, 8, 16, 32, 64), (1, 4))
_MEMBERS = Scale("members", (1, 3, 5), (1, 3))
_BYTES = Scale("bytes of a value", (10, 100, 1 << 10, 10 << 10, 100 << 10, 1 << 20), (100, 100 << 10))
_ITEMS = Scale("waiting items", (10, 100, 1_000, 10_000, 100_000, 1_000_000), (10, 100_000))
_PARTICIPANTS = Scale("participants", (2, 4, 8, 16, 32, 64), (2,))

CURVES: tuple[Curve, ...] = (
    Curve("rates-dict-read-strong", "strong reads of one entry", measures.dict_reads, _PROCESSES),
    Curve("rates-dict-write", "writes, an entry for each worker", measures.dict_writes, _PROCESSES),
    Curve("rates-counter", "increments of one counter", measures.counter, _PROCESSES),
    Curve("rates-queue-put", "puts into one queue", measures.queue_put, _PROCESSES),
    Curve("rates-queue-get", "gets from one queue", measures.queue_get, _PROCESSES),
    Curve("members-read", "strong reads of one entry, one caller", measures.read_of_members, _MEMBERS),
    Curve("members-write", "writes of one entry, one caller", measures.write_to_members, _MEMBERS),
    Curve("bytes-read", "strong reads of one entry, one caller", measures.read_of_bytes, _BYTES),
    Curve("bytes-write", "writes of one entry, one caller", measures.write_of_bytes, _BYTES),
    Curve("items-queue-get", "gets, one caller", measures.queue_get_at, _ITEMS),
    Curve("participants-barrier", "from the last arrival until all go on", measures.barrier_of, _PARTICIPANTS),
)
