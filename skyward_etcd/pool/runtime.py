"""What a function asks while it runs on a node: which node this is, its share of the data, and whether to print."""

from __future__ import annotations

import functools
import inspect
import json
import os
import random
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, cast, overload

from skyward_etcd.errors import NotConnected
from skyward_etcd.pool.function import rewrapped
from skyward_etcd.pool.output import StreamName, redirected

__all__ = [
    "AcceleratorInfo",
    "InstanceInfo",
    "NetworkInfo",
    "OutputSpec",
    "PeerInfo",
    "instance_info",
    "is_head",
    "shard",
    "silent",
    "stderr",
    "stdout",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")

_HERE: list[InstanceInfo] = []
"""At most one: what this process was told when it became a node."""


class PeerInfo(TypedDict, total=False):
    """Another node of the pool."""

    node: int
    private_ip: str
    public_ip: str | None


class AcceleratorInfo(TypedDict, total=False):
    """The node's accelerators, where there are any."""

    type: str
    count: float
    memory_gb: float
    is_trainium: bool


class NetworkInfo(TypedDict, total=False):
    """The node's network."""

    interface: str
    bandwidth_gbps: float


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """Which node of which pool this is. Nodes, and the workers of a node, are numbered from 0."""

    node: int
    total_nodes: int
    worker: int = 0
    workers_per_node: int = 1
    accelerators: float = 0
    total_accelerators: float = 0
    head_addr: str = "127.0.0.1"
    head_port: int = 0
    job_id: str = ""
    peers: list[PeerInfo] = field(default_factory=list[PeerInfo])
    accelerator: AcceleratorInfo | None = None
    network: NetworkInfo = field(default_factory=NetworkInfo)

    @property
    def global_worker_index(self) -> int:
        """This worker's number among all workers of the pool."""
        return self.node * self.workers_per_node + self.worker

    @property
    def total_workers(self) -> int:
        """How many workers all nodes have together."""
        return self.total_nodes * self.workers_per_node

    @property
    def is_head(self) -> bool:
        """Whether this is the pool's first worker."""
        return self.global_worker_index == 0

    @property
    def hostname(self) -> str:
        """The machine's name."""
        return socket.gethostname()

    @classmethod
    def current(cls) -> InstanceInfo | None:
        """Return this node's information, or None outside a pool."""
        return _HERE[0] if _HERE else None


def instance_info() -> InstanceInfo:
    """Return which node of which pool this function runs on.

    Raises:
        NotConnected: the caller is not a function that runs on a node.
    """
    info = InstanceInfo.current()
    if info is None:
        raise NotConnected("instance_info() is for nodes: call it inside a @sky.function that a pool runs")
    return info


def is_head(info: InstanceInfo) -> bool:
    """Tell whether ``info`` is the pool's first worker: a predicate for ``stdout(only=…)``."""
    return info.is_head


def install(info: InstanceInfo) -> None:
    """Make this process the node that ``info`` describes, also for programs that it starts, in Skyward's variable."""
    _HERE[:] = [info]
    os.environ["COMPUTE_POOL"] = json.dumps(asdict(info))


# --- shard ----------------------------------------------------------------------------------------------------------


@overload
def shard(
    data: list[T],
    /,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> list[T]: ...
@overload
def shard(
    data: tuple[T, ...],
    /,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> tuple[T, ...]: ...
@overload
def shard(
    data: range,
    /,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> list[int]: ...
@overload
def shard(
    data: T,
    /,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> T: ...
@overload
def shard(
    data1: T1,
    data2: T2,
    /,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> tuple[T1, T2]: ...
@overload
def shard(
    data1: T1,
    data2: T2,
    data3: T3,
    /,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> tuple[T1, T2, T3]: ...
@overload
def shard(
    data1: T1,
    data2: T2,
    data3: T3,
    data4: T4,
    /,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> tuple[T1, T2, T3, T4]: ...
@overload
def shard(
    *data: Any,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> Any: ...


def shard(
    *data: Any,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    node: int | None = None,
    total_nodes: int | None = None,
) -> Any:
    """Return this node's share of the data: every ``total_nodes``-th item, from item ``node`` on.

    Lists, tuples, numpy arrays and torch tensors keep their type, any other sequence becomes a list. Several at once
    give a tuple of shares. Those of equal length stay aligned, also when shuffled: ``x, y`` have to be of one length,
    and ``x_train, y_train, x_test, y_test`` of two. ``shuffle`` draws the same permutation on every node from ``seed``.
    ``drop_last`` gives every node the same number of items, as one block. Outside a pool, and without ``node`` and
    ``total_nodes``, the share is everything.

    Raises:
        TypeError: what was given has no order, as a set or a dict has none for this.
        ValueError: no data, one of several has a length that no other has, or ``node`` is not among ``total_nodes``.
    """
    for one in data:
        kind: Any = type(one)  # pyright: ignore[reportUnknownVariableType]  it is of whatever the caller has
        if issubclass(kind, (AbstractSet, Mapping)) or not hasattr(kind, "__getitem__"):
            raise TypeError(f"shard() takes sequences, arrays and tensors, not {kind.__name__}: make it a list")
    if not data:
        raise ValueError("shard() needs at least one sequence to share out")
    info = InstanceInfo.current() or InstanceInfo(node=0, total_nodes=1)
    mine = info.node if node is None else node
    nodes = info.total_nodes if total_nodes is None else total_nodes
    if not 0 <= mine < nodes:
        raise ValueError(f"node {mine} is not one of the {nodes} nodes, which are numbered from 0")
    lengths = Counter(len(one) for one in data)
    if len(data) > 1 and min(lengths.values()) == 1:
        raise ValueError(f"shard() keeps sequences of equal length aligned, and these are of {[len(d) for d in data]}")
    shares = tuple(
        _pick(one, _indices(len(one), mine, nodes, seed=seed if shuffle else None, even=drop_last)) for one in data
    )
    return shares[0] if len(data) == 1 else shares


def _indices(length: int, node: int, nodes: int, *, seed: int | None, even: bool) -> Sequence[int]:
    order: Sequence[int] = range(length)
    if seed is not None:
        order = list(order)
        random.Random(seed).shuffle(order)  # noqa: S311  the same on every node is what we want
    if not even:
        return order[node::nodes]
    each = length // nodes
    return order[node * each : (node + 1) * each]


def _pick(data: Any, indices: Sequence[int]) -> Any:
    """Index by the type's name: neither numpy nor torch is imported for those who do not use them."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(data).__mro__}
    if "numpy.ndarray" in kinds or "torch.Tensor" in kinds:
        return data[list(indices)]
    picked = [data[index] for index in indices]
    return tuple(picked) if isinstance(data, tuple) else picked


# --- who prints -----------------------------------------------------------------------------------------------------

OutputSpec = Literal["head"] | Callable[[InstanceInfo], bool]
"""Who may print: the first worker, or those for whom the predicate is true."""


def stdout(only: OutputSpec) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let the function print on some nodes only: ``"head"``, or those for which ``only(info)`` is true.

    Works above and below ``@sky.function``. What goes to stderr is not touched.

    Raises:
        ValueError: ``only`` is neither ``"head"`` nor a predicate.
    """
    return _quiet_where(_others(only), "stdout")


def stderr(only: OutputSpec) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let the function write to stderr on some nodes only, as ``stdout`` does for prints.

    Raises:
        ValueError: ``only`` is neither ``"head"`` nor a predicate.
    """
    return _quiet_where(_others(only), "stderr")


def silent(fn: Callable[P, R]) -> Callable[P, R]:
    """Let the function print nowhere, neither to stdout nor to stderr."""
    return cast("Callable[P, R]", _quiet_where(lambda: True, "stdout", "stderr")(fn))


def _others(only: OutputSpec) -> Callable[[], bool]:
    """Return what tells whether this node is not among those that may print; outside a pool anybody may."""
    if only != "head" and not callable(only):
        raise ValueError(f'only is "head" or a function of InstanceInfo, not {only!r}')
    may_print = is_head if only == "head" else only

    def muted() -> bool:
        info = InstanceInfo.current()
        return info is not None and not may_print(info)

    return muted


def _quiet_where(muted: Callable[[], bool], *streams: StreamName) -> Callable[[Any], Any]:
    @contextmanager
    def quiet() -> Generator[None]:
        with ExitStack() as stack:
            for stream in streams if muted() else ():
                stack.enter_context(redirected(stream, None))
            yield

    return lambda fn: rewrapped(fn, lambda inner: _around(inner, quiet))


def _around(fn: Callable[..., Any], context: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    """Wrap ``fn`` so that all of its code runs inside ``context``, whatever kind of function it is."""
    if inspect.isgeneratorfunction(fn):
        return functools.wraps(fn)(_around_generator(fn, context))
    if inspect.isasyncgenfunction(fn):
        return functools.wraps(fn)(_around_async_generator(fn, context))
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with context():
                return await fn(*args, **kwargs)

        return coroutine

    @functools.wraps(fn)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with context():
            return fn(*args, **kwargs)

    return plain


def _around_generator(
    fn: Callable[..., Any], context: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Iterator[Any]]:
    def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        items = fn(*args, **kwargs)
        try:
            while True:
                with context():  # not around the yield: the consumer between two items may print
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item
        finally:
            with context():
                items.close()

    return generator


def _around_async_generator(
    fn: Callable[..., Any], context: Callable[[], AbstractContextManager[None]]
) -> Callable[..., AsyncGenerator[Any, None]]:
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        items = fn(*args, **kwargs)
        try:
            while True:
                with context():
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item
        finally:
            with context():
                await items.aclose()

    return generator
