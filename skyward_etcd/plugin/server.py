"""A port of a node, each of whose callers is served in a thread of its own."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Server"]

_log = logging.getLogger("skyward_etcd.plugin")

_LOOK_S = 0.2
"""How long `close` may take."""


class Server:
    """Serves whoever calls at an address, and closes the connection then, until `close`.

    ``most`` are served at once; more are hung up on. A caller that cannot be taken, as when the process has too many
    files open, is not the last one.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self, host: str, port: int, serve: Callable[[socket.socket], None], *, name: str, most: int = 256
    ) -> None:
        self._listening = _Listening((host, port), serve, most)
        threading.Thread(target=self._listening.serve_forever, args=(_LOOK_S,), name=name, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.server_address[1])

    def close(self) -> None:
        """Take no more callers. Those that are being served are not disturbed."""
        self._listening.shutdown()
        self._listening.server_close()


class _Listening(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], serve: Callable[[socket.socket], None], most: int) -> None:
        super().__init__(address, socketserver.BaseRequestHandler)
        self._serve = serve
        self._places = threading.Semaphore(most)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # there is no thread to be had
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        del client_address
        self._serve(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        _log.debug("%s was not served to the end", client_address, exc_info=True)
