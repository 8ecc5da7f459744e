"""The textbook's recipes with a retry that does not ask what became of the first try: what the checks must catch."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from skyward_etcd.active import Connection
from skyward_etcd.errors import Unavailable
from skyward_etcd.ops import kv
from skyward_etcd.ops.keys import encode_key
from skyward_etcd.session.session import Session
from skyward_etcd.testing.history import EMPTY
from skyward_etcd.wire import methods


class _Naive:
    """A collection whose ``x_async`` is ``x`` on another thread."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self, name.removesuffix("_async"))
        return lambda *args, **options: asyncio.to_thread(call, *args, **options)

    def _insist(self, method: Any, request: Any) -> Any:
        """Send it until it is answered."""
        while True:
            try:
                return self._session.wire.call(method, request, timeout_s=3.0)
            except Unavailable:
                continue


class NaiveCounter(_Naive):
    """Reads, and writes if nothing has changed meanwhile: a lost answer makes it believe that another was quicker."""

    def increment(self) -> int:
        while True:
            found = self._insist(methods.RANGE, kv.read(self._key)).kvs
            total, revision = (int(found[0].value) + 1, found[0].mod_revision) if found else (1, 0)
            write = kv.txn((kv.modified_at(self._key, revision),), (kv.put(self._key, b"%d" % total),))
            if self._insist(methods.TXN, write).succeeded:
                return total

    def value(self) -> int:
        found = self._insist(methods.RANGE, kv.read(self._key)).kvs
        return int(found[0].value) if found else 0

    @property
    def _key(self) -> bytes:
        return self._session.layout.collection("counter", "counter") + b"base"


class NaiveSet(_Naive):
    """Adds what is not there: after a lost answer it finds its own member, and says that it is not new."""

    def add(self, member: str) -> bool:
        add = kv.txn((kv.absent(self._at(member)),), (kv.put(self._at(member), b""),))
        return bool(self._insist(methods.TXN, add).succeeded)

    def discard(self, member: str) -> bool:
        discard = kv.txn((kv.present(self._at(member)),), (kv.delete(self._at(member)),))
        return bool(self._insist(methods.TXN, discard).succeeded)

    def contains(self, member: str) -> bool:
        return bool(self._insist(methods.RANGE, kv.read(self._at(member))).kvs)

    def _at(self, member: str) -> bytes:
        return self._session.layout.collection("set", "set") + encode_key(member)


class NaiveQueue(_Naive):
    """Takes the oldest item unless another was quicker: what it has taken without hearing of it is lost."""

    def put(self, item: str) -> None:
        key = self._items + uuid.uuid4().hex.encode()
        self._insist(methods.TXN, kv.txn((), (kv.put(key, json.dumps(item).encode()),)))

    def put_many(self, items: list[str]) -> None:
        for item in items:
            self.put(item)

    def get(self, timeout: float, default: Any = EMPTY) -> Any:
        while True:
            request = kv.read(self._items, kv.prefix_end(self._items))
            request.sort_order, request.sort_target, request.limit = kv.Read.ASCEND, kv.Read.CREATE, 1
            oldest = self._insist(methods.RANGE, request).kvs
            if not oldest:
                return default
            take = kv.txn((kv.present(oldest[0].key),), (kv.delete(oldest[0].key),))
            if self._insist(methods.TXN, take).succeeded:
                return json.loads(oldest[0].value)

    def get_many(self, n: int, timeout: float) -> list[Any]:
        found = self.get(timeout)
        return [] if found is EMPTY else [found]

    @property
    def _items(self) -> bytes:
        return self._session.layout.collection("queue", "queue") + b"items/000000000000/"


PLANTED: Mapping[str, type[_Naive]] = {"counter": NaiveCounter, "set": NaiveSet, "queue": NaiveQueue}


def with_naive(kind: str, session: Session) -> Connection:
    """Return the session's collections, of which those of one kind are planted."""
    connection = Connection(session)
    planted = PLANTED[kind](session)

    def constructor(_: str, **__: Any) -> _Naive:
        return planted

    setattr(connection, kind, constructor)
    return connection
