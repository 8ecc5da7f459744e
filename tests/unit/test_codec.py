"""Values: what is read is what was written in every type, bytes that are not ours say so, only our pickles run."""

from __future__ import annotations

import contextlib
import math
import pickle
import random
import subprocess
import sys
import threading
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any, NamedTuple, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyward_etcd.errors import CorruptValue, UnsupportedType, ValueTooLarge
from skyward_etcd.ops.codec import Codec

KEY = b"/skyward/default/dict/cache/1"
WHAT = 'dict "cache"'
data_only = Codec()
signing = Codec(b"s" * 32)


class Point(NamedTuple):
    x: int
    y: int


class Level(IntEnum):
    LOW = 1


class Text(str):
    """A str to JSON, but not to its owner."""

    __slots__ = ()


@dataclass
class Job:
    name: str


def round_trip(value: Any, codec: Codec = data_only) -> Any:
    return codec.decode(codec.encode(value, key=KEY, what=WHAT), key=KEY)


def exact(whole: object) -> Any:
    """Return what tells a value from all but the same: types, the order of dicts, signs of zeros, folds, zones."""
    kind, value = type(whole), cast("Any", whole)
    if kind in (list, tuple):
        inside: Any = [exact(part) for part in value]
    elif kind in (set, frozenset):
        inside = sorted(repr(exact(part)) for part in value)
    elif kind is dict:
        inside = [(exact(key), exact(part)) for key, part in value.items()]
    elif kind in (datetime, time):
        inside = repr(value), value.fold, exact(value.tzinfo)
    elif kind is np.ndarray:
        inside = value.dtype, value.shape, value.flags.fnc, value.tobytes()
    elif kind is int:
        inside = hex(value)  # the only text that has no limit of digits
    else:
        inside = repr(value)
    return kind, inside


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("schön", '"schön"'),
        (42, "42"),
        (-0.0, "-0.0"),
        (None, "null"),
        (True, "true"),
        ({"b": [1, 2.5, None], "a": {"c": False}}, '{"b":[1,2.5,null],"a":{"c":false}}'),
    ],
)
def test_what_json_gives_back_exactly_is_json_text(value: Any, text: str) -> None:
    assert data_only.encode(value, key=KEY, what=WHAT).decode() == text
    assert exact(round_trip(value)) == exact(value)


def test_json_text_that_others_wrote_is_read() -> None:
    assert data_only.decode(b'{"a": [1,\n2]}\n', key=KEY) == {"a": [1, 2]}


DATA: list[Any] = [
    *(
        (),
        (1, (2,)),
        [(1,), [1]],
        {1: 2},
        {1: "a", "1": "b", (1, b"x"): "c", frozenset({1}): "d", None: 0},
        {True: 1.0},
    ),
    *({1, "a", (2,)}, frozenset({frozenset({1})}), set[int](), b"", b"\x00\xff", bytearray(b"ab"), {"k": b"v"}),
    *(math.nan, math.inf, [-math.inf], 1 + 2j, complex(-0.0, math.nan), range(1, 10, 3), range(10**30)),
    *(10**5000, [2**63, 2**64, -(2**63) - 1, ()], [10**5000], -(10**640), {"n": 10**700}),
    *("\ud800", ["\ud83d\ude00"], {"\udfff": 1}),
    *(Decimal("1.10"), Decimal("-0"), Decimal("NaN123"), Decimal("sNaN"), Decimal("-Infinity"), Decimal("1E+9999999")),
    *(Fraction(1, 3), Fraction(10**40, 7), UUID(int=7), date(2024, 2, 29), timedelta(-1, 2, 3), timedelta.max),
    *(time(1, 2, 3, 4, fold=1), time(1, tzinfo=UTC), time(1, tzinfo=ZoneInfo("Europe/Paris"))),
    *(
        datetime.fromisoformat("0001-01-01"),
        datetime.fromisoformat("9999-12-31T23:59:59.999999"),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")),
    ),
    *(datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=-1), "just")), datetime(2024, 1, 1, tzinfo=UTC)),
    *(UTC, timezone(timedelta(minutes=1, microseconds=1)), ZoneInfo("Asia/Tokyo")),
    *(
        np.arange(6).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.zeros((2, 0, 3), "f4"),
        np.array(1.5),
        np.arange(9)[::2],
    ),
    *(np.array(["a", "bcd"]), np.array([b"a\0b"]), np.array([True]), np.array([1j]), np.arange(3, dtype=">i2")),
    *(np.array(["2024-01-01", "NaT"], "M8[ns]"), np.array([5], "m8[25s]"), np.zeros(2, "V3")),
    np.array([(1, 2.5, "x")], [("a", "i4"), ("b", "f8"), ("c", "U2")]),
    np.zeros(2, np.dtype([("a", "i1"), ("b", "f8", (2, 2)), ("c", [("d", "u2")])], align=True)),
    *(
        np.float32(0.1),
        np.int8(-1),
        np.bool_(True),
        np.complex64(1j),
        np.datetime64("2024-01-01", "D"),
        np.float64("nan"),
    ),
    *(np.str_("a\0"), np.bytes_(b"\0"), np.str_(""), np.longdouble(1) / 3),
    {"weights": [np.ones(2), {"layer": (np.float16(1), None)}]},
]


@pytest.mark.parametrize("value", DATA, ids=lambda value: type(value).__name__)
def test_data_comes_back_exactly_without_a_secret(value: Any) -> None:
    assert data_only.encode(value, key=KEY, what=WHAT)[:1] == b"\x01"
    assert exact(round_trip(value)) == exact(value)


scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.text(st.characters())),
    *(
        st.binary(),
        st.complex_numbers(),
        st.decimals().filter(lambda number: not number.is_snan()),
        st.fractions(),
        st.uuids(),
        st.dates(),
        st.timedeltas(),
    ),
    st.times(timezones=st.none() | st.just(UTC)),
    st.datetimes(timezones=st.none() | st.timezones()),
)
hashables = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=4
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | hashables | st.binary().map(bytearray) | st.integers().map(range),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=250)
@given(values)
def test_every_value_of_data_comes_back_exactly(value: Any) -> None:
    assert exact(round_trip(value)) == exact(value)


def test_equal_sets_are_equal_bytes() -> None:
    members = [f"member {i}" for i in range(100)]
    encoded = {data_only.encode(set(random.sample(members, 100)), key=KEY, what=WHAT) for _ in range(5)}
    assert len(encoded) == 1


def test_arrays_that_were_read_can_be_written_to() -> None:
    again = round_trip(np.zeros(3))
    again[1] = 7.0
    assert again.tolist() == [0.0, 7.0, 0.0]


OBJECTS: list[Any] = [
    *(Job("train"), Point(1, 2), [Point(1, 2)], Level.LOW, {"level": Level.LOW}, Text("a"), {Text("a"): 1}),
    *(OrderedDict({"a": 1}), {1: Job("x")}, Job, np.array([Job("x")], dtype=object), [np.array([None])]),
    np.zeros(1, np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]})),
]


@pytest.mark.parametrize("value", OBJECTS, ids=repr)
def test_all_else_takes_a_secret(value: Any) -> None:
    with pytest.raises(UnsupportedType, match=r'dict "cache": .*sky\.connect\(secret=\.\.\.\).*sky\.Compute'):
        data_only.encode(value, key=KEY, what=WHAT)
    again = round_trip(value, signing)
    assert pickle.dumps(again) == pickle.dumps(value)
    assert type(again) is type(value)


def test_what_nobody_defines_elsewhere_is_pickled_by_value() -> None:
    assert round_trip(lambda: 2, signing)() == 2


def test_what_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(UnsupportedType, match=r'dict "cache": .*cannot be pickled.*lock'):
        signing.encode([threading.Lock()], key=KEY, what=WHAT)


class Bomb:
    """Goes off when it is loaded."""

    exploded = 0

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return explode, ()


def explode() -> None:
    Bomb.exploded += 1


class TestSignatures:
    signed = signing.encode(Bomb(), key=KEY, what=WHAT)

    @pytest.fixture(autouse=True)
    def nothing_was_loaded(self) -> Any:
        before = Bomb.exploded
        yield
        assert Bomb.exploded == before

    def test_a_pickle_is_not_loaded_without_the_secret(self) -> None:
        with pytest.raises(UnsupportedType, match="secret"):
            data_only.decode(self.signed, key=KEY)

    def test_a_pickle_is_not_loaded_with_another_secret(self) -> None:
        with pytest.raises(CorruptValue, match="another secret"):
            Codec(b"t" * 32).decode(self.signed, key=KEY)

    def test_a_pickle_copied_to_another_key_is_not_loaded(self) -> None:
        with pytest.raises(CorruptValue, match="another key"):
            signing.decode(self.signed, key=KEY + b"2")

    def test_bytes_cannot_move_between_key_and_pickle(self) -> None:
        head, mac, payload = self.signed[:1], self.signed[1:33], self.signed[33:]
        with pytest.raises(CorruptValue):
            signing.decode(head + mac + payload[1:], key=KEY + payload[:1])

    def test_a_change_of_any_byte_is_noticed(self) -> None:
        for at in range(1, len(self.signed)):
            changed = self.signed[:at] + bytes([self.signed[at] ^ 1]) + self.signed[at + 1 :]
            with pytest.raises(CorruptValue):
                signing.decode(changed, key=KEY)

    def test_a_pickle_cut_short_is_not_loaded(self) -> None:
        for end in range(1, len(self.signed)):
            with pytest.raises(CorruptValue):
                signing.decode(self.signed[:end], key=KEY)


def test_a_genuine_pickle_that_fails_to_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    data = signing.encode(Job("x"), key=KEY, what=WHAT)
    monkeypatch.delattr(sys.modules[__name__], "Job")
    with pytest.raises(UnsupportedType, match=r"cannot be loaded here: AttributeError.*Job"):
        signing.decode(data, key=KEY)


def test_the_secret_shows_nowhere() -> None:
    secret = b"correct horse battery"
    codec = Codec(secret)
    assert repr(codec) == "Codec(secret=<hidden>, limit=1048576)"
    with pytest.raises(UnsupportedType) as refused:
        codec.encode(threading.Lock(), key=KEY, what=WHAT)
    assert "horse" not in str(refused.value)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match=r"secrets\.token_bytes"):
        Codec(b"12345")


class TestLimits:
    @pytest.mark.parametrize(
        "value", ["x" * 100, b"x" * 100, {"a": "x" * 100}, np.zeros(20), (0,) * 200, Job("x" * 100)]
    )
    def test_a_value_over_the_limit_is_refused_with_both_sizes(self, value: Any) -> None:
        with pytest.raises(ValueTooLarge, match=r'dict "cache": .* (\d+) bytes, and the limit is 99: .*object store'):
            Codec(b"s" * 16, limit=99).encode(value, key=KEY, what=WHAT)

    def test_the_limit_itself_is_allowed(self) -> None:
        assert len(Codec(limit=99).encode("x" * 97, key=KEY, what=WHAT)) == 99

    def test_a_value_that_contains_itself_is_refused(self) -> None:
        circular: list[Any] = [1]
        circular.append({"again": circular})
        for value in (circular, (circular,), {"a": circular}):
            with pytest.raises(ValueError, match="circular reference"):
                signing.encode(value, key=KEY, what=WHAT)

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_deep_values_are_refused_and_others_never_reach_the_recursion_limit(self, kind: type[Any]) -> None:
        deep: Any = kind()
        for _ in range(99):
            deep = kind([deep])
        assert round_trip(deep) == deep
        with pytest.raises(ValueTooLarge, match="deeper than 100 levels"):
            data_only.encode(kind([deep]), key=KEY, what=WHAT)

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_parts_shared_over_and_over_are_refused_quickly(self, kind: type[Any]) -> None:
        wide: Any = kind([1])
        for _ in range(60):
            wide = kind([wide, wide])
        with pytest.raises(ValueTooLarge):
            Codec(limit=10_000).encode(wide, key=KEY, what=WHAT)


def bits_of_data(codec: Codec) -> st.SearchStrategy[bytes]:
    """Return bytes that nearly are a value: whole ones with a part cut out, changed or repeated."""
    whole = st.sampled_from([codec.encode(value, key=KEY, what=WHAT) for value in [*DATA, {"a": [1]}, Job("x")]])
    return st.builds(spliced, whole, st.integers(1, 60), st.integers(1, 60), st.binary(max_size=4))


def spliced(data: bytes, start: int, end: int, between: bytes) -> bytes:
    return data[:start] + between + data[end:]


untyped: Any = msgpack


def packed(tree: Any) -> bytes:
    return b"\x01" + cast("bytes", untyped.packb(tree))


coded = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-2, 30), st.integers(-(2**63), 2**64 - 1), st.floats()),
        *(
            st.text(max_size=5),
            st.binary(max_size=8),
            st.sampled_from(["O", "<f8", "i4,O", "(9,9)V99", "C", "F", "1e9", "../x"]),
        ),
    ),
    lambda inner: (
        st.tuples(st.integers(0, 22), st.lists(inner, max_size=9)).map(lambda pair: [pair[0], *pair[1]])
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=500)
@given(
    st.one_of(
        *(st.binary(max_size=60), st.builds(bytes.__add__, st.just(b"\x01"), st.binary(max_size=60))),
        *(bits_of_data(signing), coded.map(packed)),
        st.text('[]{}",:0123456789eE+-.NaIfinty', max_size=20).map(str.encode),
    )
)
def test_bytes_that_are_not_ours_are_corrupt_and_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(CorruptValue):
        signing.decode(data, key=KEY)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\x00", b"\x03", b"\x01", b"\x02", b"NaN", b"[1] 2", b'"\xff"', b"[" * 100_000, b"1" * 5000),
        *(b"\x01\xc0\xc0", b"\x01\xc1", b"\x01\x90", b"\x01\x91\xcc\xff", b"\x01\x92\xc2\x01", b"\x01\xd6\xff\0\0\0\1"),
        b"\x01" + b"\x91" * 100_000,
        packed([6, 10**9]),
        packed([10, "1e999999999", 1]),
        packed([18, "|O", "C", [1, 1], b"\0" * 8]),
        packed([18, "<f8", "C", [1, 10**12], b""]),
        packed([17, "../../etc/passwd"]),
        packed({"a": [3, [0]]}),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_garbage_is_corrupt(data: bytes) -> None:
    for codec in (data_only, signing):
        with pytest.raises(CorruptValue):
            codec.decode(data, key=KEY)


def test_a_few_bytes_cannot_take_much_memory() -> None:
    header = b"\xdd" + (1_000_000).to_bytes(4, "big")
    nested = b"\x01" + header * 100 + b"\xc0" * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(CorruptValue):
            data_only.decode(nested, key=KEY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(nested)


def test_numpy_is_imported_for_nothing_but_its_own_values() -> None:
    array = data_only.encode(np.zeros(2), key=KEY, what=WHAT)
    script = f"""
import sys
sys.modules["numpy"] = None  # what an import of it finds where it is not installed
from skyward_etcd.errors import UnsupportedType
from skyward_etcd.ops.codec import Codec
from skyward_etcd.ops.keys import encode_key
codec = Codec()
for value in ({{"a": (1, b"x")}}, 1.5, "x"):
    assert codec.decode(codec.encode(value, key=b"", what=""), key=b"") == value
encode_key((1, "a"))
try:
    codec.decode({array!r}, key=b"")
except UnsupportedType as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert "numpy is not installed here: pip install numpy" in done.stdout


@pytest.mark.parametrize("digits", [639, 640, 700, 4300])
def test_a_long_number_is_read_whatever_limit_of_digits_the_reader_has(digits: int) -> None:
    number = 10 ** (digits - 1)
    for value in (number, -number, [1.5, number], {"n": {"n": number}, "text": "x" * 700}):
        data = data_only.encode(value, key=KEY, what=WHAT)
        assert data[:1] == b"\x01" or digits < 640
        limit = sys.get_int_max_str_digits()
        sys.set_int_max_str_digits(640)  # the lowest that Python takes
        try:
            assert data_only.decode(data, key=KEY) == value
        finally:
            sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("value", [True, 1, 1.0, [1], (1,), {"1": 0}, {1: 0}, [True], [1.0], {"a": ()}, {"a": []}])
def test_what_json_writes_alike_is_told_apart(value: Any) -> None:
    assert exact(round_trip(value)) == exact(value)
