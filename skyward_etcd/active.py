"""Which session ``sky.dict("x")`` means here, and the shortcuts that use it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from skyward_etcd import config
from skyward_etcd.collections.barrier import Barrier
from skyward_etcd.collections.base import Consistency
from skyward_etcd.collections.counter import Counter
from skyward_etcd.collections.dict import Dict
from skyward_etcd.collections.lock import Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.collections.set import Set
from skyward_etcd.errors import NotConnected
from skyward_etcd.session.session import Login, Session, Tls

__all__ = [
    "Connection",
    "Shared",
    "Tls",
    "activated",
    "barrier",
    "connect",
    "counter",
    "dict",
    "install",
    "lock",
    "queue",
    "set",
]

_OUTSIDE = (
    "no active pool or connection here. Use collections inside a @sky.function, or in the driver inside "
    "'with sky.Compute(...):' or 'with sky.connect(...):'"
)


class Shared:
    """The collections of one session. Making one costs nothing and asks nobody: the first operation does."""

    def _session(self) -> Session:
        raise NotImplementedError

    def dict(self, name: str, *, consistency: Consistency = "eventual") -> Dict:
        """Return the `Dict` of this name."""
        return Dict(self._session(), name, consistency=consistency)

    def set(self, name: str, *, consistency: Consistency = "eventual") -> Set:
        """Return the `Set` of this name."""
        return Set(self._session(), name, consistency=consistency)

    def counter(self, name: str, *, consistency: Consistency = "eventual") -> Counter:
        """Return the `Counter` of this name."""
        return Counter(self._session(), name, consistency=consistency)

    def queue(self, name: str, *, max_deliveries: int | None = None) -> Queue:
        """Return the `Queue` of this name.

        With ``max_deliveries``, an item that was claimed so often in vain is moved to the queue `Queue.dead`. All
        handles of one queue must say the same.
        """
        return Queue(self._session(), name, max_deliveries=max_deliveries)

    def barrier(self, name: str, n: int | None = None, *, parties: int | None = None) -> Barrier:
        """Return the `Barrier` of this name for ``n`` callers (``parties`` in Skyward 0.11's words)."""
        participants = parties if n is None else n
        if participants is None:
            raise TypeError(f"barrier({name!r}): say how many meet there, as in barrier({name!r}, n=4)")
        return Barrier(self._session(), name, participants)

    def lock(self, name: str, timeout: float | None = None, *, ttl: float | None = None) -> Lock:  # noqa: ARG002
        """Return the `Lock` of this name. ``timeout``: how long `acquire` waits, in seconds; ``None``: for ever.

        ``ttl`` is accepted for Skyward 0.11's sake, and not used: a dead holder's lock goes with its session's lease.
        """
        return Lock(self._session(), name, timeout=timeout)


class Connection(Shared):
    """A session of one's own, without a pool: what `connect` returns."""

    def __init__(self, session: Session) -> None:
        self._own = session
        self._leave = contextlib.ExitStack()

    def _session(self) -> Session:
        return self._own

    @property
    def endpoints(self) -> tuple[str, ...]:
        """``host:port`` of the cluster's members, as they were given to `connect`."""
        return self._own.endpoints

    def close(self) -> None:
        """Give back the lease and all that hangs on it."""
        self._leave.close()
        self._own.close()

    def __enter__(self) -> Self:
        self._own.open()
        self._leave.enter_context(activated(self._own))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self._own.open_async()
        self._leave.enter_context(activated(self._own))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()
        await self._own.close_async()


def connect(
    endpoints: Sequence[str] | None = None,
    *,
    namespace: str | None = None,
    secret: bytes | None = None,
    user: str | None = None,
    password: str | None = None,
    tls: Tls | None = None,
) -> Connection:
    """Use the collections of a cluster that somebody else runs, as ``sky.dict("x")`` inside the block.

    >>> with sky.connect() as cluster:  # where SKYWARD_ETCD_ENDPOINTS says, or connect(["host:2379"])
    ...     sky.counter("runs").increment(), cluster.counter("runs").value
    (1, 1)

    Args:
        endpoints: ``host:port`` of the members; by default from ``SKYWARD_ETCD_ENDPOINTS``.
        namespace: keeps programs apart; by default from ``SKYWARD_ETCD_NAMESPACE``, else ``default``.
        secret: signs and checks pickled values; by default from ``SKYWARD_ETCD_SECRET``; without it they are refused.
        user: of etcd's own authentication; by default from ``SKYWARD_ETCD_USER``.
        password: the user's; by default from ``SKYWARD_ETCD_PASSWORD``.
        tls: ``Tls(ca=…, certificate=…, key=…)`` in PEM, for a cluster that wants it.

    Raises:
        NotConnected: there are no endpoints.
        PermissionDenied: the cluster does not know the user (on entering the block).
        Unavailable: no endpoint answers (on entering the block).
    """
    where = tuple(endpoints) if endpoints is not None and not isinstance(endpoints, str) else endpoints
    where = tuple(part.strip() for part in where.split(",")) if isinstance(where, str) else where
    where = where or config.endpoints()
    if not where:
        raise NotConnected('connect(): no endpoints. Pass endpoints=["host:2379"] or set SKYWARD_ETCD_ENDPOINTS')
    who = user or config.user()
    known = password if password is not None else config.password()
    if bool(who) != bool(known):
        raise ValueError("connect(): user and password go together (or SKYWARD_ETCD_USER and SKYWARD_ETCD_PASSWORD)")
    return Connection(
        Session(
            where,
            namespace=namespace or config.namespace(),
            secret=secret or config.secret(),
            tls=tls,
            login=Login(who, known) if who and known else None,
        )
    )


# ---- the active session

_here: ContextVar[Session | None] = ContextVar("skyward_etcd_session", default=None)
_installed: list[Session] = []
"""Of the whole process, the last one counts: threads that a program starts do not inherit the context."""
_why_none = [""]


def install(session: Session | None, *, why: str = "") -> None:
    """Make this the process's session, or with ``None`` say ``why`` there is none: for node processes."""
    _installed[:] = [session] if session is not None else []
    _why_none[0] = why


@contextlib.contextmanager
def activated(session: Session) -> Generator[Session]:
    """Make this the session of the block, for its thread, its tasks and the threads that they start."""
    token = _here.set(session)
    _installed.append(session)
    try:
        yield session
    finally:
        _installed.remove(session)
        with contextlib.suppress(ValueError):  # left in another context, as an async with may be
            _here.reset(token)


def current() -> Session:
    """Return the active session.

    Raises:
        NotConnected: there is none, and why.
    """
    session = _here.get() or (_installed[-1] if _installed else None)
    if session is None:
        raise NotConnected(_why_none[0] or _OUTSIDE)
    return session


class _Active(Shared):
    def _session(self) -> Session:
        return current()


_active = _Active()

dict = _active.dict
set = _active.set
counter = _active.counter
queue = _active.queue
barrier = _active.barrier
lock = _active.lock
