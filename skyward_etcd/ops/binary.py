"""The binary form of values that JSON would change: exactly the types of one table, nested in each other, as msgpack.

What is unpacked equals what was packed, down to the last type. Packing refuses all other types and all subclasses;
unpacking runs nothing but the constructors named here, in memory proportional to the bytes it was given.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]

from skyward_etcd.errors import CorruptValue, UnsupportedType, ValueTooLarge

_msgpack: Any = msgpack  # it has neither stubs nor annotations

__all__ = ["MAX_DEPTH", "NotData", "pack", "too_large", "unpack"]

MAX_DEPTH = 100
"""How many containers may lie within each other: far from where Python's own recursion limit would stop us."""

_NATIVE = frozenset({type(None), bool, int, float, str, bytes})
"""Types that msgpack keeps as they are. A dict whose keys are all of these is a msgpack map."""


class NotData(Exception):
    """A value, or something inside it, is of a type that the table does not have."""

    def __init__(self, value: object) -> None:
        super().__init__(type(value))
        self.kind = type(value)


def pack(value: object, *, limit: int, what: str) -> bytes:
    """Return ``value`` as msgpack.

    Raises:
        NotData: there is an object in it that the table does not know.
        ValueTooLarge: it holds more than ``limit`` items or bytes, or is nested deeper than `MAX_DEPTH`.
        ValueError: it contains itself.
    """
    return _packb(_Trees(limit, what).tree(value))


def unpack(data: bytes | memoryview) -> Any:
    """Return the value that `pack` made ``data`` from.

    Raises:
        CorruptValue: `pack` did not make it, or part of it is missing.
        UnsupportedType: it is of numpy's types, and numpy is not installed here.
    """
    try:
        # A first pass that builds nothing: in the second, no header can reserve memory for more than there is.
        reader = _msgpack.Unpacker(max_buffer_size=len(data), max_ext_len=0)
        reader.feed(data)
        reader.skip()
        return _msgpack.unpackb(
            data, list_hook=_build, strict_map_key=False, unicode_errors="surrogatepass", max_ext_len=0
        )
    except (UnsupportedType, MemoryError):
        raise
    except Exception as error:  # each constructor has errors of its own for parts that we did not write
        raise CorruptValue(f"{len(data):,} bytes that are not a packed value: {error}") from error


def too_large(what: str, size: str, limit: int) -> ValueTooLarge:
    """Return the error for a value that takes ``size`` bytes where ``limit`` are allowed."""
    return ValueTooLarge(
        f"{what}: the value takes {size} bytes, and the limit is {limit:,}: "
        "keep it in a file or an object store and share where it is, or split it over several entries"
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one type is stored: an array of ``code`` and the parts it is taken apart to."""

    code: int
    apart: Callable[[Any], Iterable[Any]]
    build: Callable[[list[Any]], Any]
    parts: tuple[type, ...] | None
    """The exact types of the parts (``object``: any), checked before building; None: any number of anything."""


def _apart_dict(value: dict[Any, Any]) -> Iterable[Any]:
    return (part for entry in value.items() for part in entry)


def _build_dict(parts: list[Any]) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _apart_int(value: int) -> tuple[bytes]:
    return (value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True),)


def _apart_time(value: time) -> tuple[object, ...]:
    return value.hour, value.minute, value.second, value.microsecond, value.fold, value.tzinfo


def _build_time(parts: list[Any]) -> time:
    hour, minute, second, microsecond, fold, zone = parts
    return time(hour, minute, second, microsecond, zone, fold=fold)


def _apart_datetime(value: datetime) -> tuple[object, ...]:
    return value.year, value.month, value.day, *_apart_time(value.timetz())


def _build_datetime(parts: list[Any]) -> datetime:
    *day, fold, zone = parts
    return datetime.combine(date(*day[:3]), _build_time([*day[3:], fold, zone]))


def _apart_timezone(value: timezone) -> tuple[object, ...]:
    offset, name = value.utcoffset(None), value.tzname(None)
    return offset, "" if name == timezone(offset).tzname(None) else name


def _build_timezone(parts: list[Any]) -> tzinfo:
    offset, name = parts
    return timezone(offset, name) if name else timezone(offset)


def _apart_zone(value: ZoneInfo) -> tuple[object, ...]:
    key = cast("str | None", value.key)  # as its documentation has it, not its type
    if key is None:  # read from a file: its rules have no name that another node could look up
        raise NotData(value)
    return (key,)


def _apart_array(value: Any) -> tuple[object, ...]:
    """Return dtype, memory order, shape and raw bytes of an array, or of a scalar: an array of no dimensions."""
    descr = _described(value.dtype)
    if descr is None:  # objects, or a dtype of another package
        raise NotData(value)
    return descr, "F" if value.flags.fnc else "C", value.shape, value.tobytes("A")


def _described(dtype: Any) -> Any:
    """Return the plain description of a numpy ``dtype``, or None if there is none from which the same dtype is made."""
    if dtype.hasobject or dtype.metadata or dtype.kind not in "biufcmMSUV":
        return None
    formats = _numpy().lib.format
    try:
        descr = formats.dtype_to_descr(dtype)
    except ValueError:  # fields that overlap, or lie in another order than they are named
        return None
    again = formats.descr_to_dtype(descr)
    return descr if again == dtype and again.type is dtype.type else None


def _build_array(parts: list[Any]) -> Any:
    numpy = _numpy()
    descr, order, shape, raw = parts
    dtype = numpy.lib.format.descr_to_dtype(descr)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if dtype.hasobject or size != len(raw):
        raise CorruptValue(f"{len(raw):,} bytes for an array of shape {shape} and dtype {dtype}")
    return numpy.ndarray(shape, dtype, bytearray(raw), order=order)  # a bytearray: arrays can be written to


def _numpy() -> Any:
    """Import numpy, which is optional: only a value of its types gets here."""
    try:
        importlib.import_module("numpy.lib.format")
    except ImportError as error:
        raise UnsupportedType("a value of numpy's types, and numpy is not installed here: pip install numpy") from error
    return sys.modules["numpy"]


# The format: a code is never given to another type, and a type never changes its parts; new ones are added at the end.
_KINDS: dict[type, _Kind] = {
    list: _Kind(0, lambda v: v, lambda parts: parts, None),
    tuple: _Kind(1, lambda v: v, tuple, None),
    set: _Kind(2, lambda v: v, set, None),
    frozenset: _Kind(3, lambda v: v, frozenset, None),
    dict: _Kind(4, _apart_dict, _build_dict, None),
    int: _Kind(5, _apart_int, lambda parts: int.from_bytes(parts[0], "big", signed=True), (bytes,)),
    bytearray: _Kind(6, lambda v: (bytes(v),), lambda parts: bytearray(parts[0]), (bytes,)),
    complex: _Kind(7, lambda v: (v.real, v.imag), lambda parts: complex(*parts), (float, float)),
    range: _Kind(8, lambda v: (v.start, v.stop, v.step), lambda parts: range(*parts), (int, int, int)),
    Decimal: _Kind(9, lambda v: (str(v),), lambda parts: Decimal(parts[0]), (str,)),
    Fraction: _Kind(10, lambda v: v.as_integer_ratio(), lambda parts: Fraction(*parts), (int, int)),
    UUID: _Kind(11, lambda v: (v.bytes,), lambda parts: UUID(bytes=parts[0]), (bytes,)),
    date: _Kind(12, lambda v: (v.year, v.month, v.day), lambda parts: date(*parts), (int, int, int)),
    time: _Kind(13, _apart_time, _build_time, (int, int, int, int, int, object)),
    datetime: _Kind(14, _apart_datetime, _build_datetime, (int, int, int, int, int, int, int, int, object)),
    timedelta: _Kind(
        15, lambda v: (v.days, v.seconds, v.microseconds), lambda parts: timedelta(*parts), (int, int, int)
    ),
    timezone: _Kind(16, _apart_timezone, _build_timezone, (timedelta, str)),
    ZoneInfo: _Kind(17, _apart_zone, lambda parts: ZoneInfo(parts[0]), (str,)),
}
_ARRAY = _Kind(18, _apart_array, _build_array, (object, str, tuple, bytes))
_SCALAR = _Kind(19, _apart_array, lambda parts: _build_array(parts)[()], (object, str, tuple, bytes))
_STR = _Kind(20, lambda v: (str.__str__(v),), lambda parts: _numpy().str_(parts[0]), (str,))
_BYTES = _Kind(21, lambda v: (bytes(v),), lambda parts: _numpy().bytes_(parts[0]), (bytes,))
_BY_CODE = {kind.code: kind for kind in (*_KINDS.values(), _ARRAY, _SCALAR, _STR, _BYTES)}


def _kind_of(value: object) -> _Kind:
    kind = _KINDS.get(type(value))
    if kind is None and type(value).__module__ == "numpy":  # whoever made the value has imported numpy: we need not
        numpy: Any = sys.modules["numpy"]
        if type(value) is numpy.ndarray:
            kind = _ARRAY
        elif isinstance(value, numpy.generic):
            kind = {numpy.str_: _STR, numpy.bytes_: _BYTES, numpy.void: None}.get(type(value), _SCALAR)
    if kind is None:
        raise NotData(value)
    return kind


class _Trees:
    """Takes values apart to what msgpack packs as it is: native types, maps, and arrays that begin with a code."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.what = what
        self.size = 0
        self.path: list[int] = []

    def tree(self, part: object) -> Any:
        value: Any = part
        python_type = type(part)
        if python_type in _NATIVE:
            return value
        kind = _kind_of(value)
        self.enter(value, len(value) if kind.parts is None else getattr(value, "nbytes", 0))
        tree: Any
        if python_type is dict and all(type(key) in _NATIVE for key in value):
            tree = {key: self.tree(item) for key, item in value.items()}
        else:
            tree = [self.tree(item) for item in kind.apart(value)]
            if python_type in (set, frozenset):
                tree.sort(key=_packb)  # so that equal sets are equal bytes in every process
            tree.insert(0, kind.code)
        self.path.pop()
        return tree

    def enter(self, value: object, size: int) -> None:
        """Refuse what is circular, too deep or too large before its parts are visited, however often shared."""
        self.path.append(id(value))
        if len(self.path) > MAX_DEPTH:
            if len(set(self.path)) < len(self.path):
                raise ValueError(f"{self.what}: circular reference: the value contains itself")
            raise ValueTooLarge(f"{self.what}: the value is nested deeper than {MAX_DEPTH} levels: flatten it")
        self.size += size
        if self.size > self.limit:
            raise too_large(self.what, f"at least {self.size:,}", self.limit)


def _packb(tree: Any) -> bytes:
    return cast("bytes", _msgpack.packb(tree, default=_beyond_64_bits, unicode_errors="surrogatepass"))


def _beyond_64_bits(value: int) -> list[object]:
    """Return the tree of an int that msgpack has no room for: the only thing in a tree that msgpack does not know."""
    kind = _KINDS[int]
    return [kind.code, *kind.apart(value)]


def _build(items: list[Any]) -> Any:
    """Return the value of one array, whose parts msgpack has already built."""
    kind = _BY_CODE.get(items[0]) if items and type(items[0]) is int else None
    if kind is None:
        raise CorruptValue(f"an array of no known type: {items[:1]!r}")
    del items[0]
    if kind.parts is not None:
        for part, expected in zip(items, kind.parts, strict=True):
            if expected is not object and type(part) is not expected:
                raise CorruptValue(f"a {type(part).__name__} where a {expected.__name__} belongs")
    return kind.build(items)
