"""`deploy/grafana.json` asks for metrics that there are: of a real etcd, of our processes, of the dashboard's page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from skyward_etcd import observe
from skyward_etcd.active import Connection
from skyward_etcd.dashboard.exporting import exported
from skyward_etcd.dashboard.looking import look
from skyward_etcd.wire import http
from tests.integration.helpers import LossyWire

BOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text())


def expressions() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]


def names_in(expression: str) -> Iterator[str]:
    """Yield the metrics that an expression asks for; each is called after who prints it."""
    yield from re.findall(r"\b(?:skyward_)?etcd_\w+", expression)


def printed(text: str) -> set[str]:
    return set(re.findall(r"^([a-z_]\w*)(?:\{| )", text, re.MULTILINE))


def labels_of(text: str, metric: str) -> set[str]:
    return {
        label
        for line in re.findall(rf"^{metric}\{{(.*)\}} ", text, re.MULTILINE)
        for label in re.findall(r"(\w+)=", line)
    }


def of_members(connection: Connection) -> str:
    """Return what the members of the cluster print."""
    pages = ""
    for endpoint in connection._session().endpoints:
        page = http.ask(endpoint, "/metrics", timeout_s=10.0)
        assert page
        pages += page.body.decode()
    return pages


def test_every_metric_of_the_dashboard_is_printed_by_somebody(trio: Connection) -> None:
    registry = CollectorRegistry()
    with observe.prometheus(registry):
        LossyWire(trio._session(), seed=3)
        for n in range(10):
            trio.queue("tasks").put(n)
        trio.barrier("epoch", 1).wait()
        with trio.lock("checkpoint"):
            seen = look(trio._session())
    ours = generate_latest(registry).decode()
    collections = exported({**seen, "age_s": 0.0, "error": None}).decode()
    asked = {name for expression in expressions() for name in names_in(expression)}
    assert len(asked) > 25
    everything = ours + collections + of_members(trio)
    deadline = time.monotonic() + 30.0
    while asked - printed(everything) and time.monotonic() < deadline:  # members measure their round trips each 5 s
        time.sleep(0.5)
        everything = ours + collections + of_members(trio)
    assert asked - printed(everything) == set()
    for expression in expressions():
        for metric in names_in(expression):
            wanted = {label for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(", ")}
            wanted |= set(re.findall(r"[{,](\w+)(?:!?=)", expression))
            assert wanted - {"instance"} <= labels_of(everything, metric), (metric, expression)


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
