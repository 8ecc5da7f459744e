"""A process of ours that runs functions, seen from the one that started it: a driver's node, or a node's worker.

It is gone when this process is gone, and its loss is reported once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from skyward_etcd.cluster.process import launch
from skyward_etcd.pool.channel import Channel, Outbox
from skyward_etcd.pool.protocol import NodeConfig

__all__ = ["Link", "environment"]


class Link:
    """Starts the process, tells it ``config``, and hands each of its messages to ``on_message``.

    ``on_end`` is called once, with the exit code, when there will be no more of them. Both run in the link's thread.
    """

    def __init__(
        self,
        name: str,
        config: NodeConfig,
        *,
        env: Mapping[str, str],
        on_message: Callable[[object], None],
        on_end: Callable[[int], None],
        scratch: Path | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = launch(
                [sys.executable, "-m", "skyward_etcd.pool.node"], stdin=theirs.fileno(), env=env, scratch=scratch
            )
        self._channel = Channel(ours)
        self._outbox = Outbox(self._channel, f"to {name}")
        self._outbox.put(config)
        self._on_message = on_message
        self._on_end = on_end
        self._reader = threading.Thread(target=self._receive, name=f"from {name}", daemon=True)
        self._reader.start()

    def put(self, message: object) -> None:
        """Send a message, without waiting; dropped if the process is gone."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()

    def hang_up(self) -> None:
        """Let the process end."""
        self._channel.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the process, and kill it when it takes longer."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _receive(self) -> None:
        try:
            while True:
                self._on_message(self._channel.receive())
        except EOFError:
            pass
        finally:
            self._outbox.close()
            self._channel.close()
            code = self.process.wait()
            self._on_end(code)


def environment(extra: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    """Return the environment to start a process of ours in, and the ``PYTHONPATH`` that the user's code should see."""
    env = {**os.environ, **extra}
    theirs = env.get("PYTHONPATH")
    ours = str(Path(__file__).parents[2])
    env["PYTHONPATH"] = os.pathsep.join([ours, *([theirs] if theirs else [])])
    return env, theirs
