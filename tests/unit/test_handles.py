"""A handle is only a name: checked when it is made, and sent anywhere; no cluster has to be there for it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import skyward_etcd as sky
from skyward_etcd.active import NoSession, activated
from skyward_etcd.collections.base import Collection, check_count, check_timeout, guarded
from skyward_etcd.collections.dict import Dict
from skyward_etcd.errors import NotConnected, UnsupportedType
from skyward_etcd.ops import kv
from skyward_etcd.ops.proof import Guard
from skyward_etcd.pool.failure import dumps
from skyward_etcd.session.session import Session


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session(["127.0.0.1:1"])
    yield session
    session.close()


MAKERS: list[Callable[[], Collection]] = [
    lambda: sky.dict("x/y", consistency="strong"),
    lambda: sky.set("x"),
    lambda: sky.counter("x", consistency="strong"),
    lambda: sky.queue("x"),
    lambda: sky.queue("x", max_deliveries=3),
    lambda: sky.dict("x", near_cache=True),
    lambda: sky.barrier("x", n=3),
    lambda: sky.lock("x", timeout=2),
]


def sent_to_a_node(handle: Collection) -> bytes:
    return dumps(handle, lambda: "it")


def pickled(handle: Collection) -> bytes:
    return pickle.dumps(handle)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("sender", [pickled, sent_to_a_node])
def test_a_handle_is_sent_as_its_name_and_means_what_is_active_there(
    make: Callable[[], Collection], sender: Callable[[Collection], bytes], session: Session
) -> None:
    with activated(session):
        sent = sender(make())
    with activated(Session(["127.0.0.1:2"], namespace="there")) as there:
        revived = pickle.loads(sent)
        assert (type(revived), repr(revived)) == (type(make()), repr(make()))
        assert vars(revived)["_session"] is there
        for option in ("consistency", "n", "timeout", "max_deliveries", "near_cache"):
            assert getattr(revived, option, None) == getattr(make(), option, None)
    with pytest.raises(NotConnected):
        pickle.loads(sent)


def test_blocks_that_are_left_out_of_order_leave_what_is_still_open(session: Session) -> None:
    other = Session(["127.0.0.1:2"], namespace="other")
    first, second = activated(session), activated(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert vars(sky.dict("d"))["_session"] is other
    second.__exit__(None, None, None)
    with pytest.raises(NotConnected, match="no active pool"):
        sky.dict("d")


def test_a_pool_without_a_cluster_hides_the_one_around_it(session: Session) -> None:
    with activated(session), activated(NoSession("it has none")), pytest.raises(NotConnected, match="it has none"):
        sky.dict("d")


@pytest.mark.parametrize("wrong", [1.5, True, "1", None])
def test_a_counter_counts_in_whole_numbers(session: Session, wrong: Any) -> None:
    with activated(session), pytest.raises(TypeError, match="counter 'c'"):
        sky.counter("c").increment(wrong)


def test_a_handle_that_writes_through_a_hold_stays_with_its_holder(session: Session) -> None:
    guarded_one = guarded(Dict(session, "d"), Guard((kv.absent(b"k"),), "refused"))
    assert guarded_one is not Dict(session, "d")
    with pytest.raises(TypeError, match="hold"):
        pickle.dumps(guarded_one)


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_of_a_handle_is_the_handle(make: Callable[[], Collection], session: Session) -> None:
    with activated(session):
        handle = make()
    assert copy.copy(handle) is handle
    assert copy.deepcopy([handle])[0] is handle


def test_only_what_has_levels_shows_one(session: Session) -> None:
    with activated(session):
        assert repr(sky.set("x")) == "<set 'x', eventual>"
        assert repr(sky.queue("x")) == "<queue 'x'>"
        assert repr(sky.barrier("x", n=2)) == "<barrier 'x'>"
        assert repr(sky.lock("x")) == "<lock 'x'>"


def test_absent_is_itself_wherever_it_goes() -> None:
    assert pickle.loads(dumps(sky.ABSENT, lambda: "it")) is sky.ABSENT
    assert copy.deepcopy(sky.ABSENT) is sky.ABSENT


def test_absent_is_no_value(session: Session) -> None:
    with activated(session):
        d = sky.dict("d")
    for store in (
        lambda: d.set("k", sky.ABSENT),
        lambda: d.setdefault("k", sky.ABSENT),
        lambda: d.update(k=sky.ABSENT),
        lambda: d.compare_and_set("k", 1, sky.ABSENT),
    ):
        with pytest.raises(UnsupportedType, match="ABSENT is no value"):
            store()


def test_a_dict_has_no_order_to_turn_around(session: Session) -> None:
    with activated(session), pytest.raises(TypeError, match="not reversible"):
        reversed(sky.dict("d"))  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_numpys_numbers_are_numbers() -> None:
    assert check_count(np.int64(3), what="n") == 3
    assert check_timeout(np.float32(0.5)) == 0.5
    assert check_timeout(np.int64(3)) == 3.0


@pytest.mark.parametrize("n", [True, 1.0, "1", None, np.float64(1), np.array([1, 2])])
def test_a_count_is_a_whole_number(n: Any) -> None:
    with pytest.raises(TypeError, match="n is a whole number"):
        check_count(n, what="n")


def test_a_timeout_beyond_floats_is_for_ever_or_refused() -> None:
    assert check_timeout(10**400) == math.inf
    with pytest.raises(ValueError, match="in seconds from 0"):
        check_timeout(-(10**400))


def test_what_contradicts_itself_is_refused(session: Session) -> None:
    with activated(session):
        assert sky.barrier("b", n=2, parties=2).n == 2
        with pytest.raises(ValueError, match="differ"):
            sky.barrier("b", n=2, parties=3)
        for ttl in (0, -1, math.nan):
            with pytest.raises(ValueError):
                sky.lock("l", ttl=ttl)


@pytest.mark.parametrize("text", ["host:2379", "http://host:2379", " http://host:2379/ ", "10.0.0.1:1", "[::1]:2379"])
def test_endpoints_are_taken_as_etcdctl_takes_them(text: str) -> None:
    connection = sky.connect([text])
    assert connection._session().endpoints == (text.strip().removeprefix("http://").rstrip("/"),)


@pytest.mark.parametrize("text", ["", "host", "host:", ":2379", "host:port", "host:99999", "https://host:1", "http://"])
def test_what_is_no_endpoint_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        sky.connect([text])


@pytest.mark.parametrize("wrong", [{"endpoints": [5]}, {"endpoints": ["h:1"], "secret": "x" * 32}])
def test_endpoints_are_text_and_secrets_are_bytes(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"endpoint|secret"):
        sky.connect(**wrong)
