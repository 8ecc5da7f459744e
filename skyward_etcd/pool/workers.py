"""Running functions in a node's worker processes: started afresh, never forked, one call at a time in each.

A worker that dies fails its call by name; the next call gets a new one.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace

from skyward_etcd.errors import NodeLost
from skyward_etcd.pool.failure import capture
from skyward_etcd.pool.link import Link, environment
from skyward_etcd.pool.protocol import (
    Follow,
    Lose,
    NodeConfig,
    Raised,
    Ready,
    RemoteFailure,
    Returned,
    Run,
    StartOver,
    Stop,
    Unready,
)
from skyward_etcd.pool.spec import Worker

__all__ = ["ProcessExecutor"]


class ProcessExecutor:
    """Passes messages on between the driver and the workers."""

    def __init__(self, send: Callable[[object], None], config: NodeConfig) -> None:
        self._send = send
        self._config = config
        self.lost: Lose | None = None
        """What a worker that starts now has to be told of the cluster."""
        self._guard = threading.RLock()
        self._workers = [_WorkerProcess(self, number) for number in range(config.worker.concurrency)]
        for worker in self._workers:
            worker.start()

    def handle(self, message: object) -> None:
        """Pass the message to the worker that runs its call, or a new call to one that runs none."""
        call: int | None = getattr(message, "call", None)
        with self._guard:
            if isinstance(message, Run):
                idle = next((worker for worker in self._workers if worker.run is None), None)
                if idle is None:  # the driver counts too, and does not send more than there are workers
                    raise RuntimeError(f"no worker of {self._config.name} is free for {message.name}")
                idle.take(message)
                return
            worker = next((one for one in self._workers if one.run is not None and one.run.call == call), None)
            if worker is None:
                return  # the call has ended while the message was on its way
            if isinstance(message, Stop) and message.force:
                worker.abandon()
            else:
                worker.pass_on(message)

    def pass_on(self, message: Follow | Lose | StartOver) -> None:
        """Tell all workers, those to come too, what has become of the cluster."""
        with self._guard:
            match message:
                case Lose():
                    self.lost = message
                case Follow(endpoints=endpoints):
                    self._config = replace(self._config, endpoints=endpoints)
                case StartOver(endpoints=endpoints):
                    self._config, self.lost = replace(self._config, endpoints=endpoints), None
            for worker in self._workers:
                worker.pass_on(message)

    def leave(self, timeout_s: float) -> None:
        """Let all workers hand back what they hold, then end them."""
        with self._guard:
            links = [worker.link for worker in self._workers if worker.link]
            for worker in self._workers:
                worker.forget()  # their calls end with the node
        for link in links:
            link.process.send_signal(signal.SIGTERM)
        for link in links:
            link.join(timeout_s)

    def close(self) -> None:
        """End all workers."""
        with self._guard:
            for worker in self._workers:
                worker.abandon()

    def config_of(self, number: int) -> NodeConfig:
        """What a worker is told: a node's configuration, without the member."""
        info = replace(self._config.info, worker=number)
        return replace(self._config, info=info, worker=Worker(), etcd=None, member=None)

    def heard(self, worker: _WorkerProcess, link: Link, message: object) -> None:
        """Pass on what a worker says, unless nobody waits for it any more."""
        with self._guard:
            if worker.link is not link:
                return
            match message:
                case Ready():
                    return
                case Unready(failure=failure):
                    worker.failure = failure
                    return
                case Returned() | Raised():
                    worker.run = None
                    if not self._config.worker.reuse_processes:
                        worker.abandon()
                        worker.start()
                case _:
                    pass
        self._send(message)

    def ended(self, worker: _WorkerProcess, link: Link, code: int) -> None:
        """Fail the call that a dead worker ran."""
        with self._guard:
            if worker.link is not link:
                return
            run, failure = worker.run, worker.failure
            worker.forget()
        if run is not None:
            where = f"worker {worker.number} of {self._config.name}"
            lost = NodeLost(f"{where} ended with {code} while it ran {run.name}")
            self._send(Raised(run.call, failure or capture(lost, self._config.name)))


class _WorkerProcess:
    """A place for a worker: the process changes, the number stays."""

    def __init__(self, owner: ProcessExecutor, number: int) -> None:
        self.number = number
        self.link: Link | None = None
        self.run: Run | None = None
        self.failure: RemoteFailure | None = None
        self._owner = owner

    def start(self) -> None:
        config = self._owner.config_of(self.number)
        env, _ = environment({})
        ready = threading.Event()  # the link's thread may hear something before we have the link

        def on_message(message: object) -> None:
            ready.wait()
            self._owner.heard(self, link, message)

        def on_end(code: int) -> None:
            ready.wait()
            self._owner.ended(self, link, code)

        link = Link(f"worker {self.number}", config, env=env, on_message=on_message, on_end=on_end)
        self.link = link
        if self._owner.lost:
            link.put(self._owner.lost)
        ready.set()

    def take(self, run: Run) -> None:
        if self.link is None:
            self.start()
        self.run = run
        self.pass_on(run)

    def pass_on(self, message: object) -> None:
        if self.link:
            self.link.put(message)

    def abandon(self) -> None:
        """Kill the process, and hear no more of it."""
        link = self.link
        self.forget()
        if link:
            threading.Thread(target=link.kill, name=f"end of worker {self.number}", daemon=True).start()

    def forget(self) -> None:
        self.link = self.run = self.failure = None
