"""An operation that is looked at does what it does unseen: same result, same error, same cleaning up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from skyward_etcd.errors import Unavailable
from skyward_etcd.observe.subject import subject
from skyward_etcd.ops.effects import Await, Backoff, Now, Operation
from skyward_etcd.session import observing
from skyward_etcd.session.observing import Seen


class Onlooker:
    """Writes down what it sees."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.repeats: list[BaseException] = []

    def begin(self, operation: Operation[Any]) -> str:
        return subject(operation)[0].operation

    def repeated(self, begun: str, error: BaseException) -> None:
        self.repeats.append(error)

    def end(self, begun: str, seen: Seen) -> None:
        self.seen.append(seen)

    def session_lost(self) -> None: ...

    def watch_broken(self) -> None: ...

    def cluster_changed(self) -> None: ...


@contextmanager
def looking_on(observer: Onlooker) -> Generator[Onlooker]:
    observing.add(observer)
    try:
        yield observer
    finally:
        observing.remove(observer)


@pytest.fixture
def onlooker() -> Iterator[Onlooker]:
    with looking_on(Onlooker()) as looking:
        yield looking


def _add_two_answers() -> Operation[int]:
    first: int = yield Now()
    second: int = yield Now()
    return first + second


def test_answers_go_in_and_the_result_comes_out(onlooker: Onlooker) -> None:
    operation = observing.observed(_add_two_answers())
    assert isinstance(next(operation), Now)
    assert isinstance(operation.send(1), Now)
    with pytest.raises(StopIteration) as ended:
        operation.send(2)
    assert ended.value.value == 3
    assert [(seen.result, seen.error, seen.attempts) for seen in onlooker.seen] == [(3, None, 1)]


def test_an_error_reaches_the_operation_which_may_mend_it(onlooker: Onlooker) -> None:
    def mends() -> Operation[str]:
        try:
            yield Now()
        except Unavailable as error:
            yield Backoff(2, 0.0, error)
        return "mended"

    operation = observing.observed(mends())
    next(operation)
    lost = Unavailable("lost")
    assert isinstance(operation.throw(lost), Backoff)
    with pytest.raises(StopIteration, match="mended"):
        operation.send(None)
    assert onlooker.repeats == [lost]
    assert onlooker.seen[0].attempts == 2


def test_an_operation_that_is_left_cleans_up_and_is_seen_to_have_been_left(onlooker: Onlooker) -> None:
    tidied: list[str] = []

    def holds() -> Operation[None]:
        try:
            yield Await(None, ())
        finally:
            tidied.append("tidied")

    operation = observing.observed(holds())
    next(operation)
    operation.close()
    assert tidied == ["tidied"]
    assert isinstance(onlooker.seen[0].error, GeneratorExit)
    assert onlooker.seen[0].awaited_s > 0


def test_its_own_error_is_raised_as_it_is(onlooker: Onlooker) -> None:
    mine = KeyError("mine")

    def fails() -> Operation[None]:
        yield Now()
        raise mine

    operation = observing.observed(fails())
    next(operation)
    with pytest.raises(KeyError) as raised:
        operation.send(0)
    assert raised.value is mine
    assert onlooker.seen[0].error is mine


class Clumsy(Onlooker):
    """Fails at some of what it hears."""

    def __init__(self, *at: str) -> None:
        super().__init__()
        self.at = at

    def begin(self, operation: Operation[Any]) -> str:
        self._stumble("begin")
        return super().begin(operation)

    def repeated(self, begun: str, error: BaseException) -> None:
        self._stumble("repeated")

    def end(self, begun: str, seen: Seen) -> None:
        self._stumble("end")

    def session_lost(self) -> None:
        self._stumble("session_lost")

    def _stumble(self, at: str) -> None:
        if at in self.at:
            raise RuntimeError(at)


@pytest.mark.parametrize("at", [("begin",), ("repeated", "end")])
def test_an_observer_that_fails_changes_nothing_and_others_still_see(onlooker: Onlooker, at: tuple[str, ...]) -> None:
    def repeats() -> Operation[str]:
        yield Backoff(2, 0.0, Unavailable("lost"))
        return "done"

    with looking_on(Clumsy(*at)), looking_on(Onlooker()) as last:
        operation = observing.observed(repeats())
        next(operation)
        with pytest.raises(StopIteration, match="done"):
            operation.send(None)
    assert [[seen.result for seen in each.seen] for each in (onlooker, last)] == [["done"], ["done"]]


def test_news_that_one_observer_cannot_bear_reach_the_next() -> None:
    heard: list[str] = []

    class Hears(Onlooker):
        def session_lost(self) -> None:
            heard.append("lost")

    with looking_on(Clumsy("session_lost")), looking_on(Hears()):
        observing.tell(lambda each: each.session_lost())
    assert heard == ["lost"]


def test_nobody_looks_on_after_the_end_of_it(onlooker: Onlooker) -> None:
    observing.remove(onlooker)
    observing.remove(onlooker)
    assert observing.observers == ()


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    code = (
        "import sys, skyward_etcd, skyward_etcd.cli, skyward_etcd.observe; "
        "print([m for m in ('prometheus_client', 'opentelemetry', 'starlette', 'uvicorn') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from skyward_etcd import observe

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install 'skyward-etcd\[metrics\]'"):
        observe.prometheus()
    assert observing.observers == ()
