"""What an onlooker is told of operations: Prometheus metrics and OpenTelemetry spans."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from skyward_etcd import observe
from skyward_etcd.active import Connection
from skyward_etcd.errors import LockTimeout, NotHeld
from tests.integration.conftest import Opener
from tests.integration.helpers import Calls, LossyWire, next_line, revoke_lease, until, watchers, without_a_stream


class Counted:
    """A registry, and one question to it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def __call__(self, sample: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        return sum(
            each.value
            for family in self.registry.collect()
            for each in family.samples
            if each.name == f"skyward_etcd_{sample}" and labels.items() <= each.labels.items()
        )

    def operations(self) -> set[tuple[str, str]]:
        """Return the kinds and operations that were counted."""
        return {
            (each.labels["kind"], each.labels["operation"])
            for family in self.registry.collect()
            for each in family.samples
            if each.name == "skyward_etcd_operations_total"
        }


@pytest.fixture
def counted() -> Iterator[Counted]:
    counts = Counted()
    with observe.prometheus(counts.registry, names=["named"]):
        yield counts


async def test_every_kind_of_operation_is_counted_under_its_name(
    solo: Connection, calls: Calls, counted: Counted
) -> None:
    d, s, c, q = (calls(each) for each in (solo.dict("d"), solo.set("s"), solo.counter("c"), solo.queue("q")))
    await d.set("a", 1)
    await d.get("a")
    await d.pop("a")
    await s.add("m")
    await c.increment()
    await c.reset()
    await q.put_many([1, 2])
    await q.get()
    claim = await q.claim()
    await calls(claim).ack()
    hold = await calls(solo.lock("l")).acquire()
    await calls(hold).release()
    await calls(solo.barrier("b", 1)).wait()
    assert counted.operations() == {
        ("dict", "set"), ("dict", "get"), ("dict", "pop"), ("set", "add"), ("counter", "add"), ("counter", "reset"),
        ("queue", "put"), ("queue", "get"), ("queue", "claim"), ("queue", "ack"), ("lock", "acquire"),
        ("lock", "release"), ("barrier", "wait"),
    }  # fmt: skip
    assert counted("operations_total", outcome="ok") == 13
    assert counted("operation_seconds_count") == 13


def test_errors_are_counted_by_their_class(solo: Connection, another: Opener, counted: Counted) -> None:
    with another(solo).lock("l"), pytest.raises(LockTimeout):
        solo.lock("l").acquire(timeout=0)
    hold = solo.lock("l").acquire()
    hold.release()
    with pytest.raises(NotHeld):
        hold.release()
    assert counted("operations_total", operation="acquire", outcome="LockTimeout") == 1
    assert counted("operations_total", operation="release", outcome="NotHeld") == 1


def test_only_the_names_that_were_given_are_told_apart(solo: Connection, counted: Counted) -> None:
    for name in ("named", "x", "y"):
        solo.queue(name).put(1)
    assert len(solo.queue("named")) == 1
    assert counted("operations_total", operation="put", name="named") == 1
    assert counted("operations_total", operation="put", name="") == 2
    assert counted("queue_seen_items", name="named") == 1


async def test_the_wait_for_a_lock_is_no_part_of_its_latency(
    solo: Connection, another: Opener, calls: Calls, counted: Counted
) -> None:
    holder = await calls(another(solo).lock("named")).acquire()
    waiting = asyncio.ensure_future(calls(solo.lock("named")).acquire())
    await until(lambda: watchers(solo) == 1)
    await asyncio.sleep(0.3)  # the wait that is measured
    await calls(holder).release()
    hold = await waiting
    await calls(hold).release()
    assert counted("wait_seconds_sum", kind="lock", operation="acquire") >= 0.25
    assert counted("operation_seconds_sum", kind="lock", operation="acquire") < counted("wait_seconds_sum", kind="lock")
    assert counted("lock_held_seconds_count", name="named") == 2
    assert counted("lock_held_seconds_sum", name="named") >= 0.25


def test_requests_that_are_sent_again_are_counted(solo: Connection, counted: Counted) -> None:
    wire = LossyWire(solo._session(), seed=3)
    for n in range(30):
        solo.counter("c").increment()
        solo.queue("q").put(n)
    assert wire.lost > 0
    assert counted("retries_total") == wire.lost


async def test_a_lost_session_and_a_broken_stream_are_counted(
    solo: Connection, another: Opener, counted: Counted
) -> None:
    other = another(solo)
    with contextlib.suppress(LockTimeout), other.lock("l"):
        solo.lock("l").acquire(timeout=0.01)
    with without_a_stream(solo):
        pass
    await until(lambda: counted("watch_reconnects_total") >= 1)
    solo.dict("d")["a"] = 1
    revoke_lease(solo)
    solo.lock("m").acquire().release()
    assert counted("sessions_lost_total") == 1


def test_nothing_is_counted_after_the_end_of_it(solo: Connection, counted: Counted) -> None:
    with observe.prometheus(counted.registry) as second:  # of one registry: not registered twice
        solo.counter("c").increment()
        second.stop()
        solo.counter("c").increment()
    assert counted("operations_total") == 3


# ---- spans


@pytest.fixture
def provider() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with observe.opentelemetry(provider):
        yield provider, exporter
    provider.shutdown()


async def test_an_operation_is_a_span_of_its_caller(
    solo: Connection, calls: Calls, provider: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    traces, exporter = provider
    solo.lock("l").acquire().release()
    with traces.get_tracer("mine").start_as_current_span("work"):
        await solo.dict("settings").set_async("a", 1)
        solo.dict("settings").get("a")
    acquire, release, put, get, work = exporter.get_finished_spans()
    assert [each.name for each in (acquire, release, put, get)] == [
        "lock.acquire", "lock.release", "dict.set", "dict.get"
    ]  # fmt: skip
    assert put.parent == get.parent == work.get_span_context()
    assert acquire.parent is None
    assert _told(put) == {
        "db.system.name": "etcd",
        "skyward_etcd.kind": "dict",
        "skyward_etcd.name": "settings",
        "skyward_etcd.operation": "set",
        "skyward_etcd.attempts": 1,
    }
    assert "skyward_etcd.waited_s" in _told(acquire)


def test_a_span_tells_of_repetitions_and_errors(
    solo: Connection, provider: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    LossyWire(solo._session(), seed=3)
    for _ in range(20):
        solo.counter("c").increment()
    repeated = [each for each in provider[1].get_finished_spans() if each.events]
    assert repeated
    assert all(_told(each)["skyward_etcd.attempts"] == len(each.events) + 1 for each in repeated)
    with pytest.raises(TypeError):
        solo.dict("d").get(["no key"])  # type: ignore[arg-type]
    failed = provider[1].get_finished_spans()[-1]
    assert failed.status.status_code is StatusCode.ERROR
    assert _told(failed)["error.type"] == "UnsupportedType"


def _told(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


# ---- where programs find them


def test_run_serves_metrics_where_the_environment_says(solo: Connection, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import sys\nimport skyward_etcd as sky\n"
        "def work():\n sky.counter('c').increment()\n print('counted', flush=True)\n sys.stdin.readline()\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = _run(solo, tmp_path, str(port))
    try:
        assert next_line(process) == "counted"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            text = page.read().decode()
        assert 'skyward_etcd_operations_total{kind="counter",name="",operation="add",outcome="ok"} 1.0' in text
        assert process.communicate("\n", timeout=20)[1] == ""
    finally:
        process.kill()
        process.wait()


def test_run_refuses_a_port_that_is_none(solo: Connection, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def work(): ...\n")
    process = _run(solo, tmp_path, "http")
    complaint = process.communicate(timeout=20)[1]
    assert (process.returncode, "SKYWARD_ETCD_METRICS_PORT='http'" in complaint) == (2, True)


def _run(beside: Connection, where: Path, port: str) -> subprocess.Popen[str]:
    session = beside._session()
    return subprocess.Popen(
        [sys.executable, "-c", "from skyward_etcd.cli import main; main()", "run", "job:work"],
        cwd=where,
        env={
            "SKYWARD_ETCD_ENDPOINTS": ",".join(session.endpoints),
            "SKYWARD_ETCD_NAMESPACE": session.layout.namespace,
            "SKYWARD_ETCD_METRICS_PORT": port,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_threads_may_share_what_is_counted(solo: Connection, counted: Counted) -> None:
    threads = [threading.Thread(target=lambda: [solo.counter("c").increment() for _ in range(50)]) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert counted("operations_total", kind="counter", operation="add") == 400
