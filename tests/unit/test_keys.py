"""Keys: one entry in etcd exactly where a Python dict has one entry."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyward_etcd.errors import CorruptValue, UnsupportedType, ValueTooLarge
from skyward_etcd.ops.keys import MAX_KEY_BYTES, decode_key, encode_key


class Point(NamedTuple):
    x: int
    y: int


class Colour(str, Enum):  # noqa: UP042 - the older way to write it
    RED = "red"


class Shade(StrEnum):
    RED = "red"


class Level(IntEnum):
    ONE = 1


class Plain(Enum):
    ONE = 1


class Loose(str):
    """Equal to its text in any case: not the same as a str."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("item", '"item"'),
        ("schön/☃\n\x9b\ud800", '"schön/☃\\n\\u009b\\ud800"'),
        (42, "42"),
        (0.5, "0.5"),
        (None, "null"),
        (True, "1"),
        ((1, "a", (None,)), '[1,"a",[null]]'),
        (b"raw\x00", '{"bytes":"raw\\u0000"}'),
        (date(2024, 2, 29), '{"date":"2024-02-29"}'),
        (datetime(2024, 2, 29, 1, tzinfo=timezone(timedelta(hours=1))), '{"datetime":"2024-02-29T00:00:00+00:00"}'),
        (Decimal("19.90"), '{"decimal":"19.9"}'),
        (Fraction(1, 3), '{"fraction":"1/3"}'),
        (frozenset({"b", "a"}), '{"frozenset":["a","b"]}'),
        (math.inf, '{"float":"inf"}'),
    ],
)
def test_keys_can_be_read_in_etcdctl(key: Any, text: str) -> None:
    assert encode_key(key).decode() == text
    assert decode_key(text.encode()) == key


@pytest.mark.parametrize(
    "equals",
    [
        (
            1,
            1.0,
            True,
            Decimal(1),
            Decimal("1.00"),
            Fraction(1),
            1 + 0j,
            np.int8(1),
            np.float32(1),
            np.True_,
            Level.ONE,
        ),
        (0, -0.0, False, Decimal("-0"), np.float64(-0.0), complex(-0.0, -0.0)),
        (0.5, Decimal("0.50"), Fraction(1, 2), np.float16(0.5), np.complex64(0.5)),
        (1e300, int(1e300), Decimal(int(1e300))),
        (math.inf, Decimal("Infinity"), np.float32("inf")),
        (Decimal("0.1"), Fraction(1, 10)),
        ("red", Colour.RED, Shade.RED, np.str_("red")),
        (b"red", np.bytes_(b"red")),
        ((1, 2), Point(1, 2), (True, 2.0), (Level.ONE, np.int64(2))),
        (frozenset({1, "a", (2,)}), frozenset({(2.0,), True, "a"})),
        (
            datetime(2024, 1, 1, 12, tzinfo=UTC),
            datetime(2024, 1, 1, 13, tzinfo=ZoneInfo("Europe/Paris")),
            datetime(2024, 1, 1, 7, tzinfo=timezone(timedelta(hours=-5))),
        ),
        (datetime(2024, 1, 1), datetime(2024, 1, 1, fold=1)),  # noqa: DTZ001 - naive on purpose
    ],
)
def test_what_a_dict_takes_for_one_key_is_one_key(equals: tuple[Any, ...]) -> None:
    assert len(dict.fromkeys(equals)) == 1
    assert len({encode_key(key) for key in equals}) == 1


UNALIKE: list[Any] = [
    *("1", 1, 1.5, b"1", (1,), ((1,),), frozenset({1}), None, "null", "", b"", (), frozenset[int]()),
    *(0.1, Decimal("0.1"), Fraction(1, 3), np.float32(0.1), 1j, 1 + 1j, math.inf, -math.inf, 2**63, 10**400),
    *(date(2024, 1, 1), datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01"),  # noqa: DTZ001
    *(time(), time(1), timedelta(), timedelta(1), UUID(int=1), str(UUID(int=1))),
    *("\ud83d\ude00", "😀", "\ud83d", "\\ud83d", '{"bytes":"1"}', "a\0", "a", "/", "%2F", np.str_("b\0"), np.str_("b")),
]


def test_what_a_dict_keeps_apart_stays_apart() -> None:
    assert len({encode_key(key) for key in UNALIKE}) == len(dict.fromkeys(UNALIKE)) == len(UNALIKE)
    assert [decode_key(encode_key(key)) for key in UNALIKE] == UNALIKE


numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(10**30), 10**30),
    st.booleans(),
    st.floats(allow_nan=False),
    st.sampled_from([0.5, -0.0, 1.0, 2.0, 0.1]),
    st.decimals(allow_nan=False, min_value=-5, max_value=5, places=1),
    st.decimals(allow_nan=False, min_value=-(10**20), max_value=10**20),
    st.fractions(-3, 3, max_denominator=4),
    st.complex_numbers(allow_nan=False),
    st.builds(complex, st.integers(-1, 1), st.integers(-1, 1)),
)
"""Without numpy's: a Decimal refuses to be compared with them, and so does a dict that has both."""
texts = st.text(st.characters(), max_size=4) | st.text("\ud83d\ude00a\x7f\n", max_size=4)  # with lone surrogates
offsets = st.sampled_from([UTC, timezone(timedelta(hours=1)), ZoneInfo("Asia/Tokyo"), timezone(timedelta(seconds=-1))])
moments = st.one_of(
    st.datetimes(),
    st.datetimes(datetime(1990, 1, 1), datetime(1990, 1, 1, 3), timezones=offsets).map(lambda at: at.replace(minute=0)),  # noqa: DTZ001
    st.dates(),
    st.times(),
    st.timedeltas(),
)
atoms = st.one_of(st.none(), numbers, texts, st.binary(max_size=4), st.uuids(), moments)
keys: st.SearchStrategy[Any] = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=5
)


@settings(max_examples=150)
@given(st.lists(keys, max_size=12))
def test_the_encoding_partitions_keys_as_a_dict_does(some: list[Any]) -> None:
    by_python: dict[Any, bytes] = {}
    by_encoding: dict[bytes, Any] = {}
    for key in some:
        data = encode_key(key)
        assert by_python.setdefault(key, data) == data
        assert by_encoding.setdefault(data, key) == key
        json.loads(data)


@settings(max_examples=200)
@given(keys)
def test_a_decoded_key_finds_what_the_key_found(key: Any) -> None:
    data = encode_key(key)
    again = decode_key(data)
    assert {key: "here"}[again] == "here"
    assert encode_key(again) == data


def tagged(tag: str, content: Any) -> bytes:
    return json.dumps({tag: content}, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


@settings(max_examples=300)
@given(
    st.binary(max_size=40)
    | st.text('0123456789.eE-+"[]{}:,ntrue /', max_size=20).map(str.encode)
    | st.builds(
        tagged,
        st.sampled_from(
            [
                "str",
                "bytes",
                "float",
                "complex",
                "decimal",
                "fraction",
                "datetime",
                "date",
                "timedelta",
                "uuid",
                "frozenset",
            ]
        ),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["nan", "1e999999999", "1/0", "1e9/3"]),
            lambda inner: st.lists(inner, max_size=3),
        ),
    )
)
def test_bytes_that_are_not_a_key_are_corrupt_and_nothing_worse(data: bytes) -> None:
    try:
        key = decode_key(data)
    except CorruptValue:
        return
    assert encode_key(key) == data


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" 1", b"1.0", b"true", b"NaN", b"[1, 2]", b"{}", b'"\xff"', b"[" * 8000, b"1" * 8000, b"1" * 9000),
        *(b'{"frozenset":[2,1]}', b'{"frozenset":[1,1]}', b'{"date":"20240101"}', b'{"decimal":"0.5"}'),
        b'{"decimal":"1E+999999999"}',
    ],
)
def test_only_the_canonical_form_is_a_key(data: bytes) -> None:
    with pytest.raises(CorruptValue):
        decode_key(data)


class Unlike:
    """Hashable, but of no type that has a form."""


UNHASHABLE: list[Any] = [[1], {1}, {}, bytearray(b"1"), (1, [2]), ({2},)]


class TestRefused:
    @pytest.mark.parametrize("key", UNHASHABLE)
    def test_unhashable_keys_are_refused_in_pythons_words(self, key: Any) -> None:
        with pytest.raises(TypeError) as pythons:
            hash(key)
        with pytest.raises(UnsupportedType, match=r"use .* as dict key") as ours:
            encode_key(key)
        assert str(ours.value).startswith(str(pythons.value))

    @pytest.mark.parametrize(
        "key",
        [Unlike(), Plain.ONE, Loose("A"), int, ..., memoryview(b"1"), time(1, tzinfo=UTC), np.datetime64("2024", "D")],
    )
    def test_other_types_are_refused_with_what_is_supported(self, key: Any) -> None:
        with pytest.raises(UnsupportedType, match=r"dict key or set member.*(UUID|use a datetime)"):
            encode_key(key)

    @pytest.mark.parametrize("key", [math.nan, Decimal("nan"), (1, math.nan), complex(math.nan, 1), np.float32("nan")])
    def test_nan_is_refused_as_it_would_never_be_found(self, key: Any) -> None:
        with pytest.raises(ValueError, match="nan cannot be a dict key"):
            encode_key(key)

    @pytest.mark.parametrize(
        "key",
        [
            "x" * MAX_KEY_BYTES,
            "☃" * 4000,
            b"\xff" * 5000,
            (0,) * 10**6,
            10**700,
            Decimal("1E+1000000"),
            Decimal("1E-1000000"),
            Fraction(1, 10**700),
        ],
    )
    def test_long_keys_are_refused(self, key: Any) -> None:
        with pytest.raises(ValueTooLarge, match="dict key"):
            encode_key(key)

    def test_deep_keys_are_refused_quickly(self) -> None:
        deep: Any = ()
        wide: Any = (1, 2)
        for _ in range(60):
            deep, wide = (deep,), (wide, wide)
        for key in (deep, wide):
            with pytest.raises(ValueTooLarge):
                encode_key(key)

    def test_a_key_may_be_as_long_as_the_limit(self) -> None:
        longest = "x" * (MAX_KEY_BYTES - 2)
        assert decode_key(encode_key(longest)) == longest
