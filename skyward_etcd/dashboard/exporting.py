"""The last look as Prometheus metrics: what no single worker knows, such as how deep a queue is.

At most `looking.MOST` names of each kind, those with the most entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "exported"]


def exported(state: dict[str, Any]) -> bytes:
    """Return a look as Prometheus reads it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Look(state))
    return generate_latest(registry)


class _Look(Collector):
    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return its metrics; those of collections only if there was a look and it is fresh."""
        state = self._state
        age_s = state["age_s"]
        well = age_s is not None and state["error"] is None
        yield _gauge("skyward_etcd_look_success", "Whether the last look at the cluster was complete.", {(): well})
        if not well:
            return
        yield _gauge("skyward_etcd_processes", "Processes with a session.", {(): len(state["processes"])})
        yield _gauge("skyward_etcd_collections", "Collections.", {(): state["counts"]["collections"]})
        yield _gauge(
            "skyward_etcd_queue_items",
            "Items of a queue; state: waiting, claimed, or dead.",
            {(each["name"], what): each[what] for each in state["queues"] for what in ("waiting", "claimed", "dead")},
            ("name", "state"),
        )
        yield _gauge(
            "skyward_etcd_lock_held",
            "Whether somebody holds the lock.",
            {(each["name"],): each["holder"] is not None for each in state["locks"]},
            ("name",),
        )
        yield _gauge(
            "skyward_etcd_lock_waiters",
            "Who wait for the lock.",
            {(each["name"],): len(each["waiters"]) for each in state["locks"]},
            ("name",),
        )
        yield _gauge(
            "skyward_etcd_barrier_waiting",
            "Who have arrived at the barrier.",
            {(each["name"],): len(each["waiting"]) for each in state["barriers"]},
            ("name",),
        )
        yield _gauge(
            "skyward_etcd_barrier_missing",
            "Who have not arrived at a barrier where somebody waits.",
            {(each["name"],): each["missing"] if each["waiting"] else 0 for each in state["barriers"]},
            ("name",),
        )


def _gauge(name: str, what: str, values: dict[Any, float], labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
