"""Nodes that come and go without a word, as Skyward's do, and the cluster that they keep: all on this machine."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from skyward_etcd.active import Connection
from skyward_etcd.errors import NotConnected, OutcomeUnknown, QuorumLost, SkywardEtcdError
from skyward_etcd.plugin.follower import Follower
from skyward_etcd.plugin.shared import Access
from skyward_etcd.plugin.talk import ask
from skyward_etcd.session.session import Tls
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.integration.conftest import BINARIES, any_usable, usable
from tests.integration.helpers import REPOSITORY

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

_NETS = itertools.count(1)
PORT = 23790


@dataclass
class Node:
    """One node's process, and where it is."""

    name: str
    host: str
    directory: Path
    process: subprocess.Popen[str]


class Pool:
    """A control plane of our own: it starts nodes, kills them, and tells the others who is there."""

    def __init__(self, etcd: Path, directory: Path, *, secure: bool = True) -> None:
        self.nodes: dict[str, Node] = {}
        self._etcd = etcd
        self._directory = directory
        self._net = f"127.0.{next(_NETS)}"
        self._numbers = itertools.count(1)
        self._authority = trustme.CA() if secure else None
        self._peers = directory / "peers"
        self.tell([])

    def tell(self, hosts: list[str]) -> None:
        """Tell all nodes who is there, in the order of their ranks."""
        draft = self._peers.with_suffix(".draft")
        draft.write_text(" ".join(hosts))
        draft.replace(self._peers)

    def told(self) -> None:
        """Tell all nodes who is really there."""
        self.tell([node.host for node in self.nodes.values()])

    def start(self, *, opens: bool = False, host: str = "") -> Node:
        number = next(self._numbers)
        name, host = f"n{number}", host or f"{self._net}.{number}"
        directory = self._directory / name
        arguments = [name, host, "opens" if opens else "joins", directory, self._etcd, PORT, self._peers]
        if self._authority:
            issued = self._authority.issue_cert(common_name=name)  # as Skyward does: without any address
            directory.mkdir()
            blobs = (self._authority.cert_pem, issued.cert_chain_pems[0], issued.private_key_pem)
            for file, blob in zip(("ca", "crt", "key"), blobs, strict=True):
                (directory / file).write_bytes(blob.bytes())
                arguments.append(directory / file)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.skyward_node", *map(str, arguments)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        node = self.nodes[name] = Node(name, host, directory, process)
        return node

    def open(self, nodes: int) -> None:
        """Start nodes, of which the last opens the cluster, and wait until all serve."""
        started = [self.start(opens=number == nodes - 1) for number in range(nodes)]
        self.told()
        for node in started:
            self.ready(node)

    @staticmethod
    def ready(node: Node) -> None:
        assert node.process.stdout is not None
        assert node.process.stdout.readline() == "ready\n"

    def kill(self, *names: str) -> None:
        """Take nodes away as a cloud does: without a word to anybody."""
        taken = [self.nodes.pop(name) for name in names]
        for node in taken:
            node.process.kill()
        for node in taken:
            self._end(node)

    @staticmethod
    def _end(node: Node) -> None:
        node.process.kill()
        node.process.wait()
        for stream in (node.process.stdin, node.process.stdout):
            if stream:
                stream.close()

    def follow(self, name: str) -> Follower:
        """A process of that node: where the cluster is, its agent says."""
        return Follower(self.nodes[name].directory / "access.json")

    def voters(self, name: str) -> set[str]:
        """The nodes whose members have a vote."""
        return {member.partition("-")[0] for member in self.members(name)}

    def members(self, name: str) -> set[str]:
        """The members that have a vote, by what those say that a node knows of; nothing while they cannot say."""
        access = Access.parse((self.nodes[name].directory / "access.json").read_bytes())
        with suppress(SkywardEtcdError), closing(Wire(access.endpoints, tls=access.tls)) as wire:
            wire.call(methods.RANGE, pb.RangeRequest(key=b"any"), timeout_s=3.0)
            reply: Any = wire.call(methods.MEMBER_LIST, pb.MemberListRequest(linearizable=True), timeout_s=3.0)
            return {member.name for member in reply.members if not member.isLearner}
        return set()

    def close(self) -> None:
        for node in self.nodes.values():
            if node.process.stdin:
                node.process.stdin.close()
        for node in self.nodes.values():
            with suppress(subprocess.TimeoutExpired):
                node.process.wait(20)
            self._end(node)


class Writer:
    """Writes through a follower without end, and remembers what was acknowledged and how long it waited at most."""

    def __init__(self, follower: Follower) -> None:
        self.acknowledged: list[int] = []
        self.longest = 0.0
        self.told: list[Exception] = []
        self._numbers = Connection(follower.session).dict("numbers", consistency="strong")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def end(self) -> list[int]:
        self._ends.set()
        self._thread.join(40)
        assert not self._thread.is_alive()
        return self.acknowledged

    def _write(self) -> None:
        number = 0
        while not self._ends.is_set():
            number += 1
            began = time.monotonic()
            try:
                self._numbers[number] = number
                self.acknowledged.append(number)
            except (QuorumLost, OutcomeUnknown) as told:
                self.told.append(told)
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.01)


def until(condition: Callable[[], object], timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


@pytest.fixture(params=BINARIES)
def etcd(request: pytest.FixtureRequest) -> Path:
    return usable(request.param)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with closing(Pool(any_usable(), tmp_path)) as made:
        yield made


def test_all_nodes_serve_at_once_and_three_have_members_soon(etcd: Path, tmp_path: Path) -> None:
    with closing(Pool(etcd, tmp_path)) as pool:
        began = time.monotonic()
        pool.open(4)
        assert time.monotonic() - began < 15
        for count, name in enumerate(pool.nodes, start=1):
            with closing(pool.follow(name)) as follower:
                assert Connection(follower.session).counter("c").increment() == count
        until(lambda: pool.voters("n1") == {"n4", "n1", "n2"})
        until(lambda: len(Access.parse((pool.nodes["n3"].directory / "access.json").read_bytes()).endpoints) == 3)


def test_a_killed_node_loses_nothing_and_is_replaced_at_the_same_address(pool: Pool) -> None:
    pool.open(3)
    until(lambda: len(pool.voters("n1")) == 3)
    with closing(pool.follow("n1")) as follower:
        writer = Writer(follower)
        until(lambda: len(writer.acknowledged) > 20)
        host = pool.nodes["n3"].host
        pool.kill("n3")
        until(lambda: pool.voters("n1") == {"n1", "n2"})
        replacement = pool.start(host=host)
        pool.told()
        pool.ready(replacement)
        until(lambda: pool.voters("n1") == {"n1", "n2", "n4"})
        acknowledged = writer.end()
        assert not writer.told
        assert writer.longest < 5
        assert set(Connection(follower.session).dict("numbers", consistency="strong").keys()) >= set(acknowledged)


def test_a_node_killed_while_there_are_two_voters_costs_less_than_ten_seconds(pool: Pool) -> None:
    """Its one fellow cannot go on, and has everything: it restores the cluster."""
    pool.open(3)
    until(lambda: len(pool.voters("n2")) == 2)
    gone = "n3"  # which has opened the cluster, and leads
    assert gone in pool.voters("n2")
    other = next(iter(pool.voters("n2") - {gone}))
    with closing(pool.follow("n2" if other == "n1" else "n1")) as follower:
        writer = Writer(follower)
        until(lambda: len(writer.acknowledged) > 20)
        before = len(writer.acknowledged)
        pool.kill(gone)
        pool.told()
        until(lambda: writer.told or len(writer.acknowledged) > before + 100)
        until(lambda: len(writer.acknowledged) > before + 20)
        assert writer.longest < 10
        until(lambda: pool.voters("n1") == {other} or len(pool.voters("n1")) == 2)
        acknowledged = writer.end()
        missing = set(acknowledged) - set(Connection(follower.session).dict("numbers", consistency="strong").keys())
        assert not missing
        assert "try again" in str(writer.told[0]).lower()


def test_the_lowest_survivor_restores_what_the_control_plane_left_of_the_majority(pool: Pool) -> None:
    pool.open(5)
    until(lambda: pool.voters("n1") == {"n5", "n1", "n2"})
    with closing(pool.follow("n1")) as follower:
        sky = Connection(follower.session)
        sky.dict("d")["k"] = "kept"
        token = sky.lock("l").acquire().token
        pool.kill("n2", "n3", "n4", "n5")
        pool.told()
        began = time.monotonic()
        with suppress(QuorumLost, OutcomeUnknown):
            while time.monotonic() - began < 40:
                sky.dict("d", consistency="strong")["k"] = "later"
                time.sleep(0.01)
        until(lambda: pool.voters("n1") == {"n1"})
        assert time.monotonic() - began < 15
        with suppress(QuorumLost):  # what was under way may have ended otherwise before: then this call hears of it
            sky.dict("d", consistency="strong").get("k")
        assert sky.dict("d", consistency="strong")["k"] in ("kept", "later")
        assert sky.lock("l").acquire(timeout=5).token > token


def test_a_pool_that_lost_its_only_voter_begins_anew_and_says_so(pool: Pool) -> None:
    pool.open(1)
    pool.start()
    pool.told()
    pool.ready(pool.nodes["n2"])
    with closing(pool.follow("n2")) as follower:
        sky = Connection(follower.session)
        sky.counter("c").increment(5)
        assert pool.voters("n2") == {"n1"}
        pool.kill("n1")
        pool.told()
        with pytest.raises((QuorumLost, OutcomeUnknown), match="all data"):
            sky.counter("c").increment()
        assert sky.counter("c").increment() == 1
        assert pool.voters("n2") == {"n2"}


@pytest.mark.timeout(180)
def test_a_pool_that_shrinks_to_its_lowest_node_keeps_everything(pool: Pool) -> None:
    """Whoever has opened it: the lowest node is the last that Skyward takes away."""
    pool.open(2)
    assert pool.voters("n1") == {"n2"}
    with closing(pool.follow("n1")) as follower:
        sky = Connection(follower.session)
        sky.counter("c").increment(5)
        until(lambda: pool.voters("n1") == {"n1"}, 120)
        pool.kill("n2")
        pool.told()
        assert sky.counter("c").increment() == 6


def test_a_node_that_stays_joins_when_all_that_have_a_member_are_to_go(pool: Pool) -> None:
    """They go when their tasks have ended."""
    pool.open(5)
    until(lambda: pool.voters("n3") == {"n5", "n1", "n2"})
    with closing(pool.follow("n3")) as follower:
        writer = Writer(follower)
        pool.tell([pool.nodes[name].host for name in ("n3", "n4")])
        until(lambda: "n3" in pool.voters("n3"))
        pool.kill("n5", "n1", "n2")
        until(lambda: pool.voters("n3") in ({"n3"}, {"n4"}, {"n3", "n4"}))
        acknowledged = writer.end()
        missing = set(acknowledged) - set(Connection(follower.session).dict("numbers", consistency="strong").keys())
        assert len(missing) <= 1, "what was acknowledged in the moment of the loss"


def test_nobody_restores_while_members_that_are_to_go_elect_another_leader(pool: Pool) -> None:
    """A cluster beside theirs would lose what they acknowledge."""

    def tokens() -> set[str]:
        return {Access.parse((pool.nodes[name].directory / "access.json").read_bytes()).token for name in ("n3", "n4")}

    pool.open(5)
    until(lambda: pool.voters("n3") == {"n5", "n1", "n2"})
    before = tokens()
    with closing(pool.follow("n3")) as follower:
        counter = Connection(follower.session).counter("c")
        pool.tell([pool.nodes[name].host for name in ("n3", "n4")])
        pool.kill("n5")  # which has opened the cluster, and leads
        for count in range(1, 400):
            assert counter.increment() == count
            time.sleep(0.01)
        assert tokens() == before


def test_a_copy_is_left_when_all_that_have_a_member_go_a_moment_after_the_pool_says_so(pool: Pool) -> None:
    pool.open(5)
    until(lambda: pool.voters("n3") == {"n5", "n1", "n2"})
    with closing(pool.follow("n3")) as follower:
        sky = Connection(follower.session)
        sky.dict("d")["k"] = "kept"
        token = sky.lock("l").acquire().token
        pool.tell([pool.nodes[name].host for name in ("n3", "n4")])
        until((pool.nodes["n3"].directory / "copy").exists)
        pool.kill("n5", "n1", "n2")
        with pytest.raises((QuorumLost, OutcomeUnknown), match="from a copy of what"):
            sky.counter("c").increment()
        assert sky.dict("d", consistency="strong")["k"] == "kept"
        assert sky.lock("l").acquire(timeout=5).token > token
        until(lambda: pool.voters("n4") == {"n3"})
        until(lambda: not (pool.nodes["n3"].directory / "copy").exists())


def test_a_member_that_dies_alone_is_replaced_on_its_node(pool: Pool) -> None:
    pool.open(3)
    until(lambda: len(pool.voters("n1")) == 3)
    (etcd,) = (
        child
        for child in psutil.Process(pool.nodes["n2"].process.pid).children(recursive=True)
        if child.name() == "etcd"
    )
    before = pool.members("n1")
    etcd.kill()
    until(lambda: len(pool.members("n1") - before) == 1 and len(pool.voters("n1")) == 3)
    assert pool.voters("n1") == {"n1", "n2", "n3"}


def test_only_who_has_the_pools_certificate_is_told_anything(pool: Pool) -> None:
    pool.open(1)
    (node,) = pool.nodes.values()
    stranger = trustme.CA()
    issued = stranger.issue_cert(common_name="n1")
    theirs = Tls(
        stranger.cert_pem.bytes(), issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes(), by_name=False
    )
    authority, certificate, key = ((node.directory / file).read_bytes() for file in ("ca", "crt", "key"))
    ours = Tls(authority, certificate, key, by_name=False)
    assert ask(node.host, PORT + 2, ours, 3.0)
    for stranger_tls in (theirs, Tls(authority, by_name=False), None):
        assert ask(node.host, PORT + 2, stranger_tls, 3.0) is None
    assert (node.directory / "access.json").stat().st_mode & 0o777 == 0o600


def test_this_machine_reaches_a_member_through_every_node(pool: Pool) -> None:
    pool.open(1)
    (node,) = pool.nodes.values()
    access = Access.parse((node.directory / "access.json").read_bytes())
    with closing(Wire([f"{node.host}:{PORT + 3}"], tls=access.tls)) as wire:
        wire.call(methods.PUT, pb.PutRequest(key=b"k", value=b"v" * 100_000), timeout_s=3.0)
        reply: Any = wire.call(methods.RANGE, pb.RangeRequest(key=b"k"), timeout_s=3.0)
        assert len(reply.kvs[0].value) == 100_000


def test_a_process_of_a_node_without_an_agent_hears_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotConnected, match="plugin Etcd"):
        Follower(tmp_path / "access.json")
