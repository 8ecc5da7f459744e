"""Run a command that must not outlive its owner: whatever ends the owner, SIGKILL included, ends the command too.

Run as ``python -I -S lifeline.py FD [--grace SECONDS] [--scratch DIR] [--sockets DIR/NAME] -- command ...`` with the
standard library only, so that it costs about 10 ms. ``FD`` is one end of a stream socket whose other end the owner has:

- the first line that we write tells the owner the process id of the command;
- every byte that we read is the number of a signal for the command. Only we can send one safely: as long as we have
  not reaped the command, its process id cannot belong to anything else;
- end of file: the owner is gone. The command gets SIGTERM and ``SECONDS`` to obey if there is a ``--grace``, then it is
  killed with all its descendants. Its scratch directory is removed, and its sockets, which are named ``NAME:...``, with
  directories of ours that held nothing else.

Our exit code is the command's, or 128 + the number of the signal that ended it.
"""

# ruff: noqa: PTH106, PTH108, PTH110, PTH112, PTH118, PTH119, PTH120, PTH208, SIM105
# contextlib and pathlib would take longer to import than all the rest

from __future__ import annotations

import ctypes
import os
import select
import sys

# Plain numbers: the signal module imports enum, which would be a third of our start.
SIGKILL, SIGTERM = 9, 15
SCRATCH = "skyward-etcd-"
"""How the names of temporary directories begin that are ours to remove."""
SOCKETS = "sockets"
"""The name of a directory for the sockets of one cluster."""
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Guard the command named by the arguments until it has ended, and return its exit code."""
    split = arguments.index("--")
    owner, options = int(arguments[0]), dict(zip(arguments[1:split:2], arguments[2:split:2], strict=True))
    parent = os.getppid()
    os.set_inheritable(owner, False)
    command = spawn(arguments[split + 1 :])
    tell(owner, f"{command}\n")
    orphaned = guard(owner, parent, command, float(options.get("--grace", "0")))
    end(command)
    _, status = os.waitpid(command, 0)
    if orphaned and "--scratch" in options:
        remove(options["--scratch"])
    if orphaned and "--sockets" in options:
        remove_sockets(options["--sockets"])
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def spawn(command: list[str]) -> int:
    """Start the command in a session of its own, so that no terminal reaches it and its descendants can be ended."""
    supervisor, libc = os.getpid(), ctypes.CDLL(None)
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        # Should somebody SIGKILL us, the kernel kills the command. The kernel watches the *thread* that forked, not its
        # process: a command started by a worker thread would be killed when that thread ends. This process has one.
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() == supervisor:  # else we died in between, and no signal will come
            os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    os._exit(127)


def guard(owner: int, parent: int, command: int, grace_s: float) -> bool:
    """Pass on the owner's signals until the command has ended (False) or the owner is gone (True)."""
    ended, ready = os.pidfd_open(command), select.poll()
    ready.register(ended, select.POLLIN)
    ready.register(owner, select.POLLIN)
    while True:
        seen = {descriptor for descriptor, _ in ready.poll(1000)}
        if ended in seen:
            return False
        # A fork of the owner (a data loader's worker) holds a copy of its end of the socket: then there is no end of
        # file, and only our new parent tells that the owner died.
        if os.getppid() == parent:
            signals = read(owner) if owner in seen else None
            if signals is None:
                continue
            for number in signals:
                os.kill(command, number)
            if signals:
                continue
        if grace_s:
            ready.unregister(owner)
            os.kill(command, SIGTERM)
            ready.poll(grace_s * 1000)
        return True


def read(owner: int) -> bytes:
    """Return what the owner sent; nothing means that it is gone, even if it left with our words unread."""
    try:
        return os.read(owner, 64)
    except ConnectionResetError:
        return b""


def tell(owner: int, text: str) -> None:
    """Write to the owner, who may be gone already or may have given us a pipe that only talks to us."""
    try:
        os.write(owner, text.encode())
    except OSError:
        pass


def end(command: int) -> None:
    """Kill the command, which is ours until we reap it, and what it left behind in its session."""
    for kill in (os.kill, os.killpg):
        try:
            kill(command, SIGKILL)
        except ProcessLookupError:  # no group: the command was killed before its setsid
            pass


def remove(directory: str) -> None:
    """Remove what the owner would have removed."""
    import shutil  # only when they are needed: they would double our start
    import time

    for _ in range(50):  # what another supervisor ends in this moment may still write there
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):
            break
        time.sleep(0.02)
    leave(os.path.dirname(directory))


def remove_sockets(stem: str) -> None:
    """Remove what a killed command has listened at."""
    directory, name = os.path.split(stem)
    for each in os.listdir(directory) if os.path.isdir(directory) else ():
        if each.startswith(f"{name}:"):
            try:
                os.unlink(os.path.join(directory, each))
            except OSError:
                pass
    leave(directory)


def leave(directory: str) -> None:
    """Remove directories of ours that are empty, from this one upward; not, for instance, the user's empty TMPDIR."""
    while os.path.basename(directory) == SOCKETS or os.path.basename(directory).startswith(SCRATCH):
        try:
            os.rmdir(directory)
        except OSError:  # not empty: another member's turn
            return
        directory = os.path.dirname(directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
