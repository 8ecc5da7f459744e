"""The plugin for Skyward's generation 1, up to 0.10, whose collections are called as ours are: they become ours.

A plugin has two hooks there that matter: one around a node's worker, where the node's agent runs, and one around each
function, which has Skyward find our collections where it looks for its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skyward_etcd import active, config
from skyward_etcd.active import Connection, NoSession
from skyward_etcd.cluster import binary
from skyward_etcd.collections.lock import Lock
from skyward_etcd.errors import PoolError
from skyward_etcd.plugin.agent import ACCESS, Agent, Home
from skyward_etcd.plugin.process import Process
from skyward_etcd.plugin.talk import keys
from skyward_etcd.session.session import Session

__all__ = ["etcd"]

_LOCK_TIMEOUT_S = 30.0
_ASK_S = 2.0


@dataclass(frozen=True, slots=True)
class _Settings:
    etcd: str
    members: int | None
    port: int
    namespace: str


def etcd(
    source: str = "", *, etcd: str = "", members: int | None = None, port: int = 2379, namespace: str = "default"
) -> Any:
    """Return the plugin; its arguments are those of `Etcd` for generation 2.

    It serves the functions on the nodes, under both executors. ``pool.dict(...)`` and the like, on the driver, remain
    Skyward's own.
    """
    plugin = importlib.import_module("skyward.api.plugin").Plugin.create("skyward-etcd")
    settings = _Settings(etcd, members, port, namespace)
    return (
        plugin.with_image_transform(functools.partial(_add_to_image, source))
        .with_around_app(functools.partial(_take_part, settings))
        .with_decorator(_with_ours)
    )


def _add_to_image(source: str, image: Any, cluster: Any) -> Any:
    del cluster
    version = importlib.metadata.version("skyward-etcd")
    return replace(image, pip=(*image.pip, source or f"skyward-etcd[embedded,tls]=={version}"))


@contextlib.contextmanager
def _take_part(settings: _Settings, info: Any) -> Generator[None]:
    """Do the node's part in the cluster for as long as its worker lives."""
    del info
    node = config.skyward_node()
    if node is None or not config.skyward_cluster():
        yield
        return
    directory = Path(tempfile.mkdtemp(prefix="skyward-etcd-"))
    try:
        agent = Agent(_home(settings, node, directory))
        session = agent.start()
    except BaseException as error:  # which Skyward does not tell anybody
        active.install(NoSession(f"this node has no cluster, as its part in it could not begin: {error}"))
        shutil.rmtree(directory, ignore_errors=True)
        raise
    _process.serve(session, agent.secret)
    os.environ[config.SKYWARD_ACCESS] = str(directory / ACCESS)  # Skyward hands it on to its executor's processes
    try:
        yield
    finally:
        del os.environ[config.SKYWARD_ACCESS]
        active.install(NoSession("this node's worker has ended"))
        agent.close()
        shutil.rmtree(directory, ignore_errors=True)


def _home(settings: _Settings, node: config.SkywardNode, directory: Path) -> Home:
    return Home(
        f"{node.id}.{secrets.token_hex(3)}",  # a replacement gets the same rank
        node.host,
        node.opens,
        _Peers(node.host),
        directory,
        binary.find(settings.etcd or None),
        keys(node),
        settings.port,
        settings.members,
        settings.namespace,
        relay=None,
    )


class _Peers:
    """Says who the nodes are as Skyward's own cluster of actors sees it, by rank; as it last saw it, if it is silent.

    Skyward tells a worker of the first node only.
    """

    def __init__(self, host: str) -> None:
        self._loop: asyncio.AbstractEventLoop = _distributed().proxies._get_loop()
        self._system = _registry_of(self._loop)._distributed._gateway
        self._known: Sequence[str] = (host,)

    def __call__(self) -> Sequence[str]:
        with contextlib.suppress(Exception):  # whatever keeps it from answering
            asked = asyncio.run_coroutine_threadsafe(self._system.get_cluster_state(timeout=_ASK_S), self._loop)
            here = [member for member in asked.result(_ASK_S).members if member.status.name in ("joining", "up")]
            here.sort(key=lambda member: int(member.id.rpartition("-")[2]))
            self._known = tuple(member.address.host for member in here)
        return self._known


def _registry_of(loop: asyncio.AbstractEventLoop) -> Any:
    """Return where Skyward has its collections: its own tasks have it in their context, those that call us do not."""
    tasks: set[Any] = asyncio.all_tasks(loop)
    for task in tasks:
        found = task.get_context().get(_distributed()._active_registry)
        if found is not None:
            return found
    raise PoolError("this is not a worker of Skyward 0.10 as we know it: it has no registry of collections")


class _Registry(Connection):
    """What Skyward looks for: our collections, with its timeout for locks."""

    def lock(self, name: str, timeout: float | None = _LOCK_TIMEOUT_S, *, ttl: float | None = None) -> Lock:
        return super().lock(name, timeout, ttl=ttl)

    def cleanup(self) -> None:
        """Skyward's are bound to a pool. These are not."""


_registries: list[_Registry] = []
"""That of this process, if it has one."""


def _serve(session: Session, secret: bytes) -> None:
    del secret  # which the session has
    active.install(session)
    _registries[:] = [_Registry(session)]


_process = Process(_serve)


def _with_ours(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function of the user's find our collections."""
    if inspect.isgeneratorfunction(inspect.unwrap(function)):

        @functools.wraps(function)
        def steps(*args: Any, **params: Any) -> Generator[Any, Any, Any]:
            going = function(*args, **params)
            while True:
                _use_ours()  # each step may be another thread's
                try:
                    item = next(going)
                except StopIteration as end:
                    return end.value
                yield item

        return steps

    @functools.wraps(function)
    def whole(*args: Any, **params: Any) -> Any:
        _use_ours()
        return function(*args, **params)

    return whole


def _use_ours() -> None:
    if not config.skyward_cluster():
        return  # Skyward's own say that there is no cluster
    node, file = config.skyward_node(), config.skyward_access()
    if node and file:
        _process.join(file, node.id)
    active.current()  # or the reason why there is none
    _distributed()._set_active_registry(_registries[0])


def _distributed() -> Any:
    return importlib.import_module("skyward.distributed")
