"""Which session ``sky.dict("x")`` means here, and the shortcuts that use it."""

from __future__ import annotations

import contextlib
import copyreg
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from skyward_etcd import config
from skyward_etcd.collections.barrier import Barrier
from skyward_etcd.collections.base import Collection, Consistency, check_timeout
from skyward_etcd.collections.counter import Counter
from skyward_etcd.collections.dict import Dict
from skyward_etcd.collections.lock import Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.collections.set import Set
from skyward_etcd.errors import NotConnected
from skyward_etcd.session.session import Login, Session, Tls

__all__ = [
    "Connection",
    "NoSession",
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


class Shared(ABC):
    """The collections of one session. Making one costs nothing and asks nobody: the first operation does."""

    @abstractmethod
    def _session(self) -> Session:
        """Return the session that they are of, or raise what keeps it from being had."""

    def dict(self, name: str, *, consistency: Consistency | None = "eventual", near_cache: bool = False) -> Dict:
        """Return the `Dict` of this name.

        With ``near_cache``, this process keeps what was looked up, and reads it without asking: changes by others show
        one watch delivery later, its own at once. For eventual reads only.
        """
        return Dict(self._session(), name, consistency=consistency, near_cache=near_cache)

    def set(self, name: str, *, consistency: Consistency | None = "eventual", near_cache: bool = False) -> Set:
        """Return the `Set` of this name; ``near_cache`` as for `dict`."""
        return Set(self._session(), name, consistency=consistency, near_cache=near_cache)

    def counter(self, name: str, *, consistency: Consistency | None = "eventual") -> Counter:
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
        if parties is not None and parties != participants:
            raise ValueError(f"barrier({name!r}): n={n} and parties={parties} mean the same, and differ")
        return Barrier(self._session(), name, participants)

    def lock(self, name: str, timeout: float | None = None, *, ttl: float | None = None) -> Lock:
        """Return the `Lock` of this name. ``timeout``: how long `acquire` waits, in seconds; ``None``: for ever.

        ``ttl`` is accepted for Skyward 0.11's sake, and not used: a dead holder's lock goes with its session's lease.
        """
        if ttl is not None and not (check_timeout(ttl) or 0) > 0:
            raise ValueError(f"lock({name!r}): ttl is a positive number of seconds, not {ttl!r}")
        return Lock(self._session(), name, timeout=timeout)


class Connection(Shared):
    """A session of one's own, without a pool: what `connect` returns."""

    def __init__(self, session: Session) -> None:
        self._own = session
        self._leave = contextlib.ExitStack()

    def _session(self) -> Session:
        return self._own

    @property
    def session(self) -> Session:
        """What the collections' operations run behind; it has no lease before it needs one."""
        return self._own

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints of the cluster's members, as they were given to `connect`."""
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
        endpoints: ``host:port``, ``https://host:port`` or ``unix:///path`` of the members; by default from
            ``SKYWARD_ETCD_ENDPOINTS``.
        namespace: keeps programs apart; by default from ``SKYWARD_ETCD_NAMESPACE``, else ``default``.
        secret: signs and checks pickled values; by default from ``SKYWARD_ETCD_SECRET``; without it they are refused.
        user: of etcd's own authentication; by default from ``SKYWARD_ETCD_USER``.
        password: the user's; by default from ``SKYWARD_ETCD_PASSWORD``.
        tls: ``Tls.of_files(ca, certificate, key)``, for a cluster that wants it, or ``Tls`` of the same as PEM data; by
            default of the files that ``SKYWARD_ETCD_TLS_CA``, ``SKYWARD_ETCD_TLS_CERTIFICATE`` and
            ``SKYWARD_ETCD_TLS_KEY`` name. Files that are replaced are read again: each new connection takes the new.

    Raises:
        NotConnected: there are no endpoints.
        OSError: a file with a certificate cannot be read.
        PermissionDenied: the cluster does not know the user (on entering the block).
        TypeError, ValueError: what was given is no endpoint, no secret, or no certificate with its key.
        Unavailable: no endpoint answers (on entering the block).
    """
    given = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    where = list(given or config.endpoints())
    if not where:
        raise NotConnected('connect(): no endpoints. Pass endpoints=["host:2379"] or set SKYWARD_ETCD_ENDPOINTS')
    who = user or config.user()
    known = password if password is not None else config.password()
    if bool(who) != bool(known):
        raise ValueError("connect(): user and password go together (or SKYWARD_ETCD_USER and SKYWARD_ETCD_PASSWORD)")
    if secret is not None and not isinstance(secret, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"connect(): a secret is bytes, not {type(secret).__name__}")
    shown = tls or _tls_of_files()
    if shown:
        shown.check()
    return Connection(
        Session(
            where,
            namespace=namespace or config.namespace(),
            secret=secret or config.secret(),
            tls=shown,
            login=Login(who, known) if who and known else None,
        )
    )


def _tls_of_files() -> Tls | None:
    files = config.tls_files()
    if files is None:
        return None
    return Tls.of_files(files.ca, files.certificate, files.key)


# ---- the active session


@dataclass(frozen=True, slots=True)
class NoSession:
    """Stands where a session would be, and says why there is none: a pool without a cluster."""

    why: str


S = TypeVar("S", bound=Session | NoSession)

_here: ContextVar[Session | NoSession | None] = ContextVar("skyward_etcd_session", default=None)
_installed: list[Session | NoSession] = []
"""Of the whole process, the last one counts: threads that a program starts do not inherit the context."""


def install(session: Session | NoSession) -> None:
    """Make this the process's session: for node processes."""
    _installed[:] = [session]


@contextlib.contextmanager
def activated(session: S) -> Generator[S]:
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
    found = _here.get()
    if found is None or found not in _installed:  # none here, or one whose block was left before an inner one was
        found = _installed[-1] if _installed else NoSession(_OUTSIDE)
    if isinstance(found, NoSession):
        raise NotConnected(found.why)
    return found


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


# ---- handles that travel: what is sent to a function is the name, and there it means that pool's collection


def _named(kind: str, name: str, options: Mapping[str, Any]) -> Collection:
    make: Callable[..., Collection] = getattr(_active, kind)
    return make(name, **options)


def _as_name(handle: Collection) -> tuple[Callable[..., Collection], tuple[str, str, Mapping[str, Any]]]:
    if handle.guard is not None:
        raise TypeError(f"{handle!r}: this handle writes through a hold, which stays where it was acquired")
    match handle:
        case Barrier():
            return _named, (handle.kind, handle.name, {"n": handle.n})
        case Lock():
            return _named, (handle.kind, handle.name, {"timeout": handle.timeout})
        case Queue():
            return _named, (handle.kind, handle.name, {"max_deliveries": handle.max_deliveries})
        case Dict() | Set():
            options = {"consistency": handle.consistency, "near_cache": handle.near_cache}
            return _named, (handle.kind, handle.name, options)
        case _:
            return _named, (handle.kind, handle.name, {"consistency": handle.consistency})


for _kind in (Barrier, Counter, Dict, Lock, Queue, Set):
    copyreg.pickle(_kind, _as_name)
