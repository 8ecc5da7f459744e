"""The changes of a collection, as they happen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skyward_etcd.operate.values import Shown, shown
from skyward_etcd.ops import kv
from skyward_etcd.ops.effects import Await, Mind, Operation, Watch, Watching
from skyward_etcd.ops.layout import Kind

__all__ = ["Change", "follow"]


@dataclass(frozen=True, slots=True)
class Change:
    """One key that was written or deleted."""

    revision: int
    key: str
    """What stands behind the collection's prefix."""
    value: Shown | None
    """``None``: it was deleted, or its lease has ended."""


def follow(
    mind: Mind,
    kind: Kind,
    name: str,
    tell: Callable[[Sequence[Change]], bool],
    *,
    ready: Callable[[], None] = lambda: None,
) -> Operation[None]:
    """Tell the changes from now on, each once and in their order, until ``tell`` returns false.

    An empty sequence says that some may have been missed. ``ready`` is called when none will be missed any more.
    """
    prefix = mind.layout.collection(kind, name)
    watching: Watching = yield Watch(prefix, kv.prefix_end(prefix))
    try:
        ready()
        while True:
            yield Await(None, (watching,))
            if not tell([_change(prefix, event) for event in watching.take()]):
                return
    finally:
        watching.close()


def _change(prefix: bytes, event: kv.Event) -> Change:
    key = event.kv.key.removeprefix(prefix).decode(errors="backslashreplace")
    return Change(event.kv.mod_revision, key, None if kv.is_delete(event) else shown(event.kv.value))
