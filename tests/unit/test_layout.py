"""Names of any text become keys that no other name's keys begin with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward_etcd.ops.layout import Layout, check_name, decode_name, encode_name

names = st.text(min_size=1, max_size=50)


@given(names)
def test_a_name_comes_back_as_it_was(name: str) -> None:
    assert decode_name(encode_name(name)) == name


@given(names)
def test_an_encoded_name_has_neither_slash_nor_control_characters_and_is_utf8(name: str) -> None:
    encoded = encode_name(name)
    assert "/" not in encoded
    assert encoded.isprintable() or not any(ord(character) < 0x20 for character in encoded)
    encoded.encode()


@given(names, names)
def test_no_collections_prefix_is_a_prefix_of_another(one: str, other: str) -> None:
    layout = Layout("default")
    if one != other:
        assert not layout.collection("dict", one).startswith(layout.collection("dict", other))


def test_operators_can_read_the_keys() -> None:
    layout = Layout("default")
    assert layout.collection("queue", "work items/π") == "/skyward/default/queue/work items%2Fπ/".encode()
    assert layout.meta("lock", "ckpt") == b"/skyward/default/meta/lock/ckpt"
    assert layout.session("00c0ffee") == b"/skyward/default/sessions/00c0ffee"
    assert layout.slot("00c0ffee", 3) == b"/skyward/default/slots/00c0ffee/3"


@pytest.mark.parametrize(
    ("name", "error"), [("", ValueError), (None, TypeError), (7, TypeError), ("x" * 2000, ValueError)]
)
def test_a_bad_name_is_refused(name: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_name(name)
