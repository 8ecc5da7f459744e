"""What this process does, for those who run it: Prometheus metrics and OpenTelemetry spans, once they are asked for.

Nothing here is imported by what runs operations, and neither ``prometheus_client`` nor ``opentelemetry`` before one of
the functions is called. While nobody has called one, an operation looks at one empty tuple, which takes 0.01 µs.
Metrics take 7 µs of it, spans 5 to 17 µs.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

from skyward_etcd.session import observing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

__all__ = ["Observation", "opentelemetry", "prometheus", "serve_prometheus"]


class Observation:
    """Somebody looks on, until `stop`; or until the end of a ``with``."""

    def __init__(self, observer: observing.Observer) -> None:
        self._observer = observer
        observing.add(observer)

    def stop(self) -> None:
        """Look on no more. What was counted stays where it is. May be called twice."""
        observing.remove(self._observer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def prometheus(registry: CollectorRegistry | None = None, *, names: Collection[str] = ()) -> Observation:
    """Count and time what all sessions of this process do, from now on, in a Prometheus registry.

    The names of collections are not in the metrics, since nobody knows how many there will be: ``names`` says which
    ones are told apart, and all others are counted together, under an empty name. `docs/observability.md` lists the
    metrics. To serve them is up to you, as ever with ``prometheus_client`` (or see `serve_prometheus`). Two of one
    registry count twice, in the same metrics.

    Args:
        registry: where to register; by default ``prometheus_client.REGISTRY``.
        names: collections to tell apart, each of which makes some 20 time series for each operation used.

    Raises:
        ImportError: ``prometheus-client`` is not installed: ``pip install 'skyward-etcd[metrics]'``.
    """
    _needed("prometheus_client", extra="metrics")
    from skyward_etcd.observe.metrics import Metrics

    return Observation(Metrics(registry, names=frozenset(names)))


def serve_prometheus(port: int, *, host: str = "127.0.0.1", names: Collection[str] = ()) -> Observation:
    """`prometheus`, with all of the default registry served at ``http://{host}:{port}/metrics`` by a thread.

    It is open to whoever reaches the port: use another ``host`` where only your Prometheus does. It is served until the
    process ends.

    Raises:
        ImportError: ``prometheus-client`` is not installed.
        OSError: the port is not to be had.
    """
    observation = prometheus(names=names)
    try:
        _needed("prometheus_client", extra="metrics").start_http_server(port, addr=host)
    except OSError:
        observation.stop()
        raise
    return observation


def opentelemetry(tracer_provider: TracerProvider | None = None) -> Observation:
    """Make a span of each operation of all sessions of this process, from now on.

    A span is called ``lock.acquire`` or the like, and is a child of the caller's current span. Its attributes are
    ``skyward_etcd.kind``, ``.name``, ``.operation``, ``.attempts``, and ``.waited_s`` (seconds it waited for others).
    An event ``repeated`` stands for each request that got no answer. A failed operation's span has its error.

    Args:
        tracer_provider: by default the global one.

    Raises:
        ImportError: ``opentelemetry-api`` is not installed: ``pip install 'skyward-etcd[traces]'``.
    """
    _needed("opentelemetry.trace", extra="traces")
    from skyward_etcd.observe.traces import Traces

    return Observation(Traces(tracer_provider))


def _needed(module: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'skyward-etcd[{extra}]'", name=error.name) from error
