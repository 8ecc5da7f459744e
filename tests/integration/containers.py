"""etcd's own image in a container: one member, on a port of this machine's."""

from __future__ import annotations

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
        try:
            import_module("docker").from_env().ping()
            container = import_module("testcontainers.core.container").DockerContainer
        except Exception as error:  # noqa: BLE001 - not installed, not there, not ours to use
            pytest.skip(f"NO DOCKER ENGINE, SO NO {image}: this test did not run ({error})")
        flags = [f"--{name}={value}" for name, value in _FLAGS.items()]
        self._container: Any = container(image).with_command(["/usr/local/bin/etcd", *flags])
        self._container.with_exposed_ports(_PORT).start()
        host, port = self._container.get_container_host_ip(), self._container.get_exposed_port(_PORT)
        self.endpoints = [f"{host}:{port}"]

    def stop(self) -> None:
        """Remove it."""
        self._container.stop()
