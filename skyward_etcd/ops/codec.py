"""Turns values into the bytes that etcd keeps, and back into equal values of the same types.

A value is stored as JSON text where JSON gives it back exactly, so that ``etcdctl get`` shows it; else as a tag byte
that no JSON text begins with, and a binary form. Reading runs no code, except for a pickle signed with our own secret.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import pickle
from typing import Any, Final, cast

from skyward_etcd.errors import CorruptValue, UnsupportedType
from skyward_etcd.ops.binary import MAX_DEPTH, NotData, pack, too_large, unpack
from skyward_etcd.ops.keys import PLAIN_TEXT

__all__ = ["Codec"]

# The format: what the first byte says. Any other byte begins a JSON text.
_DATA: Final = b"\x01"
"""`binary.pack`."""
_PICKLE: Final = b"\x02"
"""HMAC-SHA256 (32 bytes), then a pickle."""

_MAC_SIZE: Final = hashlib.sha256().digest_size
_SHORTEST_SECRET: Final = 16
_WAY_OUT: Final = "sky.connect(secret=...), the same on every node; sky.Compute makes and hands out one by itself"


class Codec:
    """Encodes and decodes the values of one session.

    Data goes without a secret: None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset, range,
    complex, Decimal, Fraction, UUID, the types of ``datetime``, ``ZoneInfo``, numpy arrays and scalars, nested in each
    other up to 100 levels. All else, among it every subclass of these (named tuples, enums, ``OrderedDict``) and every
    class of your own, is pickled, for which writer and reader need the same ``secret``. In data, two references to one
    object become two equal objects.

    ``limit`` is the most bytes that an encoded value may take; etcd refuses a request of more than 1.5 MiB.
    """

    __slots__ = ("_limit", "_secret")

    def __init__(self, secret: bytes | None = None, *, limit: int = 1 << 20) -> None:
        if secret is not None and len(secret) < _SHORTEST_SECRET:
            raise ValueError(
                f"a secret of {len(secret)} bytes can be guessed, and whoever has it can run code here: "
                f"give at least {_SHORTEST_SECRET} random bytes: secrets.token_bytes(32)"
            )
        self._secret = secret
        self._limit = limit

    def __repr__(self) -> str:
        return f"Codec(secret={'None' if self._secret is None else '<hidden>'}, limit={self._limit})"

    def encode(self, value: object, *, key: bytes, what: str) -> bytes:
        """Return the bytes to store ``value`` with under the etcd key ``key``; ``what`` names the collection in errors.

        Raises:
            UnsupportedType: the value is not data, and there is no secret, or it cannot be pickled.
            ValueTooLarge: it takes more than the limit, or is nested too deeply.
            ValueError: it contains itself.
        """
        data = _json(value, self._limit)
        if data is None:
            try:
                data = _DATA + pack(value, limit=self._limit, what=what)
            except NotData as reason:
                data = self._pickled(value, reason.kind, key, what)
        if len(data) > self._limit:
            raise too_large(what, f"{len(data):,}", self._limit)
        return data

    def decode(self, data: bytes, *, key: bytes) -> Any:
        """Return the value that `encode` made ``data`` from, for this same ``key``.

        Raises:
            CorruptValue: the bytes are not ours, not whole, not meant for this key, or not signed with our secret.
            UnsupportedType: they are a pickle and there is no secret, or it needs what is not installed here.
        """
        tag = data[:1]
        if tag == _DATA:
            return unpack(memoryview(data)[1:])
        if tag == _PICKLE:
            return self._unpickled(data, key)
        return _from_json(data)

    def rebound(self, data: bytes, *, source: bytes, target: bytes) -> bytes:
        """Return what was stored for one key as it has to be stored for another. No pickle is loaded for that.

        Raises:
            UnsupportedType: it is a signed pickle, and there is no secret to sign it anew.
            CorruptValue: it is not signed with our secret, or not meant for the source.
        """
        if data[:1] != _PICKLE or source == target:
            return data
        if self._secret is None:
            raise UnsupportedType(
                f"the value at {source!r} is a signed pickle, moved with its writer's secret: {_WAY_OUT}"
            )
        signature, payload = data[1 : 1 + _MAC_SIZE], data[1 + _MAC_SIZE :]
        if not hmac.compare_digest(signature, _sign(self._secret, source, payload)):
            raise CorruptValue(
                f"the pickle at {source!r} is signed with another secret, copied from another key, or changed"
            )
        return _PICKLE + _sign(self._secret, target, payload) + payload

    def _pickled(self, value: object, kind: type, key: bytes, what: str) -> bytes:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if self._secret is None:
            raise UnsupportedType(
                f"{what}: {name} is not data, as dict, list, tuple, set, str, bytes, datetime and numpy arrays are. "
                f"To store any object, as a signed pickle, give the session a secret: {_WAY_OUT}"
            )
        try:
            payload = _dumps(value)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedType(f"{what}: {name} is not data, and cannot be pickled: {error}") from error
        return _PICKLE + _sign(self._secret, key, payload) + payload

    def _unpickled(self, data: bytes, key: bytes) -> Any:
        signature, payload = data[1 : 1 + _MAC_SIZE], data[1 + _MAC_SIZE :]
        if not payload:
            raise CorruptValue(f"a signed pickle of {len(data)} bytes, which is not even a whole signature")
        if self._secret is None:
            raise UnsupportedType(f"the value at {key!r} is a signed pickle, read with its writer's secret: {_WAY_OUT}")
        if not hmac.compare_digest(signature, _sign(self._secret, key, payload)):
            raise CorruptValue(
                f"the pickle at {key!r} was not loaded: signed with another secret, copied from another key, or changed"
            )
        try:
            return pickle.loads(payload)  # noqa: S301 - whoever signed it has the secret, and so may run code here
        except Exception as error:  # it is genuine: what is missing here is a module, or a class has changed
            reason = f"{type(error).__name__}: {error}"
            raise UnsupportedType(f"the pickle at {key!r} cannot be loaded here: {reason}") from error


def _sign(secret: bytes, key: bytes, payload: bytes) -> bytes:
    """Return the MAC of a pickle in its place; the key's length keeps one from passing for the end of the other."""
    return hmac.digest(secret, _PICKLE + len(key).to_bytes(8, "big") + key + payload, "sha256")


def _dumps(value: object) -> bytes:
    """Pickle with cloudpickle where it is installed: it also takes what a notebook or a ``__main__`` defines."""
    try:
        dumps = importlib.import_module("cloudpickle").dumps
    except ImportError:
        dumps = pickle.dumps
    return cast("bytes", dumps(value, protocol=5))


_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_CONSTANTS: Final = {None: b"null", True: b"true", False: b"false"}
_LONGEST_NUMBER: Final = 640
"""Any Python reads numbers of fewer digits: the lowest limit that ``sys.set_int_max_str_digits`` takes."""

_encoder: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))


def _json(value: object, limit: int) -> bytes | None:
    """Return ``value`` as JSON text, or None if JSON would not give back the same."""
    if value is None or value is True or value is False:
        return _CONSTANTS[value]
    kind = type(value)
    if kind is not str and kind not in _SCALARS and not _is_plain(value, limit):
        return None
    try:
        text = _encoder.encode(value)
        if len(text) >= _LONGEST_NUMBER and kind is not str and _has_long_number(text):
            return None
        return text.encode()
    except ValueError:  # nan, inf, a lone surrogate, or an int over this process's limit of digits
        return None


def _is_plain(value: object, limit: int) -> bool:  # noqa: C901 - in pieces, it takes small values twice as long
    """Tell whether ``value`` holds JSON's types only: level by level, so that neither depth nor cycles can hurt."""
    level: list[object] = [value]
    seen = 0
    for _ in range(MAX_DEPTH):
        deeper: list[object] = []
        for container in level:
            kind = type(container)
            items: Any = container
            if kind is dict:
                for key in items:
                    if type(key) is not str:
                        return False
                items = items.values()
            elif kind is not list:
                return False
            seen += len(items)
            for item in items:
                if type(item) not in _SCALARS:
                    deeper.append(item)  # noqa: PERF401 - most are empty, and short
        if not deeper:
            return True
        if seen > limit:  # parts shared over and over: the text would never end
            return False
        level = deeper
    return False


def _has_long_number(text: str) -> bool:
    """Tell whether there may be a number of `_LONGEST_NUMBER` digits: it would fill one of windows half that wide."""
    window = _LONGEST_NUMBER // 2
    return any(text[at : at + window].isdigit() for at in range(0, len(text) - window + 1, window))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decoder: Final = json.JSONDecoder(parse_constant=_no_constant)


def _from_json(data: bytes) -> Any:
    if PLAIN_TEXT.fullmatch(data):
        return data[1:-1].decode()
    try:
        text = data.decode()
        value, end = _decoder.raw_decode(text)
        if end != len(text) and text[end:].strip():
            raise ValueError(f"more after the JSON text, at {end}")
    except (ValueError, RecursionError) as error:
        raise CorruptValue(f"{len(data):,} bytes, {data[:16]!r}..., that are not ours: {error}") from error
    return value
