"""One etcd member: start, wait until ready, stop, kill.

It never outlives this process, listens on the addresses of its spec only, and takes nothing from the environment.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from skyward_etcd import config
from skyward_etcd.cluster import private
from skyward_etcd.cluster.binary import Etcd
from skyward_etcd.cluster.process import Supervised, launch
from skyward_etcd.cluster.tls import MemberFiles
from skyward_etcd.errors import PoolError
from skyward_etcd.wire.address import Address

__all__ = ["Member", "MemberSpec", "PortTaken", "data_directory", "flags", "require_space"]

MEMBER_BYTES = 123_000_000
"""What an empty member takes: two write-ahead log segments of 64 MB, reserved at once."""
QUOTA_BYTES = 2 << 30
_DATA = "data"
_TURN_S = 2.0


class PortTaken(PoolError):
    """Another process listens on one of the member's addresses: plan again and retry."""


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """Everything that makes a member this one; plain data, sent to the node that runs it."""

    name: str
    data_dir: Path
    """The member's own directory: etcd's data, and its log."""
    client_url: str
    peer_url: str
    initial_cluster: Mapping[str, str]
    """Name to peer URL of every member, this one included."""
    token: str
    """Unique per cluster, so that members of different clusters never talk to each other."""
    state: Literal["new", "existing"] = "new"
    durable: bool = False
    """Write to the disk before acknowledging; without it the kernel decides, which no killed process notices."""
    listen_peer_url: str = ""
    """Where it listens for its peers, if they reach it elsewhere, through a proxy for example."""
    alone: bool = False
    """Begin with the data that are there as the only member of its cluster, whoever was one before."""
    restarts: bool = False
    """It may be started again from its disk, by another process too. Else the disk goes with who started it."""
    files: MemberFiles | None = None
    """Its certificates; then its URLs begin with ``https://``."""
    health_url: str = ""
    """Where it tells without a certificate whether it is well: an address of this machine's own."""
    grows: bool = False
    """Others will join it, so it takes the time limits of a cluster of several from the start."""
    sockets: Path | None = None
    """The directory of its cluster's sockets, where nobody else gets in; then its URLs are ``unix://name:port``."""

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients, or ``unix:///path``."""
        return self.where(self.client_url)

    def where(self, url: str) -> str:
        """Return the endpoint of a URL of its cluster's. etcd finds sockets from the directory that it runs in."""
        place = urlsplit(url).netloc
        return f"unix://{self.sockets / place}" if self.sockets and url.startswith("unix:") else place


class Member:
    """An etcd process made from a binary and a spec."""

    def __init__(self, etcd: Etcd, spec: MemberSpec) -> None:
        self.etcd = etcd
        self.spec = spec
        self._process: Supervised | None = None

    def start(self) -> None:
        """Start the process, once those of its fellow founders whose turn is earlier answer; do not wait for it.

        Raises:
            PoolError: it runs already, or there is too little space on the disk.
        """
        if self.alive:
            raise PoolError(f"etcd member {self.spec.name} is already running")
        directory, sockets = self.spec.data_dir, self.spec.sockets
        private.directory(directory)
        if sockets:
            private.closed(sockets)
            for url in (self.spec.client_url, self.spec.peer_url):  # a killed member has left its own, and etcd minds
                (sockets / urlsplit(url).netloc).unlink(missing_ok=True)
        if not data_directory(self.spec).exists():
            require_space(directory, 1)
            self._await_turn()
        with private.opened(self._log, "ab") as log:
            self._process = launch(
                [self.etcd.path.absolute(), *flags(self.etcd, self.spec)],
                stdout=log,
                stderr=log,
                env=config.environment_of_etcd(),
                cwd=sockets,
                # What a member that restarts has left is the next one's, which may be quicker than a supervisor.
                scratch=None if self.spec.restarts else directory,
                sockets=sockets / self.spec.name if sockets and not self.spec.restarts else None,
            )

    def ready(self) -> bool:
        """Whether the member answers and its cluster has a leader.

        Raises:
            PortTaken: it exited because its address is in use.
            PoolError: it exited for another reason, or was never started.
        """
        if not self.alive:
            self._raise_exited()
        return b'"health":"true"' in _ask(self.spec.where(self.spec.health_url or self.spec.client_url), "/health")

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until `ready`.

        Raises:
            PoolError: it exited, as `ready` says, or is not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > deadline:
                raise PoolError(f"etcd member {self.spec.name} not ready after {timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(0.01)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let the member hand over and close its files; kill it if that takes longer than ``timeout_s``."""
        if self._process:
            self._process.terminate(timeout_s)

    def kill(self) -> None:
        """End the process now, as the loss of its machine would."""
        if self._process:
            self._process.kill()

    def send_signal(self, number: int) -> None:
        """Send the process a signal, SIGSTOP and SIGCONT included."""
        if self._process:
            self._process.send_signal(number)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.alive

    @property
    def pid(self) -> int | None:
        """The id of the etcd process itself, not of its supervisor; None if it never ran."""
        return self._process.pid if self._process else None

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that etcd wrote."""
        try:
            with self._log.open("rb") as log:
                log.seek(-min(self._log.stat().st_size, 1 << 16), os.SEEK_END)
                return b"\n".join(log.read().splitlines()[-lines:]).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _await_turn(self) -> None:
        """Let the founders of a cluster start one after the other, some 40 ms apart.

        A founder first asks all others whether it is really new. One that listens and does not answer yet, because it
        waits for us to answer the same question, costs a second each. A refused connection costs nothing.
        """
        deadline = time.monotonic() + _TURN_S
        for name, peer_url in self.spec.initial_cluster.items():
            if name == self.spec.name or self.spec.state == "existing":
                return
            while not _ask(self.spec.where(peer_url), "/version") and time.monotonic() < deadline:
                time.sleep(0.003)

    @property
    def _log(self) -> Path:
        return self.spec.data_dir / "etcd.log"

    def _raise_exited(self) -> None:
        if self._process is None:
            raise PoolError(f"etcd member {self.spec.name} was not started")
        tail = self.log_tail()
        if "address already in use" in tail:
            raise PortTaken(f"{self.spec.client_url} or {self.spec.peer_url} of etcd member {self.spec.name} is in use")
        code = self._process.poll()
        raise PoolError(f"etcd member {self.spec.name} exited with {code}; the end of {self._log}:\n{tail}")


def data_directory(spec: MemberSpec) -> Path:
    """Return where etcd itself keeps a member's data; there from its first start on."""
    return spec.data_dir / _DATA


def flags(etcd: Etcd, spec: MemberSpec) -> list[str]:
    """Return etcd's arguments for a member, in the words of its release."""
    heartbeat_ms, election_ms = _timing(3 if spec.grows else len(spec.initial_cluster))
    options = {
        "name": spec.name,
        "data-dir": data_directory(spec),
        "listen-client-urls": spec.client_url,
        "advertise-client-urls": spec.client_url,
        "listen-peer-urls": spec.listen_peer_url or spec.peer_url,
        "initial-advertise-peer-urls": spec.peer_url,
        "initial-cluster": ",".join(f"{name}={url}" for name, url in spec.initial_cluster.items()),
        "initial-cluster-token": spec.token,
        "initial-cluster-state": spec.state,
        "strict-reconfig-check": "true",
        "heartbeat-interval": heartbeat_ms,
        "election-timeout": election_ms,
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "10m",
        "quota-backend-bytes": QUOTA_BYTES,
        "max-txn-ops": 4096,  # group commit merges many small transactions into one
        "logger": "zap",
        "log-outputs": "stderr",  # which is the member's log file: there also go the words of a flag that is refused
        "log-level": "warn",
        **_by_release(etcd),
    }
    if spec.alone:
        options["force-new-cluster"] = "true"
    if spec.health_url:
        options["listen-metrics-urls"] = spec.health_url
    if spec.files:
        options |= spec.files.flags()
    if not spec.durable and etcd.version >= (3, 4, 10):
        options["unsafe-no-fsync"] = "true"
    return [f"--{name}={value}" for name, value in options.items()]


def require_space(directory: Path, members: int) -> None:
    """Check that new members find room.

    Raises:
        PoolError: there is less than an empty member takes, for each of them.
    """
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < members * MEMBER_BYTES:
        raise PoolError(
            f"{free / 1e6:.0f} MB free at {directory}, and {members} new etcd member(s) take "
            f"{members * MEMBER_BYTES / 1e6:.0f} MB: free some, or choose another directory (TMPDIR, durable=)"
        )


def _timing(members: int) -> tuple[int, int]:
    """Heartbeat and election timeout in milliseconds.

    A fresh cluster elects after a random part of the election timeout, counted in heartbeats: fine ticks make the first
    of three come early, while a full second keeps a leader in office on a machine that is out of breath. A single
    member has nobody to compete with.
    """
    return (20, 100) if members == 1 else (50, 1000)


def _by_release(etcd: Etcd) -> dict[str, str]:
    """The flags whose names changed: 3.6 promoted the experimental ones, 3.7 removed their old names."""
    notify, check, every = "watch-progress-notify-interval", "corrupt-check-time", "1h"
    if etcd.version >= (3, 6, 0):
        return {notify: "5s", check: every, "feature-gates": "InitialCorruptCheck=true"}
    options = {f"experimental-{check}": every, "experimental-initial-corrupt-check": "true"}
    if etcd.version >= (3, 4, 11):
        options[f"experimental-{notify}"] = "5s"
    if etcd.version < (3, 5, 0):
        options |= {"pre-vote": "true", "enable-v2": "false"}  # the later releases' defaults
    return options


def _ask(endpoint: str, path: str) -> bytes:
    """Return the answer to an HTTP request, or nothing. http.client takes longer to import than a member to start."""
    try:
        with Address.parse(endpoint).connect(1.0, None) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return connection.recv(4096)  # these answers are small and come whole; the end of the stream may tarry
    except OSError:
        return b""
