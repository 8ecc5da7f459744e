"""A pool of nodes on this machine, and the cluster that they run: ``with Compute(nodes=3) as pool:``.

Whatever ends the block, or this process, no process of the pool is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, cast, overload

from skyward_etcd.active import NoSession, Shared
from skyward_etcd.active import activated as activated_session
from skyward_etcd.errors import NotConnected, PoolError
from skyward_etcd.pool import context, fleet, spec
from skyward_etcd.pool.call import Call, Order
from skyward_etcd.pool.dispatch import Dispatcher
from skyward_etcd.pool.function import FunctionFuture, PendingFunction, PendingFunctionGroup
from skyward_etcd.pool.progress import wait_for_all
from skyward_etcd.pool.spec import Nodes, Options, Spec, SpecKwargs, Worker
from skyward_etcd.session.session import Session, check_namespace

__all__ = ["Compute"]

T = TypeVar("T")
R = TypeVar("R")

_START_S = 60.0
_INTERRUPTED_S = 1.0
"""Whoever pressed Ctrl-C does not wait for a node that is deep in a C call."""


class Compute(Shared):
    """A pool of ``nodes`` processes that run functions and share collections. Open it with ``with`` or ``async with``.

    One or two nodes run one etcd member, three and more run three. ``durable`` names a directory where the collections
    outlive the pool; without it they end with it. ``namespace`` keeps programs apart in a durable cluster. ``etcd`` is
    the path of the binary, found by itself if there is one. ``name`` is for people. Everything else is `Spec`'s, and
    `Options`'.

    >>> @sky.function
    ... def count() -> int:
    ...     return sky.counter("calls").increment()
    >>> with sky.Compute(nodes=3) as pool:
    ...     sorted(count() @ pool), pool.counter("calls").value
    ([1, 2, 3], 3)
    """

    def __init__(
        self,
        *specs: Spec,
        name: str | None = None,
        options: Options | None = None,
        durable: str | Path | None = None,
        namespace: str = "default",
        etcd: str | Path | None = None,
        **kwargs: Unpack[SpecKwargs],
    ) -> None:
        if specs and kwargs:
            raise ValueError(f"give Spec(…) or {', '.join(kwargs)}, not both")
        self._specs = specs or (Spec(**kwargs),)
        self._options = options if options is not None else Options()
        for given, wanted in (*((one, Spec) for one in self._specs), (self._options, Options)):
            if not isinstance(given, wanted):  # pyright: ignore[reportUnnecessaryIsInstance]  callers need not be typed
                raise TypeError(f"Compute takes Spec(…), or nodes=… and so on, and options=Options(…), not {given!r}")
        if durable is not None and not self._options.clustered:
            raise ValueError("durable= keeps the cluster's state, and with cluster=False there is none")
        self.name = name or f"pool-{secrets.token_hex(3)}"
        self._worker = self._options.worker or Worker()
        self._dispatcher = Dispatcher()
        self._blueprint = fleet.Blueprint(
            nodes=max(1, Nodes.from_spec(self._specs[0].nodes).desired),
            worker=self._worker,
            clustered=self._options.clustered,
            spot=self._specs[0].allocation == "spot",
            durable=Path(durable).absolute() if durable is not None else None,
            namespace=check_namespace(namespace),
            etcd=etcd,
            env=dict(self._specs[0].image.env),
            start_s=self._options.provision_timeout or _START_S,
            job=self.name,
        )
        self._fleet = fleet.Fleet(
            self._blueprint,
            self._dispatcher,
            on_change=self._follow,
            on_lost=self._lose,
            on_recovered=self._start_over,
        )
        self._own_session: Session | None = None
        self._state: Literal["new", "open", "closed"] = "new"
        self._leave = contextlib.ExitStack()
        spec.warn_of_ignored(self._specs, self._options, stacklevel=2)

    # --- life ---

    def open(self) -> None:
        """Start the pool, without a ``with`` block and without making it the one that ``sky`` means.

        Raises:
            BinaryNotFound: there is no etcd.
            UnsafeEtcd: the etcd to be had cannot keep what this pool promises.
            PoolError: it could not be started, for the reason given, or was started before.
        """
        if self._state != "new":
            raise PoolError(f"{self.name} is {self._state}: make another Compute")
        self._state = "closed"
        self._fleet.start()
        if self._options.clustered:
            self._own_session = Session(
                self._fleet.endpoints, namespace=self._blueprint.namespace, secret=self._blueprint.secret, node="driver"
            )
            self._follow()  # the members may have changed since the line before
        self._state = "open"

    def close(self, timeout: float | None = None) -> None:
        """End all nodes; those not gone after ``timeout`` seconds (`Options.shutdown_timeout`) are killed.

        Functions that still run are not waited for. May be called twice.
        """
        self._state = "closed"
        self._dispatcher.close(PoolError(f"{self.name} is closed"))
        if self._fleet.lost:  # nothing can be handed back: trying to would take until the time is up
            self._fleet.kill()
        try:
            if self._own_session:
                self._own_session.close()
                self._own_session = None
        finally:
            self._fleet.close(self._options.shutdown_timeout if timeout is None else timeout)

    def recover(self) -> None:
        """Make a new cluster from what is left of one that has lost its majority for good, and go on with that.

        After `QuorumLost`, and only when you say so, as it may lose acknowledged writes: those that the surviving
        member had not got, or of which it did not know that they were safe. What was got from a queue may come again.
        All locks, claims and barrier places are free; fencing tokens go on growing. Returns when functions run again;
        the nodes and members that are still missing then are replaced in the background.

        Raises:
            QuorumLost: no member is left to recover from.
            PoolError, Unavailable: it was not possible, for the reason given, or there is nothing to recover. If a
                member is left, it can be tried again.
        """
        if self._state != "open":
            raise PoolError(f"{self.name} is {self._state}")
        self._fleet.recover()

    async def recover_async(self) -> None:
        """`recover`, without blocking the event loop."""
        await asyncio.to_thread(self.recover)

    def __enter__(self) -> Self:
        self.open()
        self._activate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()
        self.close(_INTERRUPTED_S if kind is KeyboardInterrupt else None)

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.open))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._fleet.kill()
            await asyncio.wait([starting])
            await asyncio.to_thread(self.close)
            raise
        self._activate()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()
        await asyncio.shield(asyncio.to_thread(self.close))

    @property
    def is_active(self) -> bool:
        """Whether the pool takes functions."""
        return self._state == "open" and self._dispatcher.takes_calls

    @property
    def endpoints(self) -> tuple[str, ...]:
        """``unix:///path`` of the members of the pool's cluster: for `connect` in another process, and for etcdctl.

        Others while the pool lives, when one was lost. Empty without a cluster, and when the pool is not open.
        """
        return self._fleet.endpoints if self._state == "open" else ()

    @property
    def concurrency(self) -> int:
        """How many functions one node runs at a time."""
        return self._worker.concurrency

    def current_nodes(self) -> int:
        """Return how many nodes take functions now: fewer than asked for while a lost one is replaced."""
        return len(self._dispatcher.nodes)

    # --- functions ---

    def run(self, pending: PendingFunction[T], /, *, target: int | Literal["head"] | None = None) -> T:
        """Run a function on one node and return its result: ``pending >> pool``.

        Nodes with a free place take turns; ``target`` asks for one node. What the function raises is raised here, with
        the node's traceback as its cause.

        Raises:
            NodeLost: the node died under the function.
            TimeoutError: it ran longer than its timeout.
            UnsupportedType: function, arguments or result cannot be pickled.
            PoolError: the pool is not open.
        """
        call = self._submit(pending, target=target)
        return cast("T", self._result(call))

    def run_async(
        self, pending: PendingFunction[T], /, *, target: int | Literal["head"] | None = None
    ) -> FunctionFuture[T]:
        """Run a function on one node, and return a future at once: ``pending > pool``. It can be awaited too.

        Raises:
            UnsupportedType: function or arguments cannot be pickled.
            PoolError: the pool is not open.
        """
        return self._submit(pending, target=target)

    def broadcast(self, pending: PendingFunction[T], /) -> list[T]:
        """Run a function on every node, and return the results in the order of the nodes: ``pending @ pool``.

        Raises the first error; the other nodes finish what they have begun.
        """
        order = Order(pending)
        if order.feeds and self._blueprint.nodes > 1:
            raise TypeError(f"{order.name} @ pool: an iterator can be read once, not by every node; give it a list")
        calls = [self._call(pending, order, target=node) for node in range(self._blueprint.nodes)]
        self._submit_all(calls)
        return list(self._results(calls, f"{order.name} @ {self._blueprint.nodes} nodes"))

    def run_parallel(self, group: PendingFunctionGroup[R], /) -> R:
        """Run a group side by side: ``group >> pool``. A tuple of results, or an iterator if the group streams.

        Raises the first error; calls that have not begun are not begun any more.
        """
        calls = [self._call(pending, Order(pending)) for pending in group.items]
        self._submit_all(calls)
        if group.stream:
            return cast("R", self._stream(calls, group))
        return cast("R", self._results(calls, f"{len(calls)} functions", timeout=group.timeout))

    @overload
    def map(self, fn: Callable[[T], PendingFunction[R]], items: Iterable[T]) -> list[R]: ...
    @overload
    def map(self, fn: Callable[[T], R], items: Iterable[T]) -> list[R]: ...

    def map(self, fn: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
        """Run ``fn`` on each item, on all nodes, and return the results in the order of the items.

        ``fn`` may be a plain function or a ``@function``. Items are taken as places become free, so that there may be
        any number. Raises the first error.
        """
        window: deque[Call] = deque()
        results: list[Any] = []
        try:
            for item in items:
                window.append(self._submit(_applied(fn, item)))
                if len(window) >= 4 * self._blueprint.nodes * self.concurrency:
                    results.append(self._result(window.popleft()))
            while window:
                results.append(self._result(window.popleft()))
        except BaseException:
            self._cancel(window)
            raise
        return results

    def __repr__(self) -> str:
        return f"<Compute {self.name}: {self._blueprint.nodes} nodes, {self._state}>"

    # --- inside ---

    def _follow(self) -> None:
        session, endpoints = self._own_session, self._fleet.endpoints
        if session and endpoints:
            session.follow(endpoints)

    def _lose(self, reason: str) -> None:
        if self._own_session:
            self._own_session.lose(reason)

    def _start_over(self, reason: str) -> None:
        if self._own_session:
            self._own_session.start_over(self._fleet.endpoints, reason)

    def _session(self) -> Session:
        if self._own_session is None:
            raise NotConnected(
                f"{self.name} is {self._state}: use its collections inside its with block"
                if self._options.clustered
                else self._no_cluster
            )
        return self._own_session

    @property
    def _no_cluster(self) -> str:
        return f"{self.name} has no cluster: it was made with Options(cluster=False)"

    def _activate(self) -> None:
        self._leave.enter_context(context.activated(self))
        self._leave.enter_context(activated_session(self._own_session or NoSession(self._no_cluster)))

    def _call(self, pending: PendingFunction[Any], order: Order, *, target: int | None = None) -> Call:
        timeout = pending.timeout if pending.timeout is not None else self._options.default_compute_timeout
        retries = pending.retries if pending.retries is not None else self._options.retry_on_interruption
        return Call(order, timeout=timeout, retries=retries, target=target)

    def _submit(self, pending: PendingFunction[Any], *, target: int | Literal["head"] | None = None) -> Call:
        node = 0 if target == "head" else target
        if node is not None and not 0 <= node < self._blueprint.nodes:
            raise ValueError(f"target={target!r}: the nodes are numbered from 0 to {self._blueprint.nodes - 1}")
        call = self._call(pending, Order(pending), target=node)
        self._submit_all([call])
        return call

    def _submit_all(self, calls: Sequence[Call]) -> None:
        if self._state == "new":
            raise PoolError(f"{self.name} is not open: send functions from inside `with Compute(...) as pool:`")
        self._dispatcher.submit(calls)

    def _result(self, call: Call) -> Any:
        """Wait for one call; whoever is interrupted meanwhile wants it no more."""
        try:
            return call.result()
        except BaseException:
            self._cancel([call])
            raise

    def _results(self, calls: Sequence[Call], label: str, *, timeout: float | None = None) -> tuple[Any, ...]:
        try:
            if not wait_for_all(calls, label=label, timeout=timeout, shown=self._shows_progress):
                raise TimeoutError(f"{label} took longer than {timeout:g} s")
        except BaseException:
            self._cancel(calls)
            raise
        failed = next((call for call in calls if call.done() and call.exception() is not None), None)
        if failed:
            for call in calls:
                call.cancel()  # works for those that have not begun
            failed.result()
        return tuple(call.result() for call in calls)

    def _stream(self, calls: Sequence[Call], group: PendingFunctionGroup[Any]) -> Iterator[Any]:
        deadline = None if group.timeout is None else time.monotonic() + group.timeout
        try:
            for call in calls if group.ordered else as_completed(calls, group.timeout):
                yield call.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            self._cancel(call for call in calls if not call.done())

    def _cancel(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self._dispatcher.give_up(call, PoolError(f"the caller of {call.order.name} waits no longer"))

    @property
    def _shows_progress(self) -> bool:
        return self._options.console not in (False, "silent")


def _applied(fn: Callable[[T], Any], item: T) -> PendingFunction[Any]:
    """The call of a plain function, or of one that makes a call by itself."""
    return cast("PendingFunction[Any]", fn(item)) if hasattr(fn, "__sky_function__") else PendingFunction(fn, (item,))
