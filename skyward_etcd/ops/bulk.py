"""Writing more than one transaction takes: in parts, each of which is atomic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from skyward_etcd.errors import Unavailable
from skyward_etcd.ops.attempt import call_in_doubt
from skyward_etcd.ops.effects import Operation

T = TypeVar("T")

__all__ = ["all_of", "chunks"]


def chunks(items: Iterable[T], size_of: Callable[[T], int], *, most: int, most_bytes: int) -> Iterator[list[T]]:
    """Share out items in their order: up to ``most``, and up to ``most_bytes`` unless a single one has more."""
    chunk: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if chunk and (len(chunk) == most or total + size > most_bytes):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


def all_of(parts: Iterable[Operation[object]]) -> Operation[None]:
    """Do one part after the other. Where one is not done, those before it are, and `Unavailable` says so."""
    begun = False
    for part in parts:
        try:
            yield from part
        except Unavailable as lost:
            if begun:
                call_in_doubt(lost)
            raise
        begun = True
