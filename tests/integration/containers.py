"""etcd's own image in a container: one member, on a port of this machine's."""

from __future__ import annotations

import gc
import warnings
from importlib import import_module
from typing import Any

import pytest

_PORT = 2379
_FLAGS = {
    "listen-client-urls": f"http://0.0.0.0:{_PORT}",
    "advertise-client-urls": f"http://127.0.0.1:{_PORT}",
    "max-txn-ops": 4096,  # as pools and manifests have it
}


class EtcdContainer:
    """A member that runs from now on, until `stop`; the test is skipped, loudly, where no Docker engine answers."""

    def __init__(self, image: str) -> None:
        problem = _problem()
        if problem:
            pytest.skip(f"NO DOCKER ENGINE, SO NO {image}: this test did not run ({problem})")
        container = import_module("testcontainers.core.container").DockerContainer
        flags = [f"--{name}={value}" for name, value in _FLAGS.items()]
        self._container: Any = container(image).with_command(["/usr/local/bin/etcd", *flags])
        self._container.with_exposed_ports(_PORT).start()
        host, port = self._container.get_container_host_ip(), self._container.get_exposed_port(_PORT)
        self.endpoints = [f"{host}:{port}"]

    def stop(self) -> None:
        """Remove it."""
        self._container.stop()


def _problem() -> str:
    """Say why no Docker engine is to be had; nothing if one is."""
    with warnings.catch_warnings(action="ignore"):  # where nobody listens, its client leaves sockets lying about
        try:
            import_module("docker").from_env().ping()
        except Exception as error:  # noqa: BLE001 - not installed, not there, not ours to use
            problem = str(error)
        else:
            problem = ""
        gc.collect()
    return problem
