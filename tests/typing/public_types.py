"""What a type checker knows of the public names: never run, only checked (`make types`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

import skyward_etcd as sky


@sky.function
def add(a: int, b: int) -> int:
    return a + b


@sky.function(timeout=5.0)
def letters(word: str) -> Iterator[str]:
    yield from word


def calls(pool: sky.Compute) -> None:
    assert_type(add(1, 2) >> pool, int)
    assert_type(add(1, 2) @ pool, list[int])
    assert_type((add(1, 2) > pool).result(), int)
    add("1", 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def collections(pool: sky.Compute) -> None:
    counter = sky.counter("steps")
    assert_type(counter.increment(), int)
    assert_type(counter.value, int)
    assert_type(int(counter), int)
    assert_type(sky.set("seen").add("x"), bool)
    assert_type(len(sky.queue("tasks")), int)
    assert_type(sky.queue("tasks").claim(), sky.Claim)
    assert_type(sky.queue("tasks").claim(timeout=1.0), sky.Claim | None)
    assert_type(sky.barrier("epoch", n=4).wait(), int)
    assert_type(pool.counter("steps").increment(), int)
    with sky.lock("ckpt") as hold:
        assert_type(hold.token, int)
        assert_type(hold.valid, bool)
        assert_type(hold.guard(counter).increment(), int)
    sky.dict("cache", consistency="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def twins() -> None:
    assert_type(await sky.counter("steps").increment_async(), int)
    assert_type(await sky.set("seen").add_async("x"), bool)
    assert_type(await sky.queue("tasks").claim_async(timeout=1.0), sky.Claim | None)
    async with sky.lock("ckpt") as hold:
        assert_type(hold.token, int)
