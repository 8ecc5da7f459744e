"""When the majority is lost all hear it at once; a cluster that is recovered repeats nothing, and nobody hangs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from click.testing import CliRunner

from skyward_etcd import active
from skyward_etcd.active import Connection
from skyward_etcd.cli.main import main
from skyward_etcd.cluster import binary, recovery
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.cluster.member import Member
from skyward_etcd.errors import HoldLost, OutcomeUnknown, PoolError, QuorumLost, SkywardEtcdError
from skyward_etcd.pool.compute import Compute
from skyward_etcd.pool.function import function
from skyward_etcd.pool.spec import Options, Worker
from skyward_etcd.session import recovered
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.integration.conftest import BINARIES, Opener, usable
from tests.integration.helpers import LossyWire, keys_under, sent_by, stored, watchers
from tests.integration.test_members import node_pids, until, voters

T = TypeVar("T")

SOON_S = 5.0
"""Far below the 30 s that an operation has when it does not know."""


@pytest.fixture(params=BINARIES)
def etcd(request: pytest.FixtureRequest) -> Path:
    """Every binary."""
    return usable(request.param)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    running = ThreadPoolExecutor(16)
    yield running
    running.shutdown(wait=False, cancel_futures=True)


# ---- a pool


@function
def look() -> tuple[int, tuple[str, ...]]:
    """Use the collections, and say where this process believes the members to be."""
    return active.counter("looks").increment(), active.current().endpoints


@function
def wait_for_an_item() -> Any:
    active.counter("waiting").increment()
    return active.queue("nothing").get()


def lose_two(pool: Compute) -> None:
    """Kill two of three nodes, and wait until the pool knows that its cluster is lost."""
    for victim in node_pids(pool)[:2]:
        os.kill(victim, signal.SIGKILL)
    until(lambda: not pool.is_active)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_all_that_is_under_way_ends_at_once_when_the_majority_is_lost(
    etcd: Path, executor: Literal["thread", "process"], threads: ThreadPoolExecutor
) -> None:
    options = Options(worker=Worker(executor=executor))
    with Compute(nodes=3, options=options, etcd=etcd) as pool:
        hold = pool.lock("held").acquire()
        far_away = pool.run_async(wait_for_an_item(), target=2)
        until(lambda: pool.counter("waiting").value == 1)
        waits: list[Future[Any]] = [
            threads.submit(pool.queue("nothing").get),
            threads.submit(pool.queue("nothing").claim),
            threads.submit(pool.lock("held").acquire),
            threads.submit(pool.barrier("both", 2).wait),
            *(threads.submit(_count_for_ever, pool) for _ in range(4)),
        ]
        lost = threads.submit(hold.wait_lost)
        until(lambda: pool.barrier("both", 2).waiting() == 1 and pool.counter("all").value > 100)
        lose_two(pool)
        began = time.monotonic()
        for wait in (*waits, far_away):
            with pytest.raises((QuorumLost, OutcomeUnknown), match=r"pool.recover\(\)"):
                wait.result(SOON_S)
        assert lost.result(SOON_S), "the hold is known to be lost"
        for call in (pool.dict("d").get, pool.set("s").add, pool.queue("q").put):
            with pytest.raises(QuorumLost, match=r"1 of the cluster's 3 members left is no majority.*pool.recover\(\)"):
                call("k")
        with pytest.raises(QuorumLost):
            hold.release()
        assert time.monotonic() - began < SOON_S


def _count_for_ever(pool: Compute) -> None:
    while True:
        pool.counter("all").increment()


async def test_tasks_hear_of_it_at_once_too(etcd: Path) -> None:
    async with Compute(nodes=3, etcd=etcd) as pool:
        waits = [
            asyncio.ensure_future(wait)
            for wait in (
                pool.queue("nothing").get_async(),
                pool.barrier("both", 2).wait_async(),
                _count_for_ever_async(pool),
                _count_for_ever_async(pool),
            )
        ]
        await asyncio.to_thread(until, lambda: pool.counter("all").value > 100)
        await asyncio.to_thread(lose_two, pool)
        began = time.monotonic()
        for wait in waits:
            with pytest.raises((QuorumLost, OutcomeUnknown), match=r"pool.recover\(\)"):
                await asyncio.wait_for(wait, SOON_S)
        assert time.monotonic() - began < SOON_S
        await pool.recover_async()
        assert await pool.counter("all").increment_async() > 100


async def _count_for_ever_async(pool: Compute) -> None:
    while True:
        await pool.counter("all").increment_async()


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_pool_recovers_again_and_again(etcd: Path, executor: Literal["thread", "process"]) -> None:
    with Compute(nodes=3, options=Options(worker=Worker(executor=executor)), etcd=etcd) as pool:
        with pytest.raises(PoolError, match="nothing to recover"):
            pool.recover()
        kept, work, lock = pool.dict("kept", consistency="strong"), pool.queue("work"), pool.lock("only one")
        kept["a"] = 1
        work.put_many(["first", "second"])
        tokens, known = [0], 0
        for times in range(1, 3):
            job, hold = work.claim(), lock.acquire()
            assert (job.value, job.deliveries) == ("first", times)
            assert hold.token > tokens[-1]
            tokens += [max(hold.token, job.token)]
            before = set(pool.endpoints)
            lose_two(pool)
            pool.recover()
            assert sorted(total for total, _ in look() @ pool) == [known + 1, known + 2, known + 3]
            known += 3
            assert (kept["a"], len(work), work.claimed()) == (1, 2, 0), "claims of before are free"
            with pytest.raises(HoldLost):
                job.ack()
            with pytest.raises(HoldLost):
                lock.release()  # through the handle, as at the end of a with block
            until(lambda: len(pool.endpoints) == 3, 60)
            assert voters(pool) == 3
            assert before.isdisjoint(pool.endpoints)
            looks = look() @ pool
            known += 3
            assert all(set(endpoints) == set(pool.endpoints) for _, endpoints in looks)
        with lock as hold:
            assert hold.token > tokens[-1]
        with work.claim() as job:
            assert job.token > tokens[-1]
        assert tokens[-1] < 2**53, "exact in every language's numbers"


def test_without_a_survivor_there_is_nothing_to_recover_from(etcd: Path) -> None:
    with Compute(nodes=3, etcd=etcd) as pool:
        pids = node_pids(pool)
        lose_two(pool)
        os.kill(pids[2], signal.SIGKILL)
        until(lambda: pool._fleet._members and not any(pool._fleet._members._by_node.values()))
        with pytest.raises(QuorumLost, match="no member of the cluster is left: there is nothing to recover from"):
            pool.recover()
        with pytest.raises(QuorumLost):
            _ = look() >> pool


def test_of_two_survivors_the_newest_is_taken(etcd: Path) -> None:
    with Compute(nodes=7, allocation="spot", etcd=etcd) as pool:
        pool.counter("looks").increment()
        pids = node_pids(pool)
        for victim in pids[:3]:
            os.kill(victim, signal.SIGKILL)
        until(lambda: not pool.is_active)
        pool.recover()
        assert look() >> pool == (2, pool.endpoints)
        assert sorted(total for total, _ in look() @ pool) == list(range(3, 10))


# ---- sessions that find another cluster at their addresses, which is behind what they have seen


class Doomed:
    """A cluster of which a survivor has what it had at a certain moment, however long ago."""

    def __init__(self, etcd: Path, directory: Path) -> None:
        self._lost = LocalCluster(3, etcd=etcd)
        self._lost.start()
        self._etcd = binary.find(etcd, members=3)
        self._directory = directory
        self._snapshot = directory / "snapshot"
        self._member: Member | None = None

    @property
    def endpoints(self) -> list[str]:
        return self._lost.endpoints

    def survivor_knows_no_more(self) -> None:
        recovery.save(recovery.newest(self.endpoints)[0], self._snapshot)

    def lose(self) -> None:
        for member in self._lost.members:
            member.kill()

    def recover(self) -> None:
        """Make another cluster, which is to be found where a member of the lost one was."""
        hidden, peer = "unix://r1:2379", "unix://r1:2380"
        spec = replace(
            self._lost.members[0].spec,
            name="r1",
            data_dir=self._directory / "r1",
            client_url=hidden,
            peer_url=peer,
            initial_cluster={"r1": peer},
            token=secrets.token_hex(8),
            restarts=True,
        )
        recovery.restore(self._etcd, self._snapshot, spec)
        self._start(spec)
        recovered.make_fit(spec.endpoint)
        assert self._member
        self._member.stop()
        self._start(replace(spec, client_url=self._lost.members[0].spec.client_url))

    def _start(self, spec: Any) -> None:
        self._member = Member(self._etcd, spec)
        self._member.start()
        self._member.wait_ready()

    def close(self) -> None:
        self._lost.stop()
        if self._member:
            self._member.kill()


@pytest.fixture
def doomed(etcd: Path, tmp_path: Path) -> Iterator[Doomed]:
    cluster = Doomed(etcd, tmp_path)
    yield cluster
    cluster.close()


def once_more(call: Callable[[], T]) -> T:
    """Call until the session has noticed that the cluster is another one."""
    with contextlib.suppress(SkywardEtcdError):
        return call()
    return call()


def write_much(sky: Connection) -> None:
    for number in range(300):
        sky.dict("much")[str(number)] = number


def test_nothing_of_before_is_held_and_tokens_grow(doomed: Doomed, opened: Opener) -> None:
    sky, other = opened(doomed.endpoints), opened(doomed.endpoints, namespace="another one")
    sky.queue("work").put("item")
    doomed.survivor_knows_no_more()
    write_much(sky)
    hold, job = sky.lock("l").acquire(), sky.queue("work").claim()
    guarded = hold.guard(sky.dict("d"))
    unseen = other.lock("of a namespace that the survivor knows nothing of").acquire().token
    doomed.lose()
    doomed.recover()
    assert hold.wait_lost(15)
    assert not hold.valid
    for use in (job.ack, hold.release, lambda: guarded.set("k", 1)):
        with pytest.raises(HoldLost):
            use()
    again = sky.queue("work").claim(timeout=5)
    assert again is not None
    assert again.token > job.token
    assert sky.lock("l").acquire(timeout=5).token > hold.token
    assert once_more(lambda: other.lock("of a namespace that the survivor knows nothing of").acquire()).token > unseen


def test_who_waits_neither_hangs_nor_goes_wrong(doomed: Doomed, opened: Opener, threads: ThreadPoolExecutor) -> None:
    sky, other = opened(doomed.endpoints), opened(doomed.endpoints)
    held = other.lock("held").acquire()
    doomed.survivor_knows_no_more()
    write_much(sky)
    waits: list[Future[Any]] = [
        threads.submit(sky.queue("nothing").get),
        threads.submit(sky.lock("held").acquire),
        threads.submit(sky.barrier("both", 2).wait),
    ]
    until(lambda: watchers(sky) == 3)
    doomed.lose()
    doomed.recover()
    for wait in waits:
        with pytest.raises(QuorumLost, match=r"was recovered from a member's data.*Try again"):
            wait.result(15)
    assert held.wait_lost(15)
    waits = [
        threads.submit(sky.queue("nothing").get),
        threads.submit(sky.lock("held").acquire),
        threads.submit(sky.barrier("both", 2).wait),
    ]
    assert waits[1].result(5).token > held.token
    other.queue("nothing").put("something")
    assert waits[0].result(5) == "something"
    assert {other.barrier("both", 2).wait(5), waits[2].result(5)} == {0, 1}


def test_what_is_in_doubt_over_a_recovery_is_unknown_and_never_done_twice(
    doomed: Doomed, opened: Opener, threads: ThreadPoolExecutor
) -> None:
    sky = opened(doomed.endpoints)
    sky.queue("q").put("before")
    sky.counter("c").increment()
    sky.set("s").add("before")
    for name in ("strong", "eventual"):
        sky.dict(name)["k"] = "before"
    doomed.survivor_knows_no_more()
    write_much(sky)
    wire = LossyWire(sky._session(), requests=0.0, answers=1.0, in_a_row=math.inf)
    writes: list[Future[Any]] = [
        threads.submit(sky.queue("q").put, "in doubt"),
        threads.submit(sky.counter("c").increment),
        threads.submit(sky.set("s").add, "in doubt"),
        threads.submit(sky.dict("strong", consistency="strong").set, "k", "in doubt"),
        threads.submit(sky.dict("eventual").set, "k", "in doubt"),
        threads.submit(sky.queue("q").clear),
    ]
    looks = threads.submit(sky.queue("q").get)  # for the page that it could take an item of
    until(lambda: wire.lost >= 3 * len(writes))
    doomed.lose()
    doomed.recover()
    for write in writes:
        with pytest.raises(OutcomeUnknown):
            write.result(15)
    with pytest.raises(QuorumLost, match="was recovered"):
        looks.result(15)
    assert sky.counter("c").increment() in (2, 3)
    assert set(sky.set("s").members()) in ({"before"}, {"before", "in doubt"})
    items = [sky.queue("q").get(timeout=0) for _ in range(3)]
    assert items in ([None] * 3, ["before", None, None], ["in doubt", None, None], ["before", "in doubt", None])


def test_what_a_session_remembers_is_forgotten(doomed: Doomed, opened: Opener) -> None:
    sky = opened(doomed.endpoints)
    sky.queue("q").put_many(range(200))
    sky.counter("c").increment(5)
    sky.dict("d")["k"] = "old"
    threads = [threading.Thread(target=lambda: sky.barrier("b", 2).wait(10)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    doomed.survivor_knows_no_more()
    write_much(sky)
    assert sky.queue("q").get_many(200) == list(range(200))
    sky.queue("q").put_many(range(300))
    sky.counter("c").increment(5)
    sky.counter("c").reset(100)
    sky.dict("d")["k"] = "new"
    sky.barrier("b", 2).reset()
    sky.barrier("b", 2).abort()
    sky.dict("late")["k"] = 1
    doomed.lose()
    doomed.recover()
    once_more(lambda: sky.dict("d", consistency="strong").get("k"))
    sent = sent_by(sky)
    assert sky.dict("d").get("k") == "old"
    del sent[:]
    assert sky.dict("d").get("k") == "old"
    assert len(sent) == 1, "an eventual read is not asked again for what an earlier cluster had told"
    assert sky.counter("c").increment() == 6
    sky.queue("q").put("last")
    assert sky.queue("q").get_many(300, timeout=0) == [*range(200), "last"]
    assert sky.dict("late").get("k") is None
    sky.dict("late")["k"] = 2
    assert "meta/dict/late" in keys_under(sky._session(), "meta/"), "it says again what it is"
    assert stored(sky, "dict/late/") == ['dict/late/"k"']
    with ThreadPoolExecutor(2) as pair:
        assert set(pair.map(sky.barrier("b", 2).wait, [10, 10])) == {0, 1}


def test_no_session_of_before_is_left(doomed: Doomed, opened: Opener) -> None:
    sky = opened(doomed.endpoints)
    sky.queue("q").put(1)
    sky.queue("q").claim()
    sky.lock("l").acquire()
    name = sky._session().id
    doomed.survivor_knows_no_more()
    doomed.lose()
    doomed.recover()
    wire = Wire(doomed.endpoints[:1])
    try:
        everything = wire.call(methods.RANGE, pb.RangeRequest(key=b"/", range_end=b"0"), timeout_s=3).kvs
        leases = wire.call(methods.LEASE_LEASES, pb.LeaseLeasesRequest(), timeout_s=3).leases
    finally:
        wire.close()
    assert int(name, 16) not in {lease.ID for lease in leases}
    assert int(name, 16) not in {found.lease for found in everything}
    assert not any(key.startswith((f"sessions/{name}", f"slots/{name}")) for key in keys_under(sky._session()))


# ---- a durable cluster's directory


def test_the_command_recovers_a_durable_cluster(tmp_path: Path, opened: Opener) -> None:
    etcd, directory = usable("fetched"), tmp_path / "state"
    with LocalCluster(3, etcd=etcd, durable=directory) as cluster:
        sky = opened(cluster.endpoints, namespace="durable")
        sky.queue("work").put("item")
        hold, job = sky.lock("l").acquire(), sky.queue("work").claim()
        assert "in use by another pool" in recover(directory, etcd, exit_code=1)
        until(lambda: len({revision_of(endpoint) for endpoint in cluster.endpoints}) == 1)
    assert "is not lost: 3 of its 3 members have their data" in recover(directory, etcd, exit_code=1)
    shutil.rmtree(directory / "m1")
    (directory / "m2" / "data" / "member" / "snap" / "db").write_bytes(b"no longer readable")
    told = recover(directory, etcd)
    assert "recovered from member m3" in told
    assert f"no longer used, remove it when you are sure: {directory / 'm3'}" in told
    with LocalCluster(3, etcd=etcd, durable=directory) as cluster:
        assert hold.wait_lost(15), "the session finds another cluster at its addresses"
        with opened(cluster.endpoints, namespace="durable") as again:
            assert again.lock("l").acquire(timeout=5).token > hold.token
            with again.queue("work").claim() as new:
                assert (new.value, new.deliveries) == ("item", 2)
                assert new.token > job.token
    assert "is not lost" in recover(directory, etcd, exit_code=1)


def test_the_command_says_when_nothing_is_left(tmp_path: Path) -> None:
    etcd, directory = usable("fetched"), tmp_path / "state"
    assert "no durable cluster" in recover(tmp_path, etcd, exit_code=1)
    with LocalCluster(1, etcd=etcd, durable=directory):
        pass
    shutil.rmtree(directory / "m1")
    assert "nothing to recover from" in recover(directory, etcd, exit_code=1)


def revision_of(endpoint: str) -> int:
    """Return up to which revision a member knows that all is safe."""
    with contextlib.closing(Wire((endpoint,))) as wire:
        return wire.call(methods.STATUS, pb.StatusRequest(), timeout_s=3).header.revision


def recover(directory: Path, etcd: Path, *, exit_code: int = 0) -> str:
    ran = CliRunner().invoke(main, ["recover", str(directory)], env={"SKYWARD_ETCD_BINARY": str(etcd)})
    assert ran.exit_code == exit_code, ran.output
    return ran.output
