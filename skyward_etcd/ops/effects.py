"""What an operation may ask of the world.

An operation is a generator that does no I/O: it yields an effect, is sent the result (or thrown the error), and
returns its own result. A runner drives it: on threads, on an event loop, or in a simulation. The shape is that of
psycopg 3's ``generators.py`` and of httpx's ``auth_flow``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.ops.codec import Codec
from skyward_etcd.ops.layout import Layout
from skyward_etcd.ops.notes import Notes
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import Method

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of one request. The result is the reply; `Unavailable` or `EtcdError` is thrown."""

    method: Method[Any, Any]
    request: Any


@dataclass(frozen=True, slots=True)
class Backoff:
    """Wait before the next attempt. ``error`` is thrown back when the time for the operation is over."""

    attempt: int
    since: float
    error: SkywardEtcdError


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch a key, or the interval up to ``range_end``. The result is a live `Watching`.

    It tells what happens *from now on*, at once; read the state after it. A past ``start`` revision is told what has
    happened since, but only at the server's next round, up to 100 ms later.
    """

    key: bytes
    range_end: bytes = b""
    start: int = 0
    tell: Callable[[Sequence[pb.Event]], None] | None = None
    """Is given the events as they come, by whoever reads the stream, instead of them being kept to be taken."""
    hand_out: bool = False
    """Each put to one of the process's watchers, in the order in which they came, instead of to all; no deletions."""
    deletions: bool = False
    """Deletions only."""


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for any of the signals until the ``deadline``; the result is whether one came.

    The deadline is on `Now`'s clock; ``None``: for ever.
    """

    deadline: float | None
    signals: tuple[Signal, ...]


@dataclass(frozen=True, slots=True)
class Now:
    """The result is a monotonic clock's reading, in seconds."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Say how long the caller is willing to wait. The result is that moment, on `Now`'s clock; ``None``: never.

    From here on the operation goes on for no longer than that and one request: what is not answered by then is not
    sent again, and no watch or identity is waited for.
    """

    timeout: float | None


@dataclass(frozen=True, slots=True)
class Identify:
    """The result is this process's `Identity`, made if there is none yet."""


@dataclass(frozen=True, slots=True)
class Renounce:
    """Say that an identity's lease is gone: the next `Identify` gives a new one."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Later:
    """Have something done in the background, again and again until it gets through: what a cancelled operation owes."""

    make: Callable[[], Operation[None]]
    """Makes a new operation for each try."""


Effect = Call | Backoff | Watch | Await | Now | Deadline | Identify | Renounce | Later

Operation = Generator[Effect, Any, T]


class Signal(Protocol):
    """Something that happens once or again; set by any thread, awaited by threads and tasks."""

    def set(self) -> None:
        """Wake who waits, now and in future."""
        ...

    def clear(self) -> None:
        """Let the next wait wait."""
        ...

    def is_set(self) -> bool:
        """Tell whether a wait would return at once."""
        ...


class Watching(Signal, Protocol):
    """A live watch: set when there is something to `take`."""

    @property
    def is_current(self) -> bool:
        """Whether news come: the stream is not broken at the moment."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether there will be no more, for good."""
        ...

    @property
    def stream(self) -> int:
        """Which stream the news come on: another number tells that the one before it broke meanwhile."""
        ...

    def take(self) -> list[pb.Event]:
        """Return the events since the last call, oldest first, and clear the signal.

        An empty list after a wait means that events may have been missed: read the state again.

        Raises:
            EtcdError: etcd refuses the watch, by now.
        """
        ...

    def offer(self, events: Sequence[pb.Event]) -> None:
        """Have it told events, or told again."""
        ...

    def close(self) -> None:
        """Stop watching. Events handed out to this watcher and not taken go to the next one."""
        ...


class Mind(Protocol):
    """What a session knows by itself, without asking: plain data."""

    layout: Layout
    codec: Codec
    seen: int
    """The highest revision it has seen or written."""
    notes: Notes
    """What collections remember to save a round trip: it may be forgotten at any time."""
    kept: dict[bytes, Any]
    """What collections must not forget, under keys of theirs. Who puts something in takes it out."""


class Slot(Protocol):
    """A key of this session that proves whether a transaction was applied: see :mod:`skyward_etcd.ops.proof`."""

    key: bytes
    mod_revision: int


class Identity(Protocol):
    """One process with its lease, as etcd sees it. A new one follows when the lease is lost."""

    id: str
    """The lease in hex: the session's name in keys."""
    lease: int
    token_base: int
    """What makes a fencing token of a revision, by being added."""
    notes: dict[Any, Any]
    """What collections remember while this identity lasts."""
    lost: Signal
    """Set, once and for good, when the lease is gone."""

    def is_valid(self) -> bool:
        """Tell whether the lease lives for certain, by this machine's monotonic clock."""
        ...

    def serial(self) -> int:
        """Return 1, 2, 3, …: never the same twice."""
        ...

    def borrow_slot(self) -> Slot:
        """Return a slot that nobody else uses until it is given back."""
        ...

    def return_slot(self, slot: Slot) -> None:
        """Give a slot back whose ``mod_revision`` is known for certain."""
        ...
