"""Processes that cannot outlive this one: the owner's side of ``lifeline.py``.

Nothing started here is left running when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Supervised", "launch"]

_LIFELINE = Path(__file__).with_name("lifeline.py")


class Supervised:
    """A command under its own supervisor; made by `launch`, safe for several threads."""

    def __init__(self, supervisor: subprocess.Popen[bytes], lifeline: socket.socket) -> None:
        self._supervisor = supervisor
        self._lifeline = lifeline
        self._pid: int | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process id of the command itself, for looking at it; send signals with `send_signal`, which is safe.

        Waits the few milliseconds that the supervisor needs to start.

        Raises:
            ProcessLookupError: it ended before it was asked for.
        """
        with self._lock:
            if self._pid is None:
                try:
                    self._pid = int(self._lifeline.recv(32))  # one small write: it comes whole
                except (OSError, ValueError):
                    raise ProcessLookupError("the command has already ended") from None
            return self._pid

    @property
    def alive(self) -> bool:
        """Whether the command still runs."""
        return self.poll() is None

    def poll(self) -> int | None:
        """Return the exit code, negative for the signal that ended the command, or None while it runs."""
        return self._ended(self._supervisor.poll())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the command and return its exit code as `poll` does.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """
        self._supervisor.wait(timeout)
        return self.poll() or 0

    def send_signal(self, number: int) -> None:
        """Send the command a signal; one that has ended is left alone."""
        with contextlib.suppress(OSError):
            self._lifeline.send(bytes([number]))

    def terminate(self, timeout: float) -> int:
        """Ask the command to end, kill it after ``timeout`` seconds, and return its exit code."""
        self.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Kill the command and its descendants now, as a lost machine would, and return its exit code."""
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def _ended(self, code: int | None) -> int | None:
        if code is None:
            return None
        self._lifeline.close()
        return code if code <= 128 else 128 - code


def launch(
    command: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    grace_s: float = 0.0,
    cwd: Path | None = None,
    scratch: Path | None = None,
    sockets: Path | None = None,
) -> Supervised:
    """Start a command whose life ends with ours.

    When this process is gone, the command is killed, after SIGTERM and ``grace_s`` seconds if there are any, and then
    the directory ``scratch`` is removed, and of ``sockets``, a directory and the command's name there, what is named
    ``name:...``. The streams and ``pass_fds`` are inherited as by `subprocess.Popen`.
    """
    ours, theirs = socket.socketpair()
    options = ["--grace", str(grace_s)]
    for name, path in (("--scratch", scratch), ("--sockets", sockets)):
        options += [name, str(path)] if path else []
    try:
        with theirs:
            supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", _LIFELINE, str(theirs.fileno()), *options, "--", *command],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                pass_fds=(theirs.fileno(), *pass_fds),
                start_new_session=True,  # Ctrl-C in the terminal is for the owner, who ends us in its own order
            )
    except BaseException:
        ours.close()
        raise
    return Supervised(supervisor, ours)
