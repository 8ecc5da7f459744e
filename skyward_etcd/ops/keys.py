"""Turns dict keys and set members into bytes: two keys are one entry in etcd exactly if they are one in a Python dict.

The bytes are JSON text in one canonical form, to be read in ``etcdctl get --keys-only``: ``"item"``, ``42``,
``[1,"a"]`` for a tuple, ``{"date":"2024-02-29"}`` for what JSON has no word for.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Hashable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, cast
from uuid import UUID

from skyward_etcd.errors import CorruptValue, UnsupportedType, ValueTooLarge

__all__ = ["MAX_KEY_BYTES", "PLAIN_TEXT", "decode_key", "encode_key"]

MAX_KEY_BYTES: Final = 8 * 1024
"""The longest encoded key. etcd keeps every key in memory on every member: long ones belong into values, or hashed."""

_MAX_DEPTH: Final = 50
_MAX_BITS: Final = 2048
"""The largest int, and part of a fraction: enough for every float, and far from Python's limits on long numbers."""
_TEN_TO_THE_600: Final = 10**600
"""Ratios of this have at most 600 places as a decimal."""

_SUPPORTED: Final = (
    "None, str, bytes, bool, int, float, complex, Decimal, Fraction, datetime, date, time, timedelta, UUID, "
    "numpy's numbers and strings, and tuples and frozensets of them"
)


def encode_key(key: object) -> bytes:
    """Return the canonical bytes of a dict key or set member.

    Equal keys with equal hashes have the same bytes, whatever their types (``1``, ``1.0``, ``True``, ``Decimal(1)``; an
    enum that is a str; a named tuple and its tuple), and unequal keys never have. Aware datetimes are the instants that
    they mean.

    Raises:
        UnsupportedType: the key is unhashable, or of a type that has no form here.
        ValueTooLarge: it takes more than `MAX_KEY_BYTES`.
        ValueError: it is, or holds, a NaN, which is not equal to itself and could never be found again.
    """
    data = _text(key, 0).encode()
    _check_size(len(data))
    return data


def decode_key(data: bytes) -> Hashable:
    """Return a key equal to the one that `encode_key` made ``data`` from: the simplest (``1`` for ``True``).

    Raises:
        CorruptValue: `encode_key` does not make these bytes from any key.
    """
    try:
        _check_size(len(data))
        if PLAIN_TEXT.fullmatch(data):
            return data[1:-1].decode()
        key = _from_json(json.loads(data.decode()), 0)
        if encode_key(key) == data:
            return key
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise CorruptValue(f"not an encoded key: {data[:64]!r}: {error}") from error
    raise CorruptValue(f"not an encoded key: {data[:64]!r}: not in canonical form")


def _text(key: object, depth: int) -> str:
    encode = _ENCODERS.get(type(key)) or _inherited(key)
    return encode(key, depth)


def _inherited(key: object) -> Callable[[Any, int], str]:
    """Return the encoder of the type that ``key`` inherits from, provided it inherits when two keys are equal too."""
    kind = type(key)
    if kind.__module__ == "numpy" and isinstance(key, sys.modules["numpy"].generic):
        return _numpy_scalar
    for base in kind.__mro__[1:]:
        if base in _ENCODERS and _equality(kind) == _equality(base):
            return _ENCODERS[base]
    try:
        hash(key)
    except TypeError as error:
        instead = _HASHABLE_INSTEAD.get(kind, "a part of it")
        raise UnsupportedType(f"{error}: use {instead} as dict key or set member. Keys are {_SUPPORTED}") from error
    name = f"{kind.__module__}.{kind.__qualname__}"
    raise UnsupportedType(f"{name} cannot be a dict key or set member: use a part of it. Keys are {_SUPPORTED}")


_HASHABLE_INSTEAD: Final[dict[type, str]] = {list: "tuple(...)", set: "frozenset(...)", bytearray: "bytes(...)"}


def _equality(kind: type[Any]) -> tuple[object, object]:
    return kind.__eq__, kind.__hash__


def _check_size(size: int, of: str = "bytes") -> None:
    if size > MAX_KEY_BYTES:
        raise ValueTooLarge(
            f"a dict key or set member of {size:,} {of} is over the limit of {MAX_KEY_BYTES:,} bytes: "
            "use a digest of it (hashlib.sha256), and keep the whole in the value"
        )


def _tagged(tag: str, text: str) -> str:
    return f'{{"{tag}":{text}}}'


# Text

_PLAIN: Final = re.compile(r"[ !#-\[\]-~]*")
PLAIN_TEXT: Final = re.compile(rb'"[ !#-\[\]-~]*"')
"""JSON text that stands between its quotes as it is: most keys and many values, read without JSON's own reader."""
_quoted: Final = json.JSONEncoder(ensure_ascii=False).encode
_UNREADABLE: Final = re.compile("[\x7f-\x9f\ud800-\udfff]")
"""What JSON leaves as it is and a terminal, or UTF-8, does not take: control characters and lone surrogates."""
_FALSE_PAIR: Final = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")
"""Between two lone surrogates whose escapes JSON would read as one character."""


def _str(key: str, _depth: int) -> str:
    _check_size(len(key), "characters")
    key = str.__str__(key)  # of an enum or another subclass, the text that it is
    if _PLAIN.fullmatch(key):
        return f'"{key}"'
    text = _quoted(key)
    if text.isprintable():
        return text
    text = _UNREADABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    pieces = _FALSE_PAIR.split(key)
    return text if len(pieces) == 1 else _tagged("str", f"[{','.join(_str(piece, 0) for piece in pieces)}]")


def _bytes(key: bytes, _depth: int) -> str:
    _check_size(len(key))
    return _tagged("bytes", _str(bytes.decode(key, "latin-1"), 0))


# Numbers


def _int(key: int, _depth: int) -> str:
    bits = int.bit_length(key)
    if bits > _MAX_BITS:
        raise ValueTooLarge(f"a number of {bits:,} bits is over the limit of {_MAX_BITS:,} bits for dict keys")
    return int.__repr__(key)


def _float(key: float, _depth: int) -> str:
    if math.isnan(key):
        raise ValueError("nan cannot be a dict key or set member: not equal to itself, it would never be found again")
    if math.isinf(key):
        return _tagged("float", '"inf"' if key > 0 else '"-inf"')
    return _int(int(key), 0) if key.is_integer() else float.__repr__(key)


def _complex(key: complex, _depth: int) -> str:
    if not key.imag:
        return _float(key.real, 0)
    return _tagged("complex", f"[{_float(key.real, 0)},{_float(key.imag, 0)}]")


def _decimal(key: Decimal, _depth: int) -> str:
    if not key.is_finite():
        return _float(float("nan") if key.is_nan() else float(key), 0)
    if key and abs(key.adjusted()) + len(key.as_tuple().digits) > _MAX_BITS:  # before its ratio fills the memory
        raise ValueTooLarge(f"a Decimal of the order of 1E{key.adjusted():+} has too many digits for a dict key")
    return _ratio(*key.as_integer_ratio())


def _fraction(key: Fraction, _depth: int) -> str:
    return _ratio(key.numerator, key.denominator)


def _ratio(above: int, below: int) -> str:
    """Return a ratio in lowest terms as an int, a float, a decimal or a fraction: the first that is exactly it."""
    if below == 1:
        return _int(above, 0)
    for part in above, below:
        _int(part, 0)
    try:
        nearest = above / below
        if nearest.as_integer_ratio() == (above, below):
            return float.__repr__(nearest)
    except OverflowError:
        pass  # no float is as large
    if (_TEN_TO_THE_600 % below) == 0:
        return _tagged("decimal", f'"{_decimal_text(above, below)}"')
    return _tagged("fraction", f'"{above}/{below}"')


def _decimal_text(above: int, below: int) -> str:
    places = 1
    while 10**places % below:
        places += 1
    digits = str(Decimal(abs(above) * 10**places // below)).zfill(places + 1)  # str(int) may be limited in digits
    return f"{'-' if above < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _numpy_scalar(key: Any, depth: int) -> str:
    if isinstance(key, str | bytes):
        return _str(key, depth) if isinstance(key, str) else _bytes(key, depth)
    value: object = key.item() if key.dtype.kind in "biufc" else None
    encode = _ENCODERS.get(type(value))
    if value is None or encode is None:  # numpy's dates, whose units Python does not have; long doubles
        raise UnsupportedType(f"{type(key)} cannot be a dict key or set member. Keys are {_SUPPORTED}")
    return encode(value, depth)


# Moments


def _datetime(key: datetime, _depth: int) -> str:
    """Return an aware datetime as its instant; a naive one as it is.

    Python calls the two passes of a repeated hour equal within one zone, and unequal to anything in another zone: here
    they are the two instants that they mean.
    """
    if key.utcoffset() is None:
        return _tagged("datetime", f'"{datetime.isoformat(key.replace(tzinfo=None))}"')
    try:
        return _tagged("datetime", f'"{datetime.isoformat(key.astimezone(UTC))}"')
    except OverflowError as error:
        raise ValueError(f"{key!r} cannot be a dict key or set member: in UTC it is out of datetime's range") from error


def _time(key: time, _depth: int) -> str:
    if key.utcoffset() is not None:
        raise UnsupportedType("a time with a UTC offset cannot be a dict key or set member: use a datetime")
    return _tagged("time", f'"{time.isoformat(key.replace(tzinfo=None))}"')


# Containers


def _tuple(key: tuple[Any, ...], depth: int) -> str:
    return f"[{_joined(list(_texts(key, depth)))}]"


def _frozenset(key: frozenset[Any], depth: int) -> str:
    return _tagged("frozenset", f"[{_joined(sorted(_texts(key, depth)))}]")


def _texts(members: Collection[Any], depth: int) -> Iterator[str]:
    _check_size(len(members), "members")
    if depth == _MAX_DEPTH:
        raise ValueTooLarge(f"a key is nested deeper than {_MAX_DEPTH} levels: flatten it")
    return (_text(member, depth + 1) for member in members)


def _joined(texts: list[str]) -> str:
    text = ",".join(texts)
    _check_size(len(text), "characters")  # here already: a tuple that holds one tuple over and over would take for ever
    return text


_ENCODERS: Final[dict[type, Callable[[Any, int], str]]] = {
    str: _str,
    int: _int,
    tuple: _tuple,
    bool: lambda key, _: "1" if key else "0",
    type(None): lambda _key, _: "null",
    float: _float,
    bytes: _bytes,
    complex: _complex,
    Decimal: _decimal,
    Fraction: _fraction,
    datetime: _datetime,
    date: lambda key, _: _tagged("date", f'"{date.isoformat(key)}"'),
    time: _time,
    timedelta: lambda key, _: _tagged("timedelta", f"[{key.days},{key.seconds},{key.microseconds}]"),
    UUID: lambda key, _: _tagged("uuid", f'"{UUID.__str__(key)}"'),
    frozenset: _frozenset,
}


def _from_json(value: Any, depth: int) -> Hashable:
    """Return the key of a parsed text. What else is wrong with the text shows when the key is encoded again."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, list):
        return tuple(_members(value, depth))
    if isinstance(value, dict):
        ((tag, content),) = cast("dict[str, Any]", value).items()
        return _DECODERS[tag](content, depth)
    return cast("Hashable", value)


def _members(value: Any, depth: int) -> Iterator[Hashable]:
    return (_from_json(member, depth + 1) for member in value)


def _fraction_of(text: str) -> Fraction:
    above, below = text.split("/")  # not Fraction(text), which takes exponents: a short text could fill the memory
    return Fraction(int(above), int(below))


_DECODERS: Final[dict[str, Callable[[Any, int], Hashable]]] = {
    "str": lambda pieces, _: "".join(pieces),
    "bytes": lambda text, _: text.encode("latin-1"),
    "float": lambda text, _: float(text),
    "complex": lambda parts, depth: complex(*cast("Iterator[float]", _members(parts, depth))),
    "decimal": lambda text, _: Decimal(text),
    "fraction": lambda text, _: _fraction_of(text),
    "datetime": lambda text, _: datetime.fromisoformat(text),
    "date": lambda text, _: date.fromisoformat(text),
    "time": lambda text, _: time.fromisoformat(text),
    "timedelta": lambda parts, _: timedelta(*parts),
    "uuid": lambda text, _: UUID(text),
    "frozenset": lambda members, depth: frozenset(_members(members, depth)),
}
