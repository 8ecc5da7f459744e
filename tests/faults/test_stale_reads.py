"""The known-bad case: eventual reads are not linearizable, and a partition shows it. The checker must see that."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.collections.base import Consistency
from skyward_etcd.config import Limits
from skyward_etcd.session.session import Session
from skyward_etcd.testing.faults import FaultLab
from skyward_etcd.testing.history import Operation
from skyward_etcd.testing.linearizability import CounterModel, DictModel, SetModel, check
from skyward_etcd.testing.recorder import Recorder

LIMITS = Limits(call_s=1.0)


@pytest.mark.parametrize(("consistency", "linearizable"), [("eventual", False), ("strong", True)])
def test_reads_at_a_member_that_is_cut_off_from_its_peers(
    lab: FaultLab,
    consistency: Consistency,
    linearizable: bool,  # noqa: FBT001
) -> None:
    lab.require_healthy()
    cut_off = lab.follower()
    others = [name for name in lab.members if name != cut_off]
    history: list[Operation] = []
    recorder = Recorder(history.append)
    with lab.inside("c1"), contextlib.ExitStack() as stack:
        reader, writer = (
            Connection(stack.enter_context(Session(endpoints, namespace="stale", limits=LIMITS)))
            for endpoints in (lab.endpoints("c1", [cut_off, *others]), lab.endpoints("c1", others))
        )

        def write(number: int) -> None:
            recorder.call("writer", "set", ("key", number), partial(writer.dict("d").set, "key", number))
            recorder.call("writer", "increment", (), writer.counter("c").increment)
            recorder.call("writer", "add", (number,), partial(writer.set("s").add, number))

        def read() -> None:
            entries, members = reader.dict("d", consistency=consistency), reader.set("s", consistency=consistency)
            recorder.call("reader", "get", ("key", None), partial(entries.get, "key", None))
            recorder.call("reader", "value", (), lambda: reader.counter("c", consistency=consistency).value)
            recorder.call("reader", "contains", (2,), partial(members.contains, 2))

        write(1)
        read()
        lab.network.lose([cut_off], others)
        lab.network.lose(others, [cut_off])
        write(2)
        read()
        lab.heal()
    calls = {"dict": ("get", "set"), "counter": ("increment", "value"), "set": ("add", "contains")}
    of = {kind: [each for each in history if each.call in calls[kind]] for kind in calls}
    verdicts = (check(DictModel(), of["dict"]), check(CounterModel(), of["counter"]), check(SetModel(), of["set"]))
    assert [bool(verdict) for verdict in verdicts] == [linearizable] * 3, "\n".join(map(str, verdicts))
    lab.require_healthy()
