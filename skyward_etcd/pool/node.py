"""A node: a process that runs its etcd member, if it has one, and the functions that the driver sends.

Started as ``python -m skyward_etcd.pool.node`` with one end of a socket as its standard input. It ends with the driver.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from skyward_etcd.cluster.member import Member
from skyward_etcd.pool.channel import Channel
from skyward_etcd.pool.protocol import (
    Follow,
    Leave,
    Left,
    Lose,
    MemberLost,
    MemberReady,
    NodeConfig,
    Ready,
    StartMember,
    StartOver,
    Unready,
)

__all__ = ["main"]


_HAND_BACK_S = 5.0


def main() -> None:
    """Be a node until the driver says otherwise, or is gone."""
    channel = Channel(_inherited_socket())
    config = channel.receive()
    if not isinstance(config, NodeConfig):
        raise TypeError(f"a node is told its configuration first, not {config!r}")
    try:
        node = _Node(channel, config)
    except BaseException as error:  # noqa: BLE001  whatever it is, the driver has to hear of it
        from skyward_etcd.pool.failure import capture

        channel.send(Unready(capture(error, config.name)))
        os._exit(1)
    channel.send(Ready(os.getpid()))
    node.serve()


class _Node:
    def __init__(self, channel: Channel, config: NodeConfig) -> None:
        self._channel = channel
        self._start_s = config.start_s
        self._member = Member(config.etcd, config.member) if config.etcd and config.member else None
        if self._member:
            self._member.start()  # it takes its time, in which we import the rest
        _become(config)
        self._executor = _executor(channel, config)
        if self._member:
            self._member.wait_ready(config.start_s)
            self._watch(self._member)
        self._session = _join(config)
        _on_sigterm(self._go)

    def serve(self) -> None:
        """Do what the driver says until it hangs up. If it has died, the supervisors see to the rest."""
        asked_to_leave = False
        with contextlib.suppress(EOFError):
            while True:
                match message := self._channel.receive():
                    case Leave():
                        asked_to_leave = True
                        self._say_good_bye()
                    case Follow() | Lose() | StartOver():
                        self._hear(message)
                        self._executor.pass_on(message)
                    case StartMember(etcd=etcd, member=spec):
                        fresh = Member(etcd, spec)
                        threading.Thread(target=self._run_member, args=(fresh,), name="member", daemon=True).start()
                    case _:
                        self._executor.handle(message)
        if self._member and asked_to_leave and self._member.spec.durable:
            # All members stop at once: without a majority none can hand over. Nothing acknowledged is off the disk.
            self._member.stop(timeout_s=1.0)
        os._exit(0)  # threads of functions that nobody waits for do not hold us

    def _hear(self, message: Follow | Lose | StartOver) -> None:
        """Take note of what has become of the cluster."""
        match message:
            case _ if not self._session:
                pass
            case Follow(endpoints=endpoints):
                self._session.follow(endpoints)
            case Lose(reason=reason):
                self._session.lose(reason)
            case StartOver(endpoints=endpoints, reason=reason):
                self._session.start_over(endpoints, reason)

    def _run_member(self, fresh: Member) -> None:
        """Run a fresh member in the place of the one before, which is kept until then: its data may be the last."""
        try:
            fresh.start()
            fresh.wait_ready(self._start_s)
        except Exception as error:  # noqa: BLE001  whatever it is, the driver is to know
            fresh.kill()
            self._channel.send(MemberLost(fresh.spec.name, str(error)))
        else:
            before, self._member = self._member, fresh
            if before:
                before.kill()
            self._channel.send(MemberReady(fresh.spec.name))
            self._watch(fresh)

    def _watch(self, member: Member) -> None:
        from skyward_etcd.pool.watch import watch

        name, send = member.spec.name, self._channel.send
        watch(member, start_s=self._start_s, on_lost=lambda reason: send(MemberLost(name, reason)))

    def _go(self) -> None:
        """End because somebody else says so, a spot notice for instance: first hand back, and let another lead."""
        self._executor.leave(_HAND_BACK_S)
        if self._session:
            self._session.close()
        if self._member:
            from skyward_etcd.cluster.membership import hand_over

            hand_over(self._member.spec.endpoint)
            self._member.stop()
        os._exit(128 + signal.SIGTERM)

    def _say_good_bye(self) -> None:
        self._executor.close()
        if self._session:
            self._session.close()
        _run_exit_handlers()
        self._channel.send(Left())


def _inherited_socket() -> socket.socket:
    """Take over standard input, and leave an empty one to the functions."""
    connection = socket.socket(fileno=os.dup(0))
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return connection


def _become(config: NodeConfig) -> None:
    """Make this process look like the driver's to the code that it will run."""
    from skyward_etcd.pool import runtime

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, who ends us in its own order
    sys.path[:] = config.path
    if config.python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = config.python_path
    runtime.install(config.info)


def _on_sigterm(go: Callable[[], None]) -> None:
    """Have ``go`` run on SIGTERM, in a thread: the main one may be waiting for what ``go`` needs."""

    def told(*_: object) -> None:
        threading.Thread(target=go, name="SIGTERM").start()

    def hold_back() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def as_if_we_were_not_here() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        release()

    signal.signal(signal.SIGTERM, told)
    # A function may fork, and end its child. What came before the child's first step here would be lost in Python.
    os.register_at_fork(before=hold_back, after_in_parent=release, after_in_child=as_if_we_were_not_here)


def _executor(channel: Channel, config: NodeConfig) -> Any:
    from skyward_etcd.pool.printing import ThreadLines

    if config.worker.resolved_executor == "process":
        from skyward_etcd.pool.workers import ProcessExecutor

        return ProcessExecutor(channel.send, config)
    from skyward_etcd.pool.executor import ThreadExecutor

    sys.stdout = ThreadLines(channel.send, "stdout")
    sys.stderr = ThreadLines(channel.send, "stderr")
    return ThreadExecutor(channel.send, config.name)


def _join(config: NodeConfig) -> Any:
    """Open the process's session, the one that ``sky.dict(…)`` means in functions."""
    from skyward_etcd import active

    if not config.endpoints:
        active.install(active.NoSession("this pool has no cluster: it was made with Options(cluster=False)"))
        return None
    from skyward_etcd.session.session import Session

    session = Session(config.endpoints, namespace=config.namespace, secret=config.secret, node=config.name)
    session.join()  # without waiting: should the cluster be lost in this moment, we have to hear it
    active.install(session)
    return session


def _run_exit_handlers() -> None:
    import atexit

    run: Any = getattr(atexit, "_run_exitfuncs")  # noqa: B009  os._exit would skip them
    run()


if __name__ == "__main__":
    main()
