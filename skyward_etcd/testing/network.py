"""A network of a test's own between etcd members and their clients, to be cut, split and slowed down.

Two kinds, of one interface. *Namespaces* are the real thing: each node in a network namespace of its own, and a router
between them that drops what it is told to. They need Linux, root and iproute2. *Proxies* stand in where these are not
to be had: all on 127.0.0.1, with a TCP proxy on each way. Both leave nothing behind, however the test ends, and any
number of them may be used at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from skyward_etcd.cluster.bootstrap import free_ports
from skyward_etcd.testing.proxy import SOUND, Faults, Proxy

__all__ = ["Addresses", "Network", "network", "why_no_namespaces"]

_log = logging.getLogger("skyward_etcd.testing")

_KNOWN_WITHIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a member listens, and where its peers find it."""

    client_url: str
    peer_url: str
    listen_peer_url: str


class Network(Protocol):
    """What both kinds can do. Nodes are named; a name is a member's or a client's."""

    @property
    def kind(self) -> str:
        """What it is made of, for a person."""
        ...

    def add_member(self, name: str) -> Addresses:
        """Make room for a member."""
        ...

    def add_client(self, name: str) -> None:
        """Make room for a client."""
        ...

    def endpoints(self, client: str, members: Sequence[str]) -> list[str]:
        """Return ``host:port`` of members, as this client reaches them."""
        ...

    def inside(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Let what this thread starts and connects in the block be at this node: processes, threads, sockets."""
        ...

    def runs(self, name: str, pid: int) -> None:
        """Say which process is the member of this name: proxies tell by it who a connection is from."""
        ...

    def lose(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose all that any of the sources sends to any of the targets, silently, until `heal`."""
        ...

    def narrow(self, name: str, bytes_per_s: int) -> None:
        """Let no more than this through to a node in a second, until `heal`."""
        ...

    def slow(self, name: str, delay_s: float) -> None:
        """Delay all that comes from and to a node, until `heal`.

        Raises:
            OSError: network namespaces cannot: netem is not in every kernel. Proxies can.
        """
        ...

    def heal(self) -> None:
        """Be a sound network again. What was lost meanwhile is sent again by those who miss it, as TCP does."""
        ...

    def close(self) -> None:
        """End it. May be called twice."""
        ...


def network(kind: str | None = None) -> Network:
    """Return ``namespaces`` where they are to be had, else ``proxies``, and say loudly that it is these.

    Raises:
        RuntimeError: ``namespaces`` were asked for by name, and are not to be had.
    """
    if kind not in (None, "namespaces", "proxies"):
        raise ValueError(f"a network is namespaces or proxies, not {kind!r}")
    reason = why_no_namespaces() if kind != "proxies" else ""
    if kind == "namespaces" and reason:
        raise RuntimeError(f"no network namespaces: {reason}")
    if reason:
        _log.warning("NO NETWORK NAMESPACES: %s. TCP PROXIES stand in for them", reason)
    return _Proxies() if kind == "proxies" or reason else _Namespaces()


@functools.cache
def why_no_namespaces() -> str:
    """Say what is missing for namespaces; nothing if they are to be had."""
    if not sys.platform.startswith("linux"):
        return "this is not Linux"
    if shutil.which("ip") is None:
        return "there is no `ip` (on Debian and Ubuntu: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "they need root"
    try:
        trial = _Namespaces()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine refuses them: {getattr(error, 'stderr', None) or error}".strip()
    try:
        trial.add_client("trial")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine refuses them: {getattr(error, 'stderr', None) or error}".strip()
    finally:
        trial.close()
    return ""


# ---- the real thing

_CLONE_NEWNET = 0x40000000


class _Namespace:
    """A network namespace without a name: it is gone with this object and the last process in it."""

    def __init__(self) -> None:
        made: list[int | OSError] = []

        def make() -> None:
            try:
                _call("unshare", _CLONE_NEWNET)
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
            except OSError as error:
                made.append(error)

        # On a thread of its own, which ends in there: what keeps the namespace is our open descriptor.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        self._descriptor = made[0]
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        """What `ip` knows it by."""

    @contextlib.contextmanager
    def inside(self) -> Generator[None]:
        """Put this thread into the namespace, and back again."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call("setns", self._descriptor, _CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", here, _CLONE_NEWNET)
        finally:
            os.close(here)

    def run(self, *command: str) -> None:
        """Run a command in the namespace."""
        with self.inside():
            subprocess.run(command, check=True, capture_output=True, text=True)

    def close(self) -> None:
        os.close(self._descriptor)


def _call(function: str, *arguments: int) -> None:
    """Call the C library; os.unshare and os.setns are there from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


class _Namespaces:
    """Nodes in network namespaces of their own, each on a line of its own to a router."""

    kind = "network namespaces"

    def __init__(self) -> None:
        self._router: _Namespace | None = _Namespace()
        with self._router.inside():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._nodes: dict[str, _Namespace] = {}
        self._numbers: dict[str, int] = {}
        self._lost: list[tuple[str, str]] = []
        self._narrowed: list[str] = []

    def add_member(self, name: str) -> Addresses:
        self.add_client(name)
        address = self._address(name)
        peer_url = f"http://{address}:2380"
        return Addresses(f"http://{address}:2379", peer_url, peer_url)

    def add_client(self, name: str) -> None:
        node = self._nodes[name] = _Namespace()
        number = self._numbers[name] = len(self._nodes)
        line, router = f"line{number}", f"10.77.{number}.1"
        self._route("ip", "link", "add", line, "type", "veth", "peer", "name", "eth0", "netns", node.path)
        self._route("ip", "address", "add", f"{router}/30", "dev", line)
        self._route("ip", "link", "set", line, "up")
        node.run("ip", "link", "set", "lo", "up")
        node.run("ip", "address", "add", f"{self._address(name)}/30", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        node.run("ip", "route", "add", "default", "via", router)

    def endpoints(self, client: str, members: Sequence[str]) -> list[str]:  # noqa: ARG002 - the same for all
        return [f"{self._address(member)}:2379" for member in members]

    def inside(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._nodes[name].inside()

    def runs(self, name: str, pid: int) -> None:
        """Nothing to do: who sends is told by the address."""

    def lose(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        to = list(targets)
        for lost in ((source, target) for source in sources for target in to if source != target):
            self._route("ip", "rule", "add", *self._between(lost))
            self._lost.append(lost)

    def narrow(self, name: str, bytes_per_s: int) -> None:
        shape = ("root", "tbf", "rate", f"{bytes_per_s * 8}bit", "burst", "16kb", "latency", "400ms")
        self._route("tc", "qdisc", "replace", "dev", f"line{self._numbers[name]}", *shape)
        self._narrowed.append(name)

    def slow(self, name: str, delay_s: float) -> None:
        raise OSError(
            errno.EOPNOTSUPP,
            f"a delay of {delay_s} s at {name} takes the kernel's netem, which is seldom there: ask for kind='proxies'",
        )

    def heal(self) -> None:
        while self._lost:
            self._route("ip", "rule", "delete", *self._between(self._lost.pop()))
        while self._narrowed:
            line = f"line{self._numbers[self._narrowed.pop()]}"
            with contextlib.suppress(subprocess.CalledProcessError):  # narrowed twice, and healed once
                self._route("tc", "qdisc", "delete", "dev", line, "root")

    def close(self) -> None:
        nodes, self._nodes = [*self._nodes.values()], {}
        for node in nodes:
            node.close()
        router, self._router = self._router, None
        if router is not None:
            router.close()

    def _route(self, *command: str) -> None:
        if self._router is None:
            raise RuntimeError("the network is closed")
        self._router.run(*command)

    def _address(self, name: str) -> str:
        return f"10.77.{self._numbers[name]}.2"

    def _between(self, ends: tuple[str, str]) -> list[str]:
        """Return the rule of the router that drops without a word: who sends hears of nothing, as on a cut wire."""
        source, target = map(self._address, ends)
        return ["from", source, "to", target, "blackhole"]


# ---- what stands in for it


class _Proxies:
    """Nodes on 127.0.0.1, with a proxy before each member for its peers, and one more for each client."""

    kind = "TCP proxies"

    def __init__(self) -> None:
        self._client_ports: dict[str, int] = {}
        self._pids = {"": os.getpid()}
        self._for_peers: dict[str, Proxy] = {}
        self._for_clients: dict[tuple[str, str], Proxy] = {}
        self._faults: dict[tuple[str, str], Faults] = {}
        """What is wrong with the way on which the first connects to the second."""

    def add_member(self, name: str) -> Addresses:
        client, peer = free_ports(2)
        self._client_ports[name] = client
        proxy = self._for_peers[name] = Proxy(f"127.0.0.1:{peer}", name_of=self._name_of)
        proxy.start()
        return Addresses(f"http://127.0.0.1:{client}", f"http://{proxy.endpoint}", f"http://127.0.0.1:{peer}")

    def add_client(self, name: str) -> None:
        """Nothing to do: its proxies are made when it asks for endpoints."""

    def endpoints(self, client: str, members: Sequence[str]) -> list[str]:
        for member in members:
            if (client, member) not in self._for_clients:
                proxy = self._for_clients[client, member] = Proxy(f"127.0.0.1:{self._client_ports[member]}")
                proxy.start()
        return [self._for_clients[client, member].endpoint for member in members]

    def inside(self, name: str) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002 - all are in one place
        return contextlib.nullcontext()

    def runs(self, name: str, pid: int) -> None:
        self._pids[name] = pid

    def lose(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        to = list(targets)
        for source in sources:
            for target in to:
                self._change((source, target), loses_requests=True)
                self._change((target, source), loses_replies=True)

    def narrow(self, name: str, bytes_per_s: int) -> None:
        for way in self._ways(name):
            self._change(way, bytes_per_s=float(bytes_per_s))

    def slow(self, name: str, delay_s: float) -> None:
        for way in self._ways(name):
            self._change(way, delay_s=delay_s)

    def heal(self) -> None:
        self._faults.clear()
        for proxy in (*self._for_peers.values(), *self._for_clients.values()):
            proxy.heal()

    def close(self) -> None:
        for proxy in (*self._for_peers.values(), *self._for_clients.values()):
            proxy.close()

    def _ways(self, name: str) -> list[tuple[str, str]]:
        peers = [way for peer in self._for_peers if peer != name for way in ((name, peer), (peer, name))]
        return [*(peers if name in self._for_peers else ()), *(way for way in self._for_clients if name in way)]

    def _change(self, way: tuple[str, str], **what: float | bool) -> None:
        faults = self._faults[way] = replace(self._faults.get(way, SOUND), **what)  # type: ignore[arg-type]
        source, target = way
        if way in self._for_clients:
            self._for_clients[way].break_(faults)
        elif source in self._for_peers and target in self._for_peers:
            self._for_peers[target].break_(faults, source=source)

    def _name_of(self, port: int) -> str:
        """Return which member's socket has this port, by what Linux tells of its open files."""
        socket = f"socket:[{_inode(port)}]"
        deadline = time.monotonic() + _KNOWN_WITHIN_S
        while time.monotonic() < deadline:  # a member may connect before it is known which process it is
            for name, pid in dict(self._pids).items():
                if socket in _descriptors(pid):
                    return name
            time.sleep(0.01)
        return ""


def _descriptors(pid: int) -> Generator[str]:
    """Say what a process has open."""
    with contextlib.suppress(OSError):  # it has ended
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                yield str(descriptor.readlink())


def _inode(port: int) -> str:
    """Return the number of the socket that is connected from this port of 127.0.0.1."""
    local = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[9] != "0":
            return fields[9]
    return "-"
