"""One call on its way through the pool, and what its node is told."""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Iterator
from typing import Any

from skyward_etcd.pool.failure import dumps
from skyward_etcd.pool.function import FunctionFuture, PendingFunction, name_of
from skyward_etcd.pool.protocol import Feed, Run
from skyward_etcd.pool.streams import streamed_arguments

__all__ = ["Call", "Order"]

_numbers = itertools.count(1)


class Order:
    """What a node needs to run a pending function, pickled once however many nodes get it.

    Raises:
        UnsupportedType: function or arguments cannot be pickled.
    """

    def __init__(self, pending: PendingFunction[Any]) -> None:
        if not isinstance(pending, PendingFunction):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a pool runs what a call of a @function returns, not {pending!r}")
        self.name = name_of(pending.fn)
        streamed = streamed_arguments(pending.fn, pending.args, pending.kwargs)
        self.feeds: list[Iterator[Any]] = []
        args = [self._fed(one) if place in streamed else one for place, one in enumerate(pending.args)]
        kwargs = {key: self._fed(one) if key in streamed else one for key, one in pending.kwargs.items()}
        self.payload = dumps((pending.fn, args, kwargs), lambda: f"{self.name} with its arguments")

    def _fed(self, source: Iterator[Any]) -> Feed:
        self.feeds.append(source)
        return Feed(len(self.feeds) - 1)


class Call(FunctionFuture[Any]):
    """The future result of one run of a function. Cancelling it works until a node has taken it."""

    def __init__(self, order: Order, *, timeout: float | None, retries: int, target: int | None = None) -> None:
        super().__init__()
        self.order = order
        self.timeout = timeout
        self.target = target
        self.retries = 0 if order.feeds else retries  # an iterator is used up by the first try
        self.number = next(_numbers)
        self.context = contextvars.copy_context()
        """The caller's: what the function prints goes where the caller's own prints go."""

    @property
    def message(self) -> Run:
        """What the node is told."""
        return Run(self.number, self.order.name, self.order.payload)

    def take(self) -> bool:
        """Whether it is to be run: the first try is not if the caller has cancelled it meanwhile."""
        return self.running() or self.set_running_or_notify_cancel()
