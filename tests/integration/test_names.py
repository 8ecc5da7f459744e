"""Names of collections: any text, each apart from all others, and each the name of one kind only."""

from __future__ import annotations

from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.errors import WrongKind
from skyward_etcd.ops.layout import KINDS
from tests.integration.conftest import Opener
from tests.integration.helpers import Calls, keys_under, sent_by, stored

NAMES = [
    *("a", "a/", "a/b", "/a", "a%2Fb", "a%2fb", "a b", " a", "a ", "..", ".", "%", "%25", "*", "a\\b", '"a"', "a:b"),
    *("ä", "a\u0308", "日本語/キュー", "😀", "a\nb", "a\0b", "\udc80", "meta", "dict", "x" * 200, "x" * 199, "ü" * 200),
]


async def test_any_text_is_a_name_of_its_own(solo: Connection, calls: Calls) -> None:
    """Names that begin like each other, or look like each other when encoded, included."""
    for number, name in enumerate(NAMES):
        await calls(solo.dict(name)).set("k", number)
    for number, name in enumerate(NAMES):
        assert await calls(solo.dict(name)).items() == [("k", number)]
    await calls(solo.dict("a")).clear()
    for number, name in enumerate(NAMES[1:], 1):
        assert await calls(solo.dict(name)).items() == [("k", number)]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_takes_any_name(solo: Connection, calls: Calls, kind: str) -> None:
    for name in NAMES:
        options = {"n": 1} if kind == "barrier" else {}
        await _use(calls(getattr(solo, kind)(name, **options)), kind)
    for name in NAMES:
        if kind == "queue":
            assert await calls(solo.queue(name)).get_many(9) == [1]
        elif kind in ("set", "dict"):
            assert await calls(getattr(solo, kind)(name)).size() == 1
        elif kind == "counter":
            assert await calls(solo.counter(name)).value() == 1


async def _use(collection: Any, kind: str) -> None:
    match kind:
        case "dict":
            await collection.set("k", 1)
        case "set":
            await collection.add(1)
        case "counter":
            assert await collection.increment() == 1
        case "queue":
            await collection.put(1)
        case "barrier":
            assert await collection.wait(timeout=5) == 0
        case _:
            await collection.acquire(timeout=5)
            await collection.release()


async def test_a_name_belongs_to_one_kind(solo: Connection, another: Opener, calls: Calls) -> None:
    other = another(solo)
    for owner in KINDS:
        await _use(calls(getattr(solo, owner)(f"of {owner}", **({"n": 1} if owner == "barrier" else {}))), owner)
    before = stored(solo)
    for session in (solo, other):
        for owner in KINDS:
            for kind in KINDS:
                if kind != owner:
                    options = {"n": 1} if kind == "barrier" else {}
                    with pytest.raises(WrongKind, match=f"'of {owner}'.* is a {owner} already"):
                        await _use(calls(getattr(session, kind)(f"of {owner}", **options)), kind)
    assert stored(solo) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_text_that_is_not_empty(solo: Connection, kind: str) -> None:
    sent = sent_by(solo)
    options = {"n": 1} if kind == "barrier" else {}
    for wrong in (None, 1, b"name", ["name"]):
        with pytest.raises(TypeError, match="text"):
            getattr(solo, kind)(wrong, **options)
    for empty_or_long in ("", "x" * 2000):
        with pytest.raises(ValueError, match="name is"):
            getattr(solo, kind)(empty_or_long, **options)
    assert sent == []


def test_a_key_tells_what_it_is(solo: Connection) -> None:
    """What `etcdctl get --prefix` shows."""
    solo.dict("my/settings")["learning rate"] = {"value": 0.1}
    solo.dict("my/settings")[1, "a"] = 2
    solo.set("words").add("ü")
    solo.counter("seen").increment()
    solo.queue("work").put("first")
    hold = solo.lock("checkpoint").acquire()
    session = solo._session().id
    assert stored(solo) == [
        f"counter/seen/shards/{session}",
        'dict/my%2Fsettings/"learning rate"',
        'dict/my%2Fsettings/[1,"a"]',
        f"lock/checkpoint/{hold.key.decode().rpartition('/')[2]}",
        f"queue/work/items/{0:012d}/{session}.{1:012d}",
        'set/words/"ü"',
    ]
    assert keys_under(solo._session(), "meta/") == [
        *("meta/counter/seen", "meta/dict/my%2Fsettings", "meta/lock/checkpoint", "meta/queue/work", "meta/set/words")
    ]
    hold.release()


async def test_namespaces_are_apart(solo: Connection, opened: Opener, calls: Calls) -> None:
    endpoints = list(solo._session().endpoints)
    names = ["team", "team/a", "team%2Fa", "t"]
    sessions = [opened(endpoints, namespace=f"{solo._session().layout.namespace}{name}") for name in names]
    for number, session in enumerate(sessions):
        await calls(session.dict("d")).set("k", number)
        await calls(session.counter("c")).increment(number)
    for number, session in enumerate(sessions):
        assert await calls(session.dict("d")).items() == [("k", number)]
        assert await calls(session.counter("c")).value() == number
    assert stored(solo) == []
