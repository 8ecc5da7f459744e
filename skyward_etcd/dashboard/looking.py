"""What the page shows: one look at the cluster every few seconds, and how deep the queues have been.

The looks are those of the command line (`operate`, `cluster.survey`): no lease, no write, no values. One thread makes
them, however many people have the page open.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from skyward_etcd.cluster import report
from skyward_etcd.cluster.survey import Survey
from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.operate import catalog, views
from skyward_etcd.operate.kinds import Kind
from skyward_etcd.operate.reading import Reading
from skyward_etcd.session.session import Session

__all__ = ["MOST", "Depths", "Looking", "look"]

log = logging.getLogger("skyward_etcd.dashboard")

MOST = 50
"""Of each kind so many are looked into, those with the most entries: each costs some round trips a look."""

_POINT_S = 5.0
_POINTS = 180


class Depths:
    """How many items have waited in each queue, over the last quarter of an hour."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[float, int]]] = {}

    def add(self, now: float, waiting: dict[str, int]) -> None:
        """Take down how many wait now; of 5 s the most is kept. A queue that is no more is forgotten."""
        self._points = {name: self._points.get(name) or deque(maxlen=_POINTS) for name in waiting}
        for name, count in waiting.items():
            points = self._points[name]
            if points and now - points[-1][0] < _POINT_S:
                points[-1] = (points[-1][0], max(points[-1][1], count))
            else:
                points.append((now, count))

    def of(self, name: str, now: float) -> list[tuple[int, int]]:
        """Return how many seconds ago it was, and how many waited; the oldest first."""
        return [(round(now - then), count) for then, count in self._points.get(name, ())]


@dataclass(frozen=True, slots=True)
class _Before:
    at: float
    revision: int


class Looking:
    """Looks from a thread of its own, from `start` to `stop`."""

    def __init__(self, session: Session, ask: Callable[[], Survey], *, every_s: float) -> None:
        self._session = session
        self._ask = ask
        self._every_s = every_s
        self._depths = Depths()
        self._before: _Before | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="skyward-etcd-dashboard", daemon=True)
        self._looked_at = 0.0
        self._state: dict[str, Any] = {"namespace": session.layout.namespace, "every_s": every_s, "error": None}

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, with the look that is under way."""
        self._stopping.set()
        self._thread.join(timeout=10.0)

    @property
    def state(self) -> dict[str, Any]:
        """The last look, and how many seconds ago that was (``None``: there has been none yet)."""
        age_s = round(time.monotonic() - self._looked_at, 1) if self._looked_at else None
        return {**self._state, "age_s": age_s}

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except SkywardEtcdError as error:  # what was seen last stays, with its age
                self._state = {**self._state, "error": str(error)}
            except Exception:  # a bug of ours must not leave a page that looks alive
                log.exception("the look failed")
                self._state = {**self._state, "error": "the look failed: the server's log says why"}
            self._stopping.wait(self._every_s)

    def _look(self) -> None:
        survey = self._ask()
        members = {
            "members": report.members(survey),
            "has_leader": survey.has_majority,
            "unanswered": {where: str(error) for where, error in survey.failures},
        }
        self._state = {**self._state, **members}  # also if the rest is not to be had
        if not survey.answers:
            raise next((error for _, error in survey.failures), SkywardEtcdError("nobody answers"))
        seen = look(self._session, stale=not survey.has_majority)
        now = time.monotonic()
        self._depths.add(now, {queue["name"]: queue["waiting"] for queue in seen["queues"]})
        for queue in seen["queues"]:
            queue["depths"] = self._depths.of(queue["name"], now)
        rate = self._rate(now, seen["revision"])
        self._state = {**self._state, **seen, "writes_per_s": rate, "error": None}
        self._looked_at = now

    def _rate(self, now: float, revision: int) -> float | None:
        before, self._before = self._before, _Before(now, revision)
        if before is None or revision < before.revision:
            return None
        return round((revision - before.revision) / (now - before.at), 1)


def look(session: Session, *, stale: bool = False) -> dict[str, Any]:
    """Look at all collections, into those that have entries, and at the processes. Without values."""
    found = session.run(catalog.catalog(session, stale=stale))
    processes = session.run(catalog.live_sessions(Reading(session, stale=stale)))

    def into(kind: Kind) -> list[tuple[catalog.Listed, dict[str, Any]]]:
        looked: list[tuple[catalog.Listed, dict[str, Any]]] = []
        for each in _first(found.collections, kind):
            try:
                seen, _ = session.run(views.view(session, kind, each.name, limit=0, stale=stale))
            except SkywardEtcdError as error:  # removed meanwhile, or not ours
                log.debug("%s %r: %s", kind, each.name, error)
            else:
                looked.append((each, asdict(seen)))
        return looked

    return {
        "revision": found.revision,
        "stale": stale,
        "processes": [asdict(who) for who in processes.values()],
        "collections": [asdict(each) for each in found.collections[:1000]],
        "counts": {"collections": len(found.collections)},
        "queues": [_without({**seen, "name": each.name}, "items") for each, seen in into("queue")],
        "locks": [{**seen, "name": each.name} for each, seen in into("lock")],
        "barriers": [{**seen, "name": each.name} for each, seen in into("barrier")],
        "left_out": {
            kind: count - MOST
            for kind in ("queue", "lock", "barrier")
            if (count := sum(each.kind == kind for each in found.collections)) > MOST
        },
    }


def _first(listed: Sequence[catalog.Listed], kind: Kind) -> list[catalog.Listed]:
    """Return those with the most entries, by name."""
    largest = sorted((each for each in listed if each.kind == kind), key=lambda each: -each.entries)[:MOST]
    return sorted(largest, key=lambda each: each.name)


def _without(said: dict[str, Any], key: str) -> dict[str, Any]:
    return {each: value for each, value in said.items() if each != key}
