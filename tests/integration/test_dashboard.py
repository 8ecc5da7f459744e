"""`skyward-etcd dashboard`: what it shows, to whom, and how it looks in a real browser."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.dashboard.looking import Depths
from skyward_etcd.dashboard.server import names_of
from tests.integration.conftest import Opener, any_usable
from tests.integration.helpers import watchers

EVIL = "<img src=x onerror=document.title='pwned'>"
"""A name that is a program, where it is not shown as text."""

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Dashboard:
    """The command, running."""

    def __init__(self, beside: Connection, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        session = beside._session()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from skyward_etcd.cli import main; main()", "dashboard"),
                *("--port", str(self.port), "--every", "0.5", *arguments),
            ],
            env={
                **os.environ,
                "SKYWARD_ETCD_ENDPOINTS": ",".join(session.endpoints),
                "SKYWARD_ETCD_NAMESPACE": session.layout.namespace,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str = "/", *, method: str = "GET", host: str = "") -> tuple[int, str, dict[str, str]]:
        """Return the status, the text and the headers."""
        request = urllib.request.Request(self.address + path, method=method, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    def state_when(self, condition: Callable[[dict[str, Any]], object], *, within_s: float = 30.0) -> dict[str, Any]:
        """Wait until a look meets the condition, and return it."""
        deadline = time.monotonic() + within_s
        state: dict[str, Any] = {}
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._process.communicate()[1]
            with contextlib.suppress(OSError):
                state = json.loads(self.get("/state.json")[1])
                if state["age_s"] is not None and condition(state):
                    return state
            time.sleep(0.1)
        raise AssertionError(f"not within {within_s} s; the last look: {state}")

    def end(self, by: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit code and what it said."""
        self._process.send_signal(by)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Wait until it ends; return the exit code and what it said."""
        said = self._process.communicate(timeout=30)[1]
        return self._process.returncode, said

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def dashboard(solo: Connection) -> Iterator[Dashboard]:
    running = Dashboard(solo)
    yield running
    running.kill()


@pytest.fixture
def busy(solo: Connection, another: Opener) -> Iterator[Connection]:
    """A namespace where things wait: a queue with items claimed and waiting, a lock with a line, half a barrier."""
    queue = solo.queue("tasks")
    queue.put_many(list(range(40)))
    queue.claim()
    solo.queue(EVIL).put(1)
    solo.dict("settings").update({f"key {n}": n for n in range(30)})
    solo.counter("done").increment()
    other, third = another(solo), another(solo)
    with other.lock("checkpoint"):

        def waits(which: int) -> None:
            with contextlib.suppress(Exception):  # ended by the fixture's end
                third.lock("checkpoint", timeout=150).acquire() if which == 0 else third.barrier("epoch", 3).wait(150)

        threads = [threading.Thread(target=waits, args=(which,)) for which in (0, 1)]
        for each in threads:
            each.start()
        deadline = time.monotonic() + 20
        while watchers(third) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        yield solo
        third._session().close()
        for each in threads:
            each.join(timeout=20)


def test_it_shows_what_there_is(busy: Connection, dashboard: Dashboard) -> None:
    state = dashboard.state_when(lambda state: state["locks"] and state["barriers"] and len(state["processes"]) == 3)
    assert [(each["role"], each["lag"], each["errors"]) for each in state["members"]] == [("leader", 0, [])]
    tasks = next(each for each in state["queues"] if each["name"] == "tasks")
    assert (tasks["waiting"], tasks["claimed"], tasks["dead"]) == (39, 1, 0)
    assert tasks["depths"][-1][1] == 39
    (lock,) = state["locks"]
    assert lock["holder"]["who"]["pid"] == os.getpid()
    assert len(lock["waiters"]) == 1
    (barrier,) = state["barriers"]
    assert (barrier["n"], len(barrier["waiting"]), barrier["missing"], len(barrier["absent"])) == (3, 1, 2, 2)
    assert {(each["kind"], each["name"]) for each in state["collections"]} >= {("dict", "settings"), ("queue", EVIL)}


def test_it_shows_no_values(solo: Connection, dashboard: Dashboard) -> None:
    solo.dict("d")["k"] = "a value that is nobody's business"
    solo.queue("q").put("an item that is nobody's business")
    dashboard.state_when(lambda state: len(state["collections"]) == 2)
    assert "business" not in dashboard.get("/state.json")[1] + dashboard.get("/metrics")[1]


def test_a_name_that_is_not_its_own_is_refused(dashboard: Dashboard) -> None:
    dashboard.state_when(lambda state: state["members"])
    for host in (
        "evil.example",
        f"evil.example:{dashboard.port}",
        "localhost.evil.example",
        "[",
        "127.0.0.1@evil.example",
    ):
        for path in ("/", "/state.json", "/metrics"):
            status, text, _ = dashboard.get(path, host=host)
            assert (status, "members" in text) == (421, False), (host, path)
    for host in ("localhost", f"LOCALHOST:{dashboard.port}", "127.0.0.1", "[::1]:80"):
        assert dashboard.get("/state.json", host=host)[0] == 200


def test_nothing_can_be_written_and_nothing_else_be_asked_for(dashboard: Dashboard) -> None:
    dashboard.state_when(lambda state: state["members"])
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert dashboard.get("/state.json", method=method)[0] == 405
    for path in ("/docs", "/static/app.js", "/../server.py", "/%2e%2e/server.py", "/page/index.html"):
        assert dashboard.get(path)[0] == 404


def test_its_page_runs_nothing_but_its_own(dashboard: Dashboard) -> None:
    dashboard.state_when(lambda state: state["members"])
    _, page, headers = dashboard.get("/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://|<script>|<style|\son\w+=", page)
    assert "access-control-allow-origin" not in headers


def test_prometheus_finds_what_no_single_process_knows(busy: Connection, dashboard: Dashboard) -> None:
    dashboard.state_when(lambda state: state["barriers"] and len(state["processes"]) == 3)
    _, text, headers = dashboard.get("/metrics")
    assert headers["content-type"].startswith("text/plain")
    assert 'skyward_etcd_queue_items{name="tasks",state="waiting"} 39.0' in text
    assert 'skyward_etcd_lock_waiters{name="checkpoint"} 1.0' in text
    assert 'skyward_etcd_barrier_missing{name="epoch"} 2.0' in text
    assert "skyward_etcd_look_success 1.0" in text


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(dashboard: Dashboard, by: signal.Signals) -> None:
    dashboard.state_when(lambda state: state["members"])
    code, said = dashboard.end(by)
    assert code in (0, -by, 128 + by)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ shows namespace '.*'; Ctrl-C ends it\n", said)


def test_it_says_when_nobody_answers(solo: Connection) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        nowhere = Dashboard(solo, "--endpoints", f"127.0.0.1:{taken.getsockname()[1]}", "--timeout", "1")
        try:
            deadline = time.monotonic() + 30
            state: dict[str, Any] = {}
            while not state.get("error") and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    state = json.loads(nowhere.get("/state.json")[1])
                time.sleep(0.1)
            assert state["error"]
            assert "skyward_etcd_look_success 0.0" in nowhere.get("/metrics")[1]
        finally:
            nowhere.kill()


def test_it_shows_a_survivor_without_a_majority(opened: Opener, tmp_path: Path) -> None:
    with LocalCluster(3, etcd=any_usable()) as cluster:
        sky = opened(cluster.endpoints, namespace="n")
        sky.queue("q").put("x")
        running = Dashboard(sky)
        try:
            running.state_when(lambda state: state["queues"] and state["has_leader"])
            sky.close()
            for member in cluster.members[:2]:
                member.kill()
            state = running.state_when(
                lambda state: (
                    (state["stale"], state["error"]) == (True, None)
                    and [each["role"] for each in state["members"]] == ["down", "down", "no leader"]
                )
            )
            assert [(each["name"], each["waiting"]) for each in state["queues"]] == [("q", 1)]
            if BROWSER is not None:  # else the tests below say so
                assert "no leader: what one member has is shown" in browse(running.address, "--dump-dom", home=tmp_path)
        finally:
            running.kill()


def test_it_says_when_its_port_is_taken(solo: Connection, dashboard: Dashboard) -> None:
    dashboard.state_when(lambda state: state["members"])
    second = Dashboard(solo, "--port", str(dashboard.port))
    said = second.wait()
    assert said[0] == 1
    assert "address already in use" in said[1]


def test_an_address_without_a_name_needs_one(solo: Connection) -> None:
    refused = Dashboard(solo, "--host", "0.0.0.0")
    code, said = refused.wait()
    assert (code, "--allow-host" in said) == (2, True)


def test_a_server_is_asked_for_under_the_names_of_its_address() -> None:
    assert names_of("127.0.0.1") == names_of("localhost") == names_of("::1") == {"127.0.0.1", "localhost", "::1"}
    assert names_of("10.0.0.7") == {"10.0.0.7"}
    assert names_of("0.0.0.0") == names_of("::") == frozenset()


def test_depths_are_kept_for_a_quarter_of_an_hour() -> None:
    depths = Depths()
    for second in range(2000):
        depths.add(float(second), {"q": second % 7, "gone": 1} if second < 1000 else {"q": second % 7})
    points = depths.of("q", 1999.0)
    assert len(points) == 180
    assert 890 <= points[0][0] <= 900
    assert {count for _, count in points} <= {4, 5, 6}  # of five seconds the most
    assert depths.of("gone", 1999.0) == []


# ---- in a browser

needs_a_browser = pytest.mark.skipif(
    BROWSER is None, reason="NO BROWSER: the page was not looked at. Get one with apt-get install chromium"
)


HEADLESS = (
    "--headless=new",
    "--no-sandbox",  # which root may not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--virtual-time-budget=6000",  # ms: three looks, and the rest of the time is not waited for
)


def browse(address: str, *options: str, home: Path) -> str:
    """Open a page, wait until it has asked some times, and return what the browser prints."""
    assert BROWSER is not None
    ran = subprocess.run(
        [BROWSER, *HEADLESS, f"--user-data-dir={home}", *options, address],
        capture_output=True,
        text=True,
        timeout=40,
        check=True,
    )
    return ran.stdout


@pytest.mark.browser
@needs_a_browser
def test_a_browser_shows_it_and_takes_a_name_for_text(busy: Connection, dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.state_when(lambda state: state["barriers"] and len(state["processes"]) == 3)
    page = browse(dashboard.address, "--dump-dom", home=tmp_path)
    assert "all is well" in page
    assert html.escape(EVIL, quote=False) in page
    assert "<img" not in re.sub(r'aria-label="[^"]*"', "", page)
    assert "pwned" not in page.partition("</title>")[0]
    for said in ("tasks: 39 now", "held, 1 wait", "1 of 3", "2 missing"):
        assert said in page


@pytest.mark.browser
@needs_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["390,2600", "1280,1300"])
def test_it_can_be_looked_at(busy: Connection, dashboard: Dashboard, tmp_path: Path, scheme: str, size: str) -> None:
    """What it looks like, a person has to say: SKYWARD_ETCD_SCREENSHOTS=directory keeps the pictures."""
    dashboard.state_when(lambda state: state["barriers"] and len(state["processes"]) == 3)
    kept = Path(os.environ.get("SKYWARD_ETCD_SCREENSHOTS") or tmp_path)
    picture = kept / f"{size.partition(',')[0]}-{scheme}.png"
    preferred = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    browse(dashboard.address, f"--screenshot={picture}", f"--window-size={size}", preferred, home=tmp_path / "home")
    assert picture.stat().st_size > 10_000
