"""Skyward's ``Session``: several pools that end together. Not to be taken for the session of a cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from skyward_etcd.errors import PoolError
from skyward_etcd.pool.compute import Compute
from skyward_etcd.pool.spec import Options, Spec, SpecKwargs

__all__ = ["Session"]


class Session:
    """Several pools for one ``with`` block: ``session.compute(nodes=2)`` opens one, the end of the block closes all.

    Each pool has a cluster of its own. The arguments are Skyward's, and ignored.
    """

    def __init__(self, *, console: bool | str = True, logging: object = True, shutdown_timeout: float = 10.0) -> None:
        del console, logging, shutdown_timeout
        self._pools: dict[str, Compute] = {}
        self._open: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        self._open = contextlib.ExitStack()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pools, self._open = self._open, None
        if pools:
            pools.close()
        self._pools.clear()

    @property
    def is_active(self) -> bool:
        """Whether pools can be opened."""
        return self._open is not None

    def compute(
        self,
        *specs: Spec,
        name: str | None = None,
        options: Options | None = None,
        durable: str | Path | None = None,
        namespace: str = "default",
        etcd: str | Path | None = None,
        **kwargs: Unpack[SpecKwargs],
    ) -> Compute:
        """Open a pool, described as for `Compute`, until the end of the session's block.

        Raises:
            PoolError: the session is not open, or the pool could not be started.
            ValueError: a pool of this name is open already.
        """
        if self._open is None:
            raise PoolError("this session is not open: use it in a with block")
        if name in self._pools:
            raise ValueError(f"this session has a pool named {name!r} already")
        pool = Compute(*specs, name=name, options=options, durable=durable, namespace=namespace, etcd=etcd, **kwargs)
        pool.open()
        self._open.callback(pool.close)
        self._pools[pool.name] = pool
        return pool

    def stop_pool(self, name: str) -> bool:
        """Close a pool before the others; False if there is none of that name."""
        pool = self._pools.pop(name, None)
        if pool:
            pool.close()
        return pool is not None
