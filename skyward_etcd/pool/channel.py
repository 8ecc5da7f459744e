"""One end of a socket between two processes of ours: whole messages in, whole messages out, in order."""

from __future__ import annotations

import contextlib
import pickle
import queue
import socket
import struct
import threading

__all__ = ["Channel", "Outbox"]

_LENGTH = struct.Struct("!Q")


class Channel:
    """Sends and receives messages: one thread may receive, any number may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send one message; waits while the other end does not read.

        Raises:
            OSError: the other end is gone.
        """
        data = pickle.dumps(message, protocol=5)
        with self._sending:
            self._socket.sendall(_LENGTH.pack(len(data)))
            self._socket.sendall(data)

    def receive(self) -> object:
        """Wait for one message. What comes from the other end is trusted: it is a process that we started, or ours.

        Raises:
            EOFError: the other end is gone.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))  # noqa: S301  see above

    def close(self) -> None:
        """Hang up, and wake a thread that waits in `receive`."""
        with contextlib.suppress(OSError):  # the other end may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        view, filled = memoryview(data), 0
        while filled < length:
            try:
                received = self._socket.recv_into(view[filled:])
            except OSError:
                received = 0
            if not received:
                raise EOFError
            filled += received
        return data


class Outbox:
    """Sends from a thread of its own, for receivers: two that waited to send could wait for each other for ever."""

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self._messages: queue.SimpleQueue[object] = queue.SimpleQueue()
        threading.Thread(target=self._send_all, name=name, daemon=True).start()

    def put(self, message: object) -> None:
        """Send soon. What is put after the other end is gone is dropped: its loss is reported where it is received."""
        self._messages.put(message)

    def close(self) -> None:
        """End the thread once everything is sent."""
        self._messages.put(_LAST)

    def _send_all(self) -> None:
        for message in iter(self._messages.get, _LAST):
            try:
                self._channel.send(message)
            except OSError:
                return


_LAST = object()
