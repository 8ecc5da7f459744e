"""What the tests run on the nodes, where there is no test folder: so it travels by value."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import cloudpickle
import skyward as sky

by_value: Any = cloudpickle
by_value.register_pickle_by_value(sys.modules[__name__])


@sky.function
def hello() -> int:
    """Be there."""
    return os.getpid()


@sky.function
def use_all(name: str, workers: int) -> dict[str, Any]:
    """Use all six collections with everybody else, and say what this node has seen."""
    info = sky.instance_info()
    me = f"{info.node}-{os.getpid()}-{threading.get_ident()}"
    ranks, seen = sky.dict(f"{name}-ranks"), sky.set(f"{name}-seen")
    tally, work, gate = sky.counter(f"{name}-tally"), sky.queue(f"{name}-work"), sky.barrier(f"{name}-gate", workers)
    bank = sky.dict(f"{name}-bank")
    ranks[me] = info.rank
    is_new = seen.add("everybody")
    for number in range(10):
        tally.add()
        work.offer((me, number))
    gate.wait(120)
    taken: list[Any] = []
    while (item := work.poll()) is not None:
        taken.append(item)
    for _ in range(5):
        with sky.lock(f"{name}-bank"):
            bank["total"] = (bank.get("total", 0) or 0) + 1
    gate.wait(120)
    return {
        "me": me,
        "rank": info.rank,
        "ranks": dict(ranks.items()),
        "was_new": is_new,
        "is_there": "everybody" in seen,
        "tally": tally.get(),
        "taken": taken,
        "left": len(work),
        "total": bank["total"],
    }


@sky.function
def session() -> tuple[int, str, tuple[str, ...]]:
    """Say which process this is, which session it has, and where it believes the members to be."""
    from skyward_etcd import active

    current = active.current()
    active.counter("sessions").increment()
    return os.getpid(), current.id, current.endpoints


@sky.function
def ours(name: str) -> tuple[int, bool, int]:
    """Use our own API beside Skyward's, on the same collections."""
    import skyward_etcd

    sky.dict(name)["from skyward"] = {"lr": 0.5}
    here = skyward_etcd.dict(name)
    here.setdefault("from us", [1, 2])
    with skyward_etcd.lock(f"{name}-lock", timeout=60) as hold:
        token = hold.token
    return token, here["from skyward"] == {"lr": 0.5} and sky.dict(name)["from us"] == [1, 2], len(sky.dict(name))


@sky.function
def whats_wrong() -> list[str]:
    """Use a collection of Skyward's and one of ours, and say what they raise."""
    import skyward_etcd

    raised: list[str] = []
    for collections in (sky, skyward_etcd):
        try:
            collections.dict("d").get("k")
        except RuntimeError as error:
            raised.append(type(error).__name__)
    return raised


@sky.function
def begin_writing(name: str, seconds: float) -> str:
    """Write, and read what was written, for a while, in a thread that outlives this call; leave the tale in a dict."""
    info = sky.instance_info()

    def write() -> None:
        mine, log = sky.dict(f"{name}-{info.node}"), sky.dict(f"{name}-tales")
        acknowledged, longest_write, longest_read = 0, 0.0, 0.0
        troubles: list[str] = []
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            try:
                began = time.monotonic()
                mine[acknowledged] = acknowledged
                written = time.monotonic()
                if mine[acknowledged] != acknowledged:
                    troubles.append(f"{acknowledged} was not what was written")
                longest_read = max(longest_read, time.monotonic() - written)
                longest_write = max(longest_write, written - began)
                acknowledged += 1
            except Exception as error:  # noqa: BLE001  whatever it is belongs into the tale
                troubles.append(repr(error))
            time.sleep(0.01)
        log[info.node] = {
            "acknowledged": acknowledged,
            "longest_write": longest_write,
            "longest_read": longest_read,
            "troubles": troubles,
        }

    threading.Thread(target=write, daemon=True).start()
    return str(info.node)
