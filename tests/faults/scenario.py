"""One scenario of the fault lab: load before, during and after a fault, and a verdict on all that was seen."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter as Tally
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.binary import Verdict, grade
from skyward_etcd.cluster.process import Supervised
from skyward_etcd.session.session import Session
from skyward_etcd.testing.faults import FaultLab
from skyward_etcd.testing.history import Operation
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from tests.faults.client import LIMITS, Settings, text_of, told
from tests.faults.load import KINDS
from tests.faults.verdict import Committed, Histories, judge, read_at_the_end, violations

AT_ONCE = ("counter", "dict", "set", "queue")
"""What goes on without waiting for anybody."""
REPOSITORY = Path(__file__).parents[2]
ALONE = tuple(kind for kind in KINDS if kind != "barrier")
"""What a client can do when another is away: all but meet it."""


class Process:
    """A client process, and the thread that hears what it did."""

    def __init__(self, lab: FaultLab, place: str, settings: Settings, histories: Histories) -> None:
        stdin, self._stdin = os.pipe()
        stdout, its = os.pipe()
        command = [sys.executable, "-c", "from tests.faults.client import main; main()", text_of(settings)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        try:
            self.process: Supervised = lab.launch(place, command, stdin=stdin, stdout=its, env=environment)
        finally:
            os.close(stdin)
            os.close(its)
        self.name = settings.name
        self._histories = histories
        self._hearing = threading.Thread(target=self._hear, args=(os.fdopen(stdout),), daemon=True)
        self._hearing.start()

    def say(self, line: str) -> None:
        """Write a line to its stdin."""
        os.write(self._stdin, f"{line}\n".encode())

    def hang_up(self) -> None:
        """Tell it to end."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def ended(self, *, within_s: float) -> int:
        """Wait for its end, and for the last it has to say."""
        code = self.process.wait(within_s)
        self._hearing.join(5.0)
        return code

    def _hear(self, stdout: Any) -> None:
        with stdout:
            for operation in told(stdout):
                self._histories.add(operation)


class Scenario:
    """The load on a lab's cluster; for ``with``. The cluster is healthy before, and when it is checked."""

    def __init__(
        self, lab: FaultLab, *, seed: int = 1, namespace: str = "faults", kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.lab = lab
        self.histories = Histories()
        self.committed = Committed()
        self.parties = 2 * len(lab.clients)
        self.clients: dict[str, Process] = {}
        self._seed = seed
        self._namespace = namespace
        self._kinds = kinds
        self._extra: list[Process] = []

    def __enter__(self) -> Self:
        self.lab.require_healthy()
        with self.lab.inside("operator"):
            self.committed.skip(Session(self.lab.endpoints("operator"), namespace=self._namespace))
        for number, place in enumerate(self.lab.clients):
            self.clients[place] = Process(self.lab, place, self._settings(place, place, first=number), self.histories)
        self.goes_on(times=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in (*self.clients.values(), *self._extra):
            client.hang_up()
            client.process.kill()

    def holder(self, place: str, name: str) -> Process:
        """Start one more process, which holds the lock until it hears a line; return when it has it."""
        process = Process(self.lab, place, self._settings(place, name, holds="lock"), self.histories)
        self._extra.append(process)
        self.lab.until(lambda: self.of(f"lock {name}"), f"the lock in the hands of {name}")
        return process

    def of(self, process: str) -> list[Operation]:
        """Return what one worker has done."""
        kind = process.partition(" ")[0]
        return [each for each in self.histories[kind] if each.process == process]

    def tokens(self) -> list[int]:
        """Return the fencing tokens of all holds."""
        return [each.result for each in self.histories["lock"] if isinstance(each.result, int)]

    def goes_on(
        self,
        *,
        times: int = 2,
        places: Iterable[str] | None = None,
        kinds: Sequence[str] | None = None,
        within_s: float = 40.0,
    ) -> None:
        """Wait until each session has got answers to so many more of its operations of each kind."""
        before = self._answered()
        expected = [
            f"{kind} {place} {face}"
            for kind in kinds or self._kinds
            for place in places or self.clients
            for face in ("blocking", "asyncio")
        ]

        def missing() -> list[str]:
            now = self._answered()
            return [each for each in expected if now[each] - before[each] < times]

        self.lab.until(lambda: not missing(), lambda: f"an answer for {', '.join(missing())}", within_s=within_s)

    def check(self) -> None:
        """Stop the load, see that the cluster is healthy, read everything, and fail with what is wrong."""
        for client in (*self.clients.values(), *self._extra):
            client.hang_up()
        codes = {client.name: client.ended(within_s=45.0) for client in (*self.clients.values(), *self._extra)}
        assert not any(codes.values()), f"exit codes of the clients: {codes}"
        self.lab.require_healthy()
        with self.operator() as session:
            read_at_the_end(Connection(session), self.histories)
            self.committed.read(session)
        trusts = self._trusts_reads()
        found = violations(judge(self.histories, self.committed, parties=self.parties, trusts_reads=trusts))
        if found:
            pytest.fail("\n\n".join([*found, str(self.histories)]), pytrace=False)

    @contextlib.contextmanager
    def operator(self) -> Generator[Session]:
        """Return a session on the load's collections, at the operator's place."""
        with self.lab.inside("operator"):
            endpoints = self.lab.endpoints("operator")
            with Session(endpoints, namespace=self._namespace, limits=LIMITS) as session:
                yield session

    def compact(self) -> None:
        """Forget all of etcd's history, after it was noted for the verdict."""
        with self.operator() as session:
            self.committed.read(session)
        forget = pb.CompactionRequest(revision=self.committed.up_to, physical=True)
        self.lab.ask(self.lab.leader(), methods.COMPACT, forget, timeout_s=10.0)

    def make_space(self) -> None:
        """Do what an operator does when the quota is reached: compact, defragment, disarm the alarm."""
        with self.lab.inside("operator"):
            # No lease is granted without space: the session is not opened.
            self.committed.read(Session(self.lab.endpoints("operator"), namespace=self._namespace))
        forget = pb.CompactionRequest(revision=self.committed.up_to, physical=True)
        self.lab.ask(self.lab.leader(), methods.COMPACT, forget, timeout_s=10.0)
        for name in self.lab.members:
            self.lab.ask(name, methods.DEFRAGMENT, pb.DefragmentRequest(), timeout_s=30.0)
        for alarm in self.lab.ask(self.lab.leader(), methods.ALARM, pb.AlarmRequest()).alarms:
            disarm = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            self.lab.ask(self.lab.leader(), methods.ALARM, disarm)

    def _answered(self) -> Tally[str]:
        """Count the answers; a barrier that broke is none, nor is a lock that was not to be had."""
        return Tally(
            each.process
            for operations in list(self.histories.of.values())
            for each in list(operations)
            if not each.is_unknown and (each.call not in ("wait", "acquire") or isinstance(each.result, int))
        )

    def _trusts_reads(self) -> bool:
        """Tell whether linearizable reads of this release are so after its process was paused (etcd #20418)."""
        return grade(self.lab.etcd.version, durable=False, members=3).verdict is Verdict.ACCEPTED

    def _settings(self, place: str, name: str, *, first: int = 0, holds: str = "") -> Settings:
        members = list(self.lab.members)
        at = first % len(members)
        endpoints = tuple(self.lab.endpoints(place, [*members[at:], *members[:at]]))
        return Settings(name, endpoints, self._namespace, self.parties, self._seed, kinds=self._kinds, holds=holds)
