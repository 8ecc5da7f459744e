"""The plugin for Skyward's generation 2, from 0.11 on: what it does to the image, on a node, in a task, at the client.

Nothing else of this library imports Skyward.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from msgspec.structs import replace
from skyward.shared import codec
from skyward.shared.schemas import Image
from skyward.worker import distributed
from skyward.worker.api import Info
from skyward.worker.journal import SKYWARD_DIR
from skyward.worker.plugins import PLUGINS
from skyward.worker.plugins.plugin import Plugin

from skyward_etcd import active, config
from skyward_etcd.active import Connection, NoSession
from skyward_etcd.cluster import binary
from skyward_etcd.plugin.agent import ACCESS, Agent, Home
from skyward_etcd.plugin.backend import Backend, Pickles
from skyward_etcd.plugin.process import Process
from skyward_etcd.plugin.shared import Access
from skyward_etcd.plugin.talk import keys
from skyward_etcd.session.session import Session

__all__ = ["Etcd"]

T = TypeVar("T")

_DIRECTORY = Path(SKYWARD_DIR) / "etcd"
_NO_CLUSTER = "this pool has no cluster: it was made with Options(cluster=False), or its nodes cannot reach each other"


class Etcd(Plugin, frozen=True):
    """Put Skyward's collections on an etcd cluster of the pool's own nodes.

    As in ``sky.Compute(provider=sky.AWS(), nodes=3, plugins=[Etcd()])``.

    Attributes:
        source: what the nodes install of us, as for pip; by default this very version from the index.
        etcd: path of an etcd on the nodes; by default the first that is found there, among them that of the wheel.
        members: how many nodes run a member; by default 1 below 3 nodes, 3 below 7, and 5.
        port: of etcd on the nodes; its peers', the nodes' own and the relay's are the next three.
        namespace: keeps programs apart that use one cluster.
    """

    kind: ClassVar[str] = "skyward-etcd"

    source: str = ""
    etcd: str = ""
    members: int | None = None
    port: int = 2379
    namespace: str = "default"

    def image(self, image: Image) -> Image:
        """Add this library, an etcd, and what makes certificates."""
        version = importlib.metadata.version("skyward-etcd")
        return replace(image, pip=(*image.pip, self.source or f"skyward-etcd[embedded,tls]=={version}"))

    @contextlib.contextmanager
    def setup(self, info: Info) -> Generator[None]:
        """Do the node's part in the cluster for as long as its worker lives, and answer its collections from there."""
        node = config.skyward_node()
        if node is None or not config.skyward_cluster():
            active.install(NoSession(_NO_CLUSTER))
            yield
            return
        del info
        home = Home(
            node.id,
            node.host,
            node.opens,
            config.skyward_peers,
            _DIRECTORY,
            binary.find(self.etcd or None),
            keys(node),
            self.port,
            self.members,
            self.namespace,
        )
        agent = Agent(home)
        session = agent.start()
        before = distributed._backend  # pyright: ignore[reportPrivateUsage]  there is no other way to give it back
        _process.serve(session, agent.secret)
        try:
            yield
        finally:
            distributed.install(before)
            active.install(NoSession("this node's worker has ended"))
            agent.close()

    def run(self, call: Callable[[], T], info: Info) -> T:
        """Give a process of an executor a session of its own, at its first task."""
        if config.skyward_cluster():
            _process.join(_DIRECTORY / ACCESS, info.node)
        return call()

    @contextlib.contextmanager
    def client(self, compute: Any) -> Generator[None]:
        """Give the driver the collections, through the pool's own tunnel. Nobody is asked before it uses one."""
        from skyward.core.forward import TcpProxy  # which a node does not have
        from skyward.core.spec import Port

        access = _access(compute)
        if access is None:
            with active.activated(NoSession(_NO_CLUSTER)):
                yield
            return
        proxy = TcpProxy(compute.client, compute.id, Port(remote=self.port + 3))
        compute.loop.run(proxy.start())
        where = [f"127.0.0.1:{proxy.local}"]
        session = Session(where, namespace=access.namespace, secret=access.secret, node="driver", tls=access.tls)
        before = distributed._backend  # pyright: ignore[reportPrivateUsage]
        distributed.install(_backend(session, access.secret))
        try:
            with active.activated(session):
                yield
        finally:
            distributed.install(before)
            session.close()
            compute.loop.run(proxy.stop())


def _serve(session: Session, secret: bytes) -> None:
    """Answer Skyward's collections, and ours, from this session in the whole process."""
    active.install(session)
    distributed.install(_backend(session, secret))


_process = Process(_serve)


def _backend(session: Session, secret: bytes) -> Backend:
    return Backend(Connection(session), Pickles(codec.dumps, codec.loads, secret))


def _access(compute: Any) -> Access | None:
    """Read what lets a client in off a node, by the way on which the daemon reaches it; None if no node has it."""
    from skyward.api.v1 import ComputeResource

    file = str(_DIRECTORY / ACCESS)
    resource: Any = compute.loop.run(compute.client.call("GET", f"/v1/computes/{compute.id}", ComputeResource))
    for rank in sorted(node.rank for node in resource.nodes if node.state == "ready"):
        with contextlib.suppress(Exception):  # a node that has just died, or one that has no cluster
            return Access.parse(compute.loop.run(_read(compute, file, rank)))
    return None


async def _read(compute: Any, path: str, rank: int) -> bytes:
    parts = [
        part async for part in compute.client.download(f"/v1/computes/{compute.id}/files/content", path=path, node=rank)
    ]
    return b"".join(parts)


# Skyward looks a plugin up by its kind: in the client's process, its daemon's, the worker's, and those of its executor.
PLUGINS.setdefault(Etcd.kind, Etcd)
