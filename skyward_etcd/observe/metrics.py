"""Operations as Prometheus metrics."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.observe.subject import Subject, subject
from skyward_etcd.ops.effects import Operation
from skyward_etcd.session.observing import Seen

__all__ = ["Metrics"]

_OPERATION = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LONG = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1800.0)
_LABELS = ("kind", "operation", "name")
_NAMED_BY_CLASS = ("CancelledError", "GeneratorExit", "KeyboardInterrupt", "TypeError", "ValueError")


class _Family:
    """The metrics of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.operations = Counter(
            "skyward_etcd_operations_total",
            "Operations that have ended; outcome: ok, or the class of the error.",
            (*_LABELS, "outcome"),
            registry=registry,
        )
        self.seconds = Histogram(
            "skyward_etcd_operation_seconds",
            "How long operations took, without the time in which they waited for others.",
            _LABELS,
            buckets=_OPERATION,
            registry=registry,
        )
        self.waits = Histogram(
            "skyward_etcd_wait_seconds",
            "How long operations waited for others: for a lock, an item, the last to arrive at a barrier.",
            _LABELS,
            buckets=_LONG,
            registry=registry,
        )
        self.held = Histogram(
            "skyward_etcd_lock_held_seconds",
            "How long locks were held, from the end of acquire to the end of release.",
            ("name",),
            buckets=_LONG,
            registry=registry,
        )
        self.retries = Counter(
            "skyward_etcd_retries_total", "Requests that got no answer and were sent again.", _LABELS, registry=registry
        )
        self.depth = Gauge(
            "skyward_etcd_queue_seen_items",
            "Items that waited in a queue when this process last asked for its size.",
            ("name",),
            registry=registry,
        )
        self.lost = Counter(
            "skyward_etcd_sessions_lost_total", "Leases that ended before their sessions.", registry=registry
        )
        self.broken = Counter(
            "skyward_etcd_watch_reconnects_total", "Watch streams that broke and were opened again.", registry=registry
        )
        self.changed = Counter(
            "skyward_etcd_cluster_changes_total", "Clusters that were recovered, or replaced.", registry=registry
        )


_FAMILIES: weakref.WeakKeyDictionary[CollectorRegistry, _Family] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _family(registry: CollectorRegistry) -> _Family:
    """Return a registry's metrics, which it takes once only."""
    with _lock:
        found = _FAMILIES.get(registry)
        if found is None:
            found = _FAMILIES[registry] = _Family(registry)
        return found


@dataclass(slots=True)
class _Begun:
    subject: Subject
    labels: tuple[str, str, str]
    released: Any
    """The hold that is given up by it."""


class Metrics:
    """Counts and times what it sees."""

    def __init__(self, registry: CollectorRegistry | None, *, names: frozenset[str]) -> None:
        self._family = _family(REGISTRY if registry is None else registry)
        self._names = names
        self._held: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._children: dict[tuple[Any, ...], Any] = {}
        """What ``labels`` returns, which takes longer to find than all the rest."""

    def begin(self, operation: Operation[Any]) -> _Begun:
        """Find out what it is about."""
        about, given = subject(operation)
        labels = (about.kind, about.operation, about.name if about.name in self._names else "")
        released = given.get("hold") if about.operation == "release" else None
        return _Begun(about, labels, released)

    def repeated(self, begun: _Begun, error: BaseException) -> None:  # noqa: ARG002 - counted, whatever it is
        """Count a repetition."""
        self._child(self._family.retries, *begun.labels).inc()

    def end(self, begun: _Begun, seen: Seen) -> None:
        """Count and time it."""
        family, about, labels = self._family, begun.subject, begun.labels
        waited_s = about.waited_s(seen)
        self._child(family.operations, *labels, _outcome(seen.error)).inc()
        self._child(family.seconds, *labels).observe(seen.duration_s - waited_s)
        if about.waits:
            self._child(family.waits, *labels).observe(waited_s)
        if about.kind == "lock" and seen.error is None and about.operation == "acquire":
            self._held[seen.result] = time.monotonic()
        if begun.released is not None:
            since = self._held.pop(begun.released, None)
            if since is not None:
                self._child(family.held, labels[2]).observe(time.monotonic() - since)
        if (about.kind, about.operation) == ("queue", "size") and labels[2] and seen.error is None:
            self._child(family.depth, labels[2]).set(seen.result)

    def session_lost(self) -> None:
        """Count it."""
        self._family.lost.inc()

    def watch_broken(self) -> None:
        """Count it."""
        self._family.broken.inc()

    def cluster_changed(self) -> None:
        """Count it."""
        self._family.changed.inc()

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


def _outcome(error: BaseException | None) -> str:
    """Return a word of which there are few: what a value's own code raises may be called anything."""
    if error is None:
        return "ok"
    name = type(error).__name__
    return name if isinstance(error, SkywardEtcdError) or name in _NAMED_BY_CLASS else "other"
