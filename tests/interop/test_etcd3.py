"""What we wrote, another client reads and watches; what it writes, we read."""

from __future__ import annotations

import asyncio
import json

from skyward_etcd.active import Connection
from tests.integration.helpers import until, watchers
from tests.interop.conftest import SecondClient, heard

READ = """
found = [(meta, value.decode()) for value, meta in etcd.get_prefix(root, sort_order="ascend", sort_target="create")]
show([[meta.key.decode()[len(root):], value] for meta, value in found])
"""


def test_another_client_reads_what_we_wrote(solo: Connection, second: SecondClient) -> None:
    solo.dict("scores").update({"alice": 3, (1, 2): [1, "x"], 7: None})
    solo.set("seen").add("item")
    assert solo.counter("steps").increment(5) == 5
    solo.queue("tasks").put({"job": 1})
    solo.queue("tasks").put_many([2, "three"])
    with solo.lock("ckpt"):
        (entries,) = second.run(READ)
    stored = dict(entries)
    assert {key: json.loads(value) for key, value in stored.items() if key.startswith("dict/")} == {
        'dict/scores/"alice"': 3,
        "dict/scores/[1,2]": [1, "x"],
        "dict/scores/7": None,
    }
    assert stored['set/seen/"item"'] == ""
    assert sum(int(value) for key, value in entries if key.startswith("counter/steps/")) == 5
    items = [json.loads(value) for key, value in entries if key.startswith("queue/tasks/items/")]
    assert items == [{"job": 1}, 2, "three"], "in the order of their creation"
    ((holder, who),) = [(key, value) for key, value in entries if key.startswith("lock/ckpt/")]
    session = solo._session().id
    assert holder.removeprefix("lock/ckpt/").startswith(session)
    assert json.loads(who).keys() == {"node", "pid", "since"}
    assert json.loads(stored[f"sessions/{session}"]).keys() >= {"node", "pid", "started"}
    assert json.loads(stored["meta/dict/scores"])["kind"] == "dict"


def test_another_client_watches_what_we_write(solo: Connection, second: SecondClient) -> None:
    watching = second.start("""
        events, cancel = etcd.watch_prefix(root + "dict/scores/")
        show("ready")
        for event in events:
            show([type(event).__name__, event.key.decode()[len(root):], event.value.decode()])
            if isinstance(event, etcd3.events.DeleteEvent):
                cancel()
    """)
    assert watching.stdout is not None
    assert watching.stdout.readline() == '"ready"\n'
    scores = solo.dict("scores")
    scores["alice"] = 3
    scores.update({"bob": 4})
    assert scores.pop("alice") == 3
    assert heard(watching) == [
        ["PutEvent", 'dict/scores/"alice"', "3"],
        ["PutEvent", 'dict/scores/"bob"', "4"],
        ["DeleteEvent", 'dict/scores/"alice"', ""],
    ]


def test_we_read_what_another_client_wrote(solo: Connection, second: SecondClient) -> None:
    solo.dict("scores")["alice"] = 3
    solo.counter("steps").increment(5)
    second.run("""
        etcd.put(root + 'dict/scores/"bob"', json.dumps({"loss": 0.25, "tags": ["a", None]}))
        etcd.put(root + 'set/seen/"item"', "")
        etcd.put(root + "counter/steps/base", "100")
        etcd.put(root + "queue/tasks/items/000000000000/another.1", '"by hand"')
        etcd.delete(root + 'dict/scores/"alice"')
    """)
    assert dict(solo.dict("scores", consistency="strong").items()) == {"bob": {"loss": 0.25, "tags": ["a", None]}}
    assert list(solo.set("seen", consistency="strong")) == ["item"]
    assert solo.counter("steps").increment() == 106
    assert solo.queue("tasks").get(timeout=5) == "by hand"


async def test_our_waiters_are_woken_by_another_client(solo: Connection, second: SecondClient) -> None:
    waiting = asyncio.ensure_future(solo.queue("tasks").get_async(timeout=20))
    await until(lambda: watchers(solo) == 1)
    await asyncio.to_thread(second.run, """etcd.put(root + "queue/tasks/items/000000000000/another.1", "42")""")
    assert await waiting == 42
