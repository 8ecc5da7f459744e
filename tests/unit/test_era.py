"""What is under way ends with its era, at once; tokens never come again; a cluster is known by its id."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward_etcd.config import Limits
from skyward_etcd.errors import OutcomeUnknown, QuorumLost, Unavailable
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import not_done, once, repeatable
from skyward_etcd.ops.effects import Await, Backoff, Call, Identify, Later, Operation, Watch
from skyward_etcd.session import runner
from skyward_etcd.session.era import Era
from skyward_etcd.session.recovered import next_token_base
from skyward_etcd.session.session import Session
from skyward_etcd.session.signals import Signal
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import RANGE

NOWHERE = "127.0.0.1:1"
READ = Call(RANGE, pb.RangeRequest(key=b"k"))


@pytest.fixture
def session() -> Session:
    return Session([NOWHERE], limits=Limits(operation_s=60.0))


def blocking(session: Session, operation: Operation[Any]) -> Any:
    return session.run(operation)


def on_a_loop(session: Session, operation: Operation[Any]) -> Any:
    return asyncio.run(session.run_async(operation))


Drive = Callable[[Session, Operation[Any]], Any]
both = pytest.mark.parametrize("drive", [blocking, on_a_loop])


def just(effect: Any) -> Operation[Any]:
    return (yield effect)


@both
@pytest.mark.parametrize("effect", [READ, Watch(b"k"), Identify()], ids=["call", "watch", "identity"])
def test_nothing_is_asked_of_a_lost_cluster(session: Session, drive: Drive, effect: Any) -> None:
    session.lose("it is lost")
    began = time.monotonic()
    with pytest.raises(QuorumLost, match="it is lost") as said:
        drive(session, just(effect))
    assert not said.value.maybe_applied
    assert time.monotonic() - began < 5


@both
def test_who_waits_between_two_tries_hears_it_at_once(session: Session, drive: Drive) -> None:
    threading.Timer(0.2, session.lose, ["it is lost"]).start()
    began = time.monotonic()
    with pytest.raises(QuorumLost, match="it is lost"):
        drive(session, repeatable(RANGE, pb.RangeRequest(key=b"k")))  # refused at once, again and again
    assert time.monotonic() - began < 5


@both
def test_a_write_that_may_have_arrived_is_called_unknown(session: Session, drive: Drive) -> None:
    def in_doubt() -> Operation[Any]:
        write = once(kv.txn(), what="dict 'd'")
        next(write)
        backoff = write.throw(Unavailable("no answer"))  # Now
        assert not isinstance(backoff, Backoff)
        effect = write.send(0.0)
        session.lose("it is lost")
        with pytest.raises(QuorumLost) as said:
            yield effect
        assert said.value.maybe_applied
        write.throw(said.value)

    with pytest.raises(OutcomeUnknown, match="dict 'd': no answer, and it may have been applied: it is lost"):
        drive(session, in_doubt())


def test_what_gives_back_all_it_took_calls_no_write_unknown() -> None:
    for cause, kind in ((QuorumLost("lost"), QuorumLost), (Unavailable("nobody"), Unavailable)):
        doubt = OutcomeUnknown("in doubt")
        doubt.__cause__ = cause
        assert type(not_done("lock 'l'", doubt)) is kind


@both
def test_an_operation_of_one_era_goes_no_further_in_the_next(session: Session, drive: Drive) -> None:
    def lives_through_it() -> Operation[None]:
        signal = Signal()
        signal.set()
        session.start_over([NOWHERE], "recovered")
        for effect in (READ, Watch(b"k"), Identify(), Await(None, (signal,)), Backoff(2, 0.0, Unavailable("before"))):
            with pytest.raises(QuorumLost, match="recovered"):
                yield effect
        yield Later(lambda: just(READ))
        assert session._janitor._thread is None, "what it owed is gone with the cluster"

    old = session.era
    drive(session, lives_through_it())
    assert old.reason
    assert not session.era.reason


def test_a_new_era_remembers_nothing_but_what_was_held(session: Session) -> None:
    session.saw(100)
    session.notes["a"] = 1
    session.kept[b"lock"] = "a hold, which has to be told that it is lost"
    session.start_over(["127.0.0.1:2"], "recovered")
    assert (session.seen, session.notes.get("a"), session.endpoints) == (0, None, ("127.0.0.1:2",))
    assert session.kept


def test_an_answer_from_another_cluster_begins_an_era_and_is_not_believed(session: Session) -> None:
    answers = iter([1, 1, 2])

    def call(*_: Any, **__: Any) -> Any:
        return pb.RangeResponse(header=pb.ResponseHeader(cluster_id=next(answers), revision=7))

    session.wire.call = call  # type: ignore[method-assign]
    first = session.era
    session.run(just(READ))
    session.run(just(READ))
    assert session.era is first
    with pytest.raises(QuorumLost, match=r"recovered from a member's data.*Try again") as said:
        session.run(just(READ))
    assert said.value.maybe_applied
    assert session.era is not first
    assert session.seen == 0


def test_a_session_that_is_closed_begins_no_era(session: Session) -> None:
    era = session.era
    session.close()
    session.start_over([NOWHERE], "recovered")
    assert session.era is era


def test_a_child_of_a_process_whose_cluster_is_lost_knows_it(session: Session) -> None:
    session.lose("it is lost")
    session.after_fork()
    with pytest.raises(QuorumLost, match="it is lost"):
        session.run(just(READ))


def test_an_era_given_to_the_runner_is_the_one_that_counts(session: Session) -> None:
    """What a cancelled operation owes is not done in the next cluster."""
    old = session.era
    session.start_over([NOWHERE], "recovered")
    with pytest.raises(QuorumLost):
        runner.run(session, just(READ), old)


def test_a_reply_without_a_cluster_id_is_from_any() -> None:
    era = Era(*[cast(Any, SimpleNamespace())] * 5)
    assert [era.is_about(cluster) for cluster in (0, 5, 0, 5, 6)] == [True, True, True, True, False]


# ---- tokens

GAPS = st.integers(0, 10**11)


@given(st.lists(st.tuples(GAPS, GAPS, st.integers(0, 2 * 10**15)), min_size=1, max_size=8))
def test_tokens_grow_whatever_is_lost_and_whatever_the_clock_says(recoveries: list[tuple[int, int, int]]) -> None:
    base = revision = newest = 0
    for written, lost, now_us in recoveries:
        revision += written
        newest = max(newest, base + revision)  # the last token that the lost majority may have given
        revision = max(0, revision - lost)
        base = next_token_base(base, revision, now_us=now_us)
        assert base + revision >= newest


@given(GAPS, GAPS, st.integers(1, 10**8), st.integers(0, 999_999))
def test_tokens_grow_even_when_the_base_before_is_lost(r1: int, r2: int, later_s: int, rate: int) -> None:
    began_us = 1_700_000_000_000_000
    base = next_token_base(0, r1, now_us=began_us)
    newest = base + r1 + rate * later_s
    again = next_token_base(0, r2, now_us=began_us + later_s * 10**6)
    assert again + r2 > newest
