"""The first use of a name says what it is; every later use must agree."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from skyward_etcd.errors import CorruptValue, WrongKind
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import txn_repeatable
from skyward_etcd.ops.effects import Mind, Operation
from skyward_etcd.ops.layout import KINDS, Kind
from skyward_etcd.wire import messages as pb

__all__ = ["agree"]

_FORMAT = 1


def agree(mind: Mind, kind: Kind, name: str, settings: Mapping[str, int] | None = None) -> Operation[None]:
    """Make sure that ``name`` is a collection of this kind with these settings, and of no other.

    Once per process and name: one round trip, two when nobody has used the name before. It reads before it writes,
    so that a cluster without space can still be read.

    Raises:
        WrongKind: the name is another kind of collection's.
        ValueError: the settings differ.
    """
    agreed = ("agreed", kind, name, *sorted(settings.items())) if settings else ("agreed", kind, name)
    if mind.notes.get(agreed):
        return
    expected = {"kind": kind, "format": _FORMAT, **(settings or {})}
    keys = {other: mind.layout.meta(other, name) for other in KINDS}
    # Nested, so that it is no read-only transaction: etcd before 3.4.20 and 3.5.5 panics when the client of one goes
    # away (etcd #14110).
    look = kv.nested(then=[kv.get(key) for key in keys.values()])
    reply = yield from txn_repeatable(kv.txn(then=[look]))
    found = _found(reply.responses[0].response_txn)
    if not found:
        mine = kv.put(keys[kind], json.dumps(expected, separators=(",", ":")).encode())
        reply = yield from txn_repeatable(
            kv.txn([kv.absent(key) for key in keys.values()], [mine], [kv.get(key) for key in keys.values()])
        )
        if not reply.succeeded:
            found = _found(reply)
    for other, key in keys.items():
        if key in found and other != kind:
            raise WrongKind(f"{kind} {name!r}: this name is a {other} already; give the {kind} another name")
    stored = _read(keys[kind], found.get(keys[kind], b"null")) or expected
    if stored != expected:
        raise ValueError(f"{kind} {name!r} was made with {_without_kind(stored)}, not {_without_kind(expected)}")
    mind.notes[agreed] = True


def _found(reply: pb.TxnResponse) -> dict[bytes, bytes]:
    return {found.key: found.value for response in reply.responses for found in response.response_range.kvs}


def _read(key: bytes, value: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        said: Any = json.loads(value)
        if type(said) in (dict, type(None)):
            return said
    raise CorruptValue(f"{key.decode()} is {value[:64]!r}: not what this library writes there")


def _without_kind(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if key != "kind")
