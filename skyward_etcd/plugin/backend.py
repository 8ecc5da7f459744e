"""What Skyward's collections call, answered by ours: each call is one operation of a public collection.

Skyward hands values over as pickles. They are opened here, so that ``skyward_etcd.dict("x")`` and ``etcdctl`` see what
was stored, and so that values which are data are stored as data.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from skyward_etcd.active import Shared
from skyward_etcd.collections.base import Consistency
from skyward_etcd.collections.counter import Counter
from skyward_etcd.collections.dict import ABSENT, Dict
from skyward_etcd.collections.lock import Hold
from skyward_etcd.collections.set import Set
from skyward_etcd.errors import BrokenBarrier, CorruptValue, UnsupportedType, WrongKind

__all__ = ["Backend", "Pickles"]

_KINDS: Final = {"map": "dict"}
"""Skyward's words for kinds of collections, where they are not ours."""
_OPAQUE: Final = "pickle"
"""What begins a set's member that has no other form than its pickle."""
_MAC_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Pickles:
    """How Skyward makes bytes of values, and the secret that signs those which have to stay bytes."""

    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    secret: bytes


class Backend:
    """For ``skyward.worker.distributed.install``: may be called by many threads, and blocks them as Skyward's own does.

    ``shared`` are the collections to use. What is not said here is as they say.

    - Kinds do not share names in Skyward. So the first kind to use a name gets it, and any other is called
      ``name (kind)`` in etcd: all processes see the same, as what a name is never changes.
    - Sets and the keys of dicts go by equality, not by bytes. A set's member that cannot be a key (a list, an instance
      of a class) is what its pickle is, as in Skyward.
    - A lock's token is our fencing token. Its ``ttl`` is not used: what a dead process held is free with its session.
    """

    def __init__(self, shared: Shared, pickles: Pickles) -> None:
        self._shared = shared
        self._pickles = pickles
        self._names: dict[tuple[str, str], str] = {}
        """What a collection is called whose own name is another kind's."""
        self._holds: dict[tuple[str, str], Hold] = {}

    def __call__(self, kind: str, name: str, method: str, args: tuple[Any, ...], params: Mapping[str, Any]) -> object:
        """Do one call of Skyward's, and return what it expects.

        Raises:
            TimeoutError: a lock was not to be had, or a barrier not complete, in time.
            BrokenBarrier: another participant of a barrier timed out, died or left.
            HoldLost: a lock was lost while it was held.
            NotImplementedError: Skyward has learned a call that this version does not know.
        """
        answer = getattr(self, f"_{kind}_{method}", None)
        if answer is None:
            raise NotImplementedError(
                f"{kind}.{method}: this skyward-etcd does not know this call of Skyward's: upgrade it"
            )
        called = self._names.get((kind, name), name)
        try:
            return answer(called, *args, params=params)
        except WrongKind:  # which is found out before anything is done
            if called != name:
                raise
        called = self._names[kind, name] = f"{name} ({_KINDS.get(kind, kind)})"
        return answer(called, *args, params=params)

    # ---- dict

    def _map_put(self, name: str, key: Any, value: bytes, *, params: Mapping[str, Any]) -> None:
        self._dict(name, params).set(key, self._pickles.loads(value))

    def _map_get(self, name: str, key: Any, *, params: Mapping[str, Any]) -> bytes | None:
        return self._pickled(self._dict(name, params).get(key, ABSENT))

    def _map_contains(self, name: str, key: Any, *, params: Mapping[str, Any]) -> bool:
        return self._dict(name, params).contains(key)

    def _map_remove(self, name: str, key: Any, *, params: Mapping[str, Any]) -> bool:
        return self._dict(name, params).delete(key)

    def _map_size(self, name: str, *, params: Mapping[str, Any]) -> int:
        return self._dict(name, params).size()

    def _map_items(self, name: str, *, params: Mapping[str, Any]) -> list[tuple[Any, bytes]]:
        return [(key, self._pickles.dumps(value)) for key, value in self._dict(name, params).items()]

    def _map_clear(self, name: str, *, params: Mapping[str, Any]) -> None:
        self._dict(name, params).clear()

    def _dict(self, name: str, params: Mapping[str, Any]) -> Dict:
        return self._shared.dict(name, consistency=_consistency(params))

    # ---- set

    def _set_add(self, name: str, member: bytes, *, params: Mapping[str, Any]) -> bool:
        return self._of_member(self._set(name, params).add, member)

    def _set_remove(self, name: str, member: bytes, *, params: Mapping[str, Any]) -> bool:
        return self._of_member(self._set(name, params).discard, member)

    def _set_contains(self, name: str, member: bytes, *, params: Mapping[str, Any]) -> bool:
        return self._of_member(self._set(name, params).contains, member)

    def _set_size(self, name: str, *, params: Mapping[str, Any]) -> int:
        return self._set(name, params).size()

    def _set_items(self, name: str, *, params: Mapping[str, Any]) -> list[bytes]:
        return [self._opened(member) or self._pickles.dumps(member) for member in self._set(name, params).members()]

    def _set_clear(self, name: str, *, params: Mapping[str, Any]) -> None:
        self._set(name, params).clear()

    def _set(self, name: str, params: Mapping[str, Any]) -> Set:
        return self._shared.set(name, consistency=_consistency(params))

    def _of_member(self, operation: Callable[[Any], bool], pickle: bytes) -> bool:
        try:
            return operation(self._pickles.loads(pickle))
        except UnsupportedType:
            signed = self._signature(pickle) + pickle
            return operation((_OPAQUE, base64.b85encode(signed).decode()))

    def _opened(self, member: Any) -> bytes | None:
        """Return the pickle of a member that is one; None if it is anything else.

        Raises:
            CorruptValue: it was not signed with this pool's secret.
        """
        match member:
            case (str(tag), str(text)) if tag == _OPAQUE:
                pass
            case _:
                return None
        try:
            signed = base64.b85decode(text)
        except ValueError:
            return None
        signature, pickle = signed[:_MAC_SIZE], signed[_MAC_SIZE:]
        if not hmac.compare_digest(signature, self._signature(pickle)):
            raise CorruptValue("a set's member is a pickle that this pool has not signed: it was not loaded")
        return pickle

    def _signature(self, pickle: bytes) -> bytes:
        return hmac.digest(self._pickles.secret, b"set member" + pickle, "sha256")

    # ---- counter

    def _counter_add(self, name: str, delta: int, *, params: Mapping[str, Any]) -> None:
        self._counter(name, params).increment(delta)

    def _counter_get(self, name: str, *, params: Mapping[str, Any]) -> int:
        return self._counter(name, params).get()

    def _counter_reset(self, name: str, *, params: Mapping[str, Any]) -> None:
        self._counter(name, params).reset()

    def _counter(self, name: str, params: Mapping[str, Any]) -> Counter:
        return self._shared.counter(name, consistency=_consistency(params))

    # ---- queue

    def _queue_offer(self, name: str, item: bytes, *, params: Mapping[str, Any]) -> None:
        del params
        self._shared.queue(name).put(self._pickles.loads(item))

    def _queue_poll(self, name: str, *, params: Mapping[str, Any]) -> bytes | None:
        del params
        return self._pickled(self._shared.queue(name).get(timeout=0, default=ABSENT))

    def _queue_size(self, name: str, *, params: Mapping[str, Any]) -> int:
        del params
        return len(self._shared.queue(name))

    def _queue_clear(self, name: str, *, params: Mapping[str, Any]) -> None:
        del params
        self._shared.queue(name).clear()

    # ---- barrier

    def _barrier_wait(self, name: str, timeout: float | None, *, params: Mapping[str, Any]) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._shared.barrier(name, parties=params["parties"]).wait(timeout)
        except BrokenBarrier as broken:
            if deadline is None or time.monotonic() < deadline:
                raise
            raise TimeoutError(str(broken)) from broken

    # ---- lock

    def _lock_acquire(self, name: str, *, params: Mapping[str, Any]) -> str:
        hold = self._shared.lock(name, params["timeout"], ttl=params["ttl"]).acquire()
        token = str(hold.token)
        self._holds[name, token] = hold
        return token

    def _lock_renew(self, name: str, token: str, *, params: Mapping[str, Any]) -> bool:
        """Tell whether it is held for certain. The session has renewed it, however often this is asked."""
        del params
        hold = self._holds.get((name, token))
        return hold is not None and hold.valid

    def _lock_release(self, name: str, token: str, *, params: Mapping[str, Any]) -> None:
        del params
        if hold := self._holds.pop((name, token), None):
            hold.release()

    # ---- values

    def _pickled(self, value: Any) -> bytes | None:
        return None if value is ABSENT else self._pickles.dumps(value)


def _consistency(params: Mapping[str, Any]) -> Consistency:
    """Return the level of reads. Writes are always acknowledged by a majority."""
    return "eventual" if params.get("consistency") == "eventual" else "strong"
