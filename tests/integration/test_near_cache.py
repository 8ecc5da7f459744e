"""What a process has looked up is read without asking, and is true all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.collections import near
from skyward_etcd.collections.dict import Dict
from skyward_etcd.errors import NotConnected
from tests.integration.conftest import Opener
from tests.integration.helpers import Calls, sent_by, watchers

IN_TIME_S = 10.0


async def soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + IN_TIME_S
    while not holds():
        assert time.monotonic() < deadline, "the watch told nothing"
        await asyncio.sleep(0.001)


async def test_what_was_looked_up_is_read_without_asking(solo: Connection, calls: Calls) -> None:
    entries, members = solo.dict("d", near_cache=True), solo.set("s", near_cache=True)
    entries["there"], entries["list"] = 1.5, [1, 2]
    members.add("there")
    for key in ("there", "list", "nowhere"):
        await calls(entries).get(key)
        await calls(members).contains(key)
    sent = sent_by(solo)
    for _ in range(100):
        assert await calls(entries).get("there") == entries["there"] == 1.5
        assert await calls(entries).get("nowhere", "default") == "default"
        assert [await calls(entries).contains(key) for key in ("there", "nowhere")] == [True, False]
        assert [await calls(members).contains(key) for key in ("there", "nowhere")] == [True, False]
        assert "there" in entries
        assert "there" in members
    assert not sent
    entries["list"].append(3)
    assert entries["list"] == [1, 2], "values are copies"


async def test_those_who_look_first_together_share_one_watch(solo: Connection) -> None:
    entries = solo.dict("d", near_cache=True)
    await asyncio.gather(*(entries.get_async(f"{number}") for number in range(20)))
    assert watchers(solo) == 1


async def test_own_changes_show_at_once(solo: Connection, calls: Calls) -> None:
    entries, members = solo.dict("d", near_cache=True), solo.set("s", near_cache=True)
    others = calls(solo.dict("d"))
    for number in range(30):
        await calls(entries).set("k", number)
        assert await calls(entries).get("k") == number
        await others.set("k", -number)  # another handle of this process
        assert await calls(entries).get("k") == -number
        await calls(entries).update({"k": number, "l": number})
        assert (entries.get("k"), entries.get("l")) == (number, number)
        assert await calls(entries).pop("k") == number
        assert "k" not in entries
        assert await calls(entries).setdefault("k", number) == entries["k"] == number
        assert await calls(entries).compare_and_set("k", number, "swapped")
        assert entries["k"] == "swapped"
        assert await calls(entries).delete("k")
        assert await calls(entries).get("k") is None
        await calls(members).add(number)
        assert number in members
        await calls(members).discard(number)
        assert number not in members
        await calls(entries).clear()
        assert entries.get("l") is None


async def test_changes_of_others_show_when_the_watch_has_told(solo: Connection, another: Opener) -> None:
    entries, members = solo.dict("d", near_cache=True), solo.set("s", near_cache=True)
    theirs, their_members = another(solo).dict("d"), another(solo).set("s")
    assert entries.get("k") is None
    assert "m" not in members
    sent = sent_by(solo)
    for number in range(50):
        theirs["k"] = number
        await soon(partial(_is, entries, "k", number))
    their_members.add("m")
    await soon(lambda: "m" in members)
    del theirs["k"]
    await soon(lambda: "k" not in entries)
    assert not sent


def _is(entries: Dict, key: str, value: object) -> bool:
    return bool(entries.get(key) == value)


async def test_all_entries_are_never_older_than_one(solo: Connection, another: Opener) -> None:
    entries, theirs = solo.dict("d", near_cache=True), another(solo).dict("d")
    for number in range(100):
        theirs["k"] = number
        everything = dict(entries.items())
        assert entries["k"] >= everything["k"]
        entries.get("k")


def test_what_is_kept_is_bounded(solo: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_MOST_ENTRIES", 10)
    entries = solo.dict("d", near_cache=True)
    entries.update({f"{number}": number for number in range(40)})
    assert [entries[f"{number}"] for number in range(40)] == list(range(40))
    (kept,) = [each for each in solo._session().kept.values() if isinstance(each, near.Near)]
    assert len(kept._entries) == 10
    monkeypatch.setattr(near, "_MOST_BYTES", 20_000)
    entries.update({f"{number}": "x" * 3_000 for number in range(40)})
    assert {len(entries[f"{number}"]) for number in range(40)} == {3_000}
    assert 10_000 < kept._bytes == sum(entry.size for entry in kept._entries.values()) <= 20_000
    entries.clear()
    assert kept._bytes == 0


def test_a_strong_handle_has_none(solo: Connection) -> None:
    for make in (solo.dict, solo.set):
        with pytest.raises(ValueError, match="near-cache"):
            make("x", consistency="strong", near_cache=True)


def test_a_closed_session_has_none(solo: Connection, another: Opener) -> None:
    connection = another(solo)
    entries = connection.dict("d", near_cache=True)
    entries["k"] = 1
    assert entries["k"] == 1
    connection._session().close()
    with pytest.raises(NotConnected):
        entries.get("k")
