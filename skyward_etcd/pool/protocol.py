"""What a driver and its nodes say to each other, and a node to its worker processes.

Plain frozen data. What the user's code made (functions, arguments, results) travels as opaque bytes, pickled and
unpickled only where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from skyward_etcd.cluster.binary import Etcd
from skyward_etcd.cluster.member import MemberSpec
from skyward_etcd.pool.output import StreamName
from skyward_etcd.pool.runtime import InstanceInfo
from skyward_etcd.pool.spec import Worker

__all__ = [
    "WINDOW",
    "Fed",
    "Feed",
    "FeedEnd",
    "Follow",
    "Leave",
    "Left",
    "Lose",
    "MemberLost",
    "MemberReady",
    "NodeConfig",
    "Printed",
    "Raised",
    "Ready",
    "RemoteFailure",
    "Returned",
    "Run",
    "StartMember",
    "StartOver",
    "Stop",
    "Streaming",
    "Unready",
    "Wanted",
    "Yielded",
]

WINDOW = 16
"""How many items of a stream may be under way: the producer waits until the consumer has taken some."""


# --- both ways ---


@dataclass(frozen=True, slots=True)
class RemoteFailure:
    """An exception on its way to the caller: pickled if it can be, and in words."""

    module: str
    kind: str
    """The qualified name of its class."""
    message: str
    builtin: str
    """The nearest of its bases that every Python has."""
    traceback: str
    where: str
    pickled: bytes | None = None
    parts: bool = False
    """``pickled`` holds class, arguments and attributes, as the exception's own pickling does not restore it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The consumer of a stream has taken ``count`` more items. ``feed`` names an argument; None is the result."""

    call: int
    count: int
    feed: int | None = None


# --- driver to node ---


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node is told first. Sent through the socket it inherits: nothing of it shows in argv or environment."""

    info: InstanceInfo
    worker: Worker
    path: tuple[str, ...]
    python_path: str | None
    """``PYTHONPATH`` as the user set it; ours, which finds this package, is not for programs that functions start."""
    endpoints: tuple[str, ...] = ()
    """The cluster's members; none in a pool without a cluster."""
    namespace: str = "default"
    secret: bytes = field(default=b"", repr=False)
    etcd: Etcd | None = None
    member: MemberSpec | None = None
    start_s: float = 60.0

    @property
    def name(self) -> str:
        """What to call this process where people read."""
        return f"node {self.info.node}"


@dataclass(frozen=True, slots=True)
class Feed:
    """Stands for an argument that is streamed."""

    number: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run a function: ``payload`` is function, args and kwargs, with a `Feed` for each streamed argument."""

    call: int
    name: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Fed:
    """The next item of a streamed argument."""

    call: int
    feed: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class FeedEnd:
    """A streamed argument has ended, or failed."""

    call: int
    feed: int
    failure: RemoteFailure | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The caller has closed the stream, or with ``force`` waits no longer whatever the call does."""

    call: int
    force: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Hand back what the session holds and say `Left`; then stop the member and exit once the driver has hung up.

    In two steps, as everybody's session needs the members of the others to say good-bye.
    """


@dataclass(frozen=True, slots=True)
class Follow:
    """The cluster's members have changed: these are their endpoints, the nearest first."""

    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lose:
    """The majority of the cluster's members is lost for good: end what is under way, and what comes."""

    reason: str


@dataclass(frozen=True, slots=True)
class StartOver:
    """The cluster was recovered, as another one: these are its endpoints. Nothing of before is held any more."""

    endpoints: tuple[str, ...]
    reason: str
    """What to tell those who still wait for something of before."""


@dataclass(frozen=True, slots=True)
class StartMember:
    """Run a fresh member, in the place of any that the node had before; say `MemberReady`, or `MemberLost`.

    If it does not start, the one before is left alone.
    """

    etcd: Etcd
    member: MemberSpec


# --- node to driver ---


@dataclass(frozen=True, slots=True)
class Ready:
    """The node takes calls."""

    pid: int


@dataclass(frozen=True, slots=True)
class Unready:
    """The node could not start."""

    failure: RemoteFailure


@dataclass(frozen=True, slots=True)
class MemberReady:
    """The fresh member runs."""

    name: str


@dataclass(frozen=True, slots=True)
class MemberLost:
    """The node's member has died, or did not start, and is not started again; the node itself goes on."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Left:
    """The node's session is closed."""


@dataclass(frozen=True, slots=True)
class Printed:
    """Whole lines, but perhaps the last one of a call. ``call`` is None where threads of the user's own print."""

    call: int | None
    stream: StreamName
    text: str


@dataclass(frozen=True, slots=True)
class Streaming:
    """The call's result is a stream: items follow, then `Returned` or `Raised`."""

    call: int


@dataclass(frozen=True, slots=True)
class Yielded:
    """The next item of a streamed result."""

    call: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Returned:
    """The call has ended."""

    call: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Raised:
    """The call has failed."""

    call: int
    failure: RemoteFailure
