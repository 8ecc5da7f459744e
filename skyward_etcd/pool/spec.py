"""What a pool should be like: its nodes, how they run functions, and Skyward's words for clouds, which are ignored.

Everything is plain frozen data that is checked when it is made.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypedDict

from skyward_etcd.pool.function import checked_timeout

__all__ = [
    "DEFAULT_IMAGE",
    "IgnoredOption",
    "Image",
    "NodeSpec",
    "Nodes",
    "Options",
    "PipIndex",
    "Port",
    "Spec",
    "SpecKwargs",
    "Volume",
    "Worker",
    "WorkerExecutor",
]

WorkerExecutor = Literal["auto", "thread", "process"]


class IgnoredOption(UserWarning):
    """An option says something about clouds, which means nothing to a pool of local processes."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many nodes: ``desired``. A local pool has a fixed size, so ``max`` and ``min`` are checked and ignored."""

    desired: int
    max: int | None = None
    min: int | None = None

    def __post_init__(self) -> None:
        _check_whole("desired is the number of nodes", self.desired)
        most = self.desired if self.max is None else self.max
        least = self.desired if self.min is None else self.min
        if most < self.desired:
            raise ValueError(f"max ({most}) is less than desired ({self.desired})")
        if not 0 <= least <= most:
            raise ValueError(f"min ({least}) is not between 0 and {most}")

    @property
    def auto_scaling(self) -> bool:
        """Whether a range was given."""
        return self.max is not None

    @classmethod
    def from_spec(cls, spec: NodeSpec) -> Nodes:
        """Read ``3``, ``(2, 8)`` or ``Nodes(…)``.

        Raises:
            TypeError: it is none of them.
            ValueError: the numbers make no sense.
        """
        match spec:
            case Nodes():
                return spec
            case bool():
                pass
            case int():
                return cls(spec)
            case (int() as desired, int() as most):
                return cls(desired, most)
            case _:
                pass
        raise TypeError(f"nodes is a number, a pair (desired, max) or Nodes(…), not {spec!r}")


NodeSpec = int | tuple[int, int] | Nodes


@dataclass(frozen=True, slots=True)
class Worker:
    """How a node runs functions: ``concurrency`` at a time, in threads or in processes of their own.

    Threads share the node's process, so a call costs next to nothing, and one that overruns its timeout cannot be
    stopped, only left behind. Processes do not share the interpreter's lock, and are killed by a timeout. A fresh one
    for each call with ``reuse_processes=False``. ``buffer`` is Skyward's, and needless here.
    """

    concurrency: int = 1
    buffer: int = 0
    executor: WorkerExecutor = "auto"
    reuse_processes: bool = True

    def __post_init__(self) -> None:
        _check_whole("concurrency is how many functions a node runs at a time", self.concurrency, least=1)
        _check_whole("buffer is a number of calls", self.buffer)
        if self.executor not in ("auto", "thread", "process"):
            raise ValueError(f'executor is "thread", "process" or "auto", not {self.executor!r}')
        if not self.reuse_processes and self.executor != "process":
            raise ValueError('reuse_processes=False needs executor="process"')

    @property
    def resolved_executor(self) -> Literal["thread", "process"]:
        """What ``"auto"`` stands for: threads."""
        return "process" if self.executor == "process" else "thread"


@dataclass(frozen=True, slots=True)
class PipIndex:
    """A package index for some packages."""

    url: str = field(repr=False)  # it may have a password in it
    packages: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Volume:
    """A bucket mounted on the nodes."""

    bucket: str
    mount: str
    prefix: str = ""
    read_only: bool = True
    storage: object = None

    def __post_init__(self) -> None:
        if not self.mount.startswith("/"):
            raise ValueError(f"mount is an absolute path, not {self.mount!r}")


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the nodes made reachable from the driver."""

    remote: int
    local: int = 0
    route: Literal["round_robin"] = "round_robin"


@dataclass(frozen=True, slots=True)
class Image:
    """The nodes' environment. ``env`` is set in every node and worker; packages are those of this interpreter."""

    python: str = "auto"
    pip: Sequence[str] = ()
    pip_indexes: Sequence[PipIndex] = ()
    apt: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)  # tokens are given so
    shell_vars: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    includes: Sequence[str] = ()
    excludes: Sequence[str] = ()
    skyward_source: str = "auto"
    metrics: object = ()
    bootstrap_timeout: float = 300

    def __post_init__(self) -> None:
        for name, value in self.env.items():
            if {type(name), type(value)} - {str}:
                raise TypeError(f"env is of text, as in {{'DEBUG': '1'}}, not {name!r}: {value!r}")
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"{name!r} cannot be the name of an environment variable, or its value holds a NUL")


DEFAULT_IMAGE = Image()


@dataclass(frozen=True, slots=True)
class Spec:
    """Skyward's specification of a pool, of which a local pool uses ``nodes``, ``image.env`` and ``allocation``.

    With ``allocation="spot"`` a pool of seven or more nodes has five etcd members, and survives two losses at a time.
    """

    provider: object = None
    accelerator: object = None
    nodes: NodeSpec = 1
    vcpus: float | None = None
    memory_gb: float | None = None
    disk_gb: int | None = None
    architecture: Literal["x86_64", "arm64"] | None = None
    allocation: Literal["spot", "on-demand", "spot-if-available", "cheapest"] = "spot-if-available"
    image: Image = DEFAULT_IMAGE
    region: str | None = None
    max_hourly_cost: float | None = None
    ttl: float = 600
    volumes: Sequence[Volume] = ()
    plugins: Sequence[object] = ()
    ports: Sequence[Port] = ()

    def __post_init__(self) -> None:
        Nodes.from_spec(self.nodes)


class SpecKwargs(TypedDict, total=False):
    """The fields of `Spec`, for ``Compute(nodes=3, …)``."""

    provider: object
    accelerator: object
    nodes: NodeSpec
    vcpus: float | None
    memory_gb: float | None
    disk_gb: int | None
    architecture: Literal["x86_64", "arm64"] | None
    allocation: Literal["spot", "on-demand", "spot-if-available", "cheapest"]
    image: Image
    region: str | None
    max_hourly_cost: float | None
    ttl: float
    volumes: Sequence[Volume]
    plugins: Sequence[object]
    ports: Sequence[Port]


@dataclass(frozen=True, slots=True)
class Options:
    """How a pool works. Times are in seconds; the fields not named here are Skyward's, and ignored.

    ``cluster=False``: no etcd, and no collections. ``worker``: how the nodes run functions.
    ``default_compute_timeout``: the timeout of functions that have none of their own; there is none by default, as a
    training run should not end after Skyward's five minutes. ``retry_on_interruption``: the ``retries`` of functions
    that say nothing themselves, none by default, as a function may not be safe to run twice. ``provision_timeout``: for
    all nodes to be ready. ``shutdown_timeout``: for all to be gone, before they are killed. ``console=False``: no
    progress line.
    """

    selection: Literal["first", "cheapest"] = "cheapest"
    worker: Worker | None = None
    provision_timeout: float | None = None
    ssh_timeout: float | None = None
    bootstrap_timeout: float | None = None
    provision_retry_delay: float | None = None
    max_provision_attempts: int | None = None
    ssh_retry_interval: float | None = None
    default_compute_timeout: float | None = None
    autoscale_cooldown: float = 30.0
    autoscale_idle_timeout: float = 60.0
    reconcile_tick_interval: float = 15.0
    shutdown_timeout: float = 10.0
    console: bool | str = True
    logging: object = True
    cluster: bool | None = None
    retry_on_interruption: int = 0
    health_checker: object = None

    def __post_init__(self) -> None:
        for timeout in (self.default_compute_timeout, self.provision_timeout, self.shutdown_timeout):
            if timeout is not None:
                checked_timeout(timeout)
        _check_whole("retry_on_interruption is how often a lost call is run again", self.retry_on_interruption)

    @property
    def clustered(self) -> bool:
        """Whether the pool has an etcd cluster; yes unless told otherwise."""
        return self.cluster is not False


def _check_whole(what: str, number: object, *, least: int = 0) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what}: a whole number, not {number!r}")
    if number < least:
        raise ValueError(f"{what}: {least} or more, not {number}")


_USED = {
    Spec: {"nodes", "image", "allocation"},
    Image: {"env", "includes", "excludes", "skyward_source"},
    Options: {
        "worker", "provision_timeout", "default_compute_timeout", "shutdown_timeout", "console", "logging", "cluster",
        "retry_on_interruption",
    },
}  # fmt: skip


def warn_of_ignored(specs: Sequence[Spec], options: Options, *, stacklevel: int) -> None:
    """Say once which of these fields were set and mean nothing here."""
    names = dict.fromkeys(name for spec in specs for name in _ignored_in(spec))
    names |= dict.fromkeys(f"Options.{name}" for name in _set(options))
    if names:
        warnings.warn(
            f"this pool's nodes are processes on this machine, so these options mean nothing and are ignored: "
            f"{', '.join(names)}",
            IgnoredOption,
            stacklevel=stacklevel + 1,
        )


def _ignored_in(spec: Spec) -> Iterator[str]:
    yield from _set(spec)
    yield from (f"image.{name}" for name in _set(spec.image))
    if Nodes.from_spec(spec.nodes).auto_scaling:
        yield "nodes (a range)"


def _set(data: Any) -> Iterator[str]:
    """Name the fields without a meaning here that differ from their defaults."""
    for entry in fields(data):
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if entry.name not in _USED[type(data)] and getattr(data, entry.name) not in (default, [], {}):
            yield entry.name
