"""What an operation is about: told from its generator, so that nobody has to say it while nobody looks on."""

from __future__ import annotations

from dataclasses import dataclass
from types import GeneratorType
from typing import Any, cast

from skyward_etcd.ops.effects import Operation
from skyward_etcd.session.observing import Seen

__all__ = ["Subject", "subject"]

_WAIT_FOR_OTHERS = frozenset({("lock", "acquire"), ("barrier", "wait"), ("queue", "get"), ("queue", "claim")})


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of collection, or ``operator`` for what is about none, a name, and what is done there."""

    kind: str
    name: str
    operation: str

    @property
    def waits(self) -> bool:
        """Whether it waits for others by its nature. What a counter waits for are increments of its own process."""
        return (self.kind, self.operation) in _WAIT_FOR_OTHERS

    def waited_s(self, seen: Seen) -> float:
        """Return how long it has waited for others."""
        return seen.awaited_s if self.waits else 0.0


def subject(operation: Operation[Any]) -> tuple[Subject, dict[str, Any]]:
    """Return what an operation that has not begun is about, and the arguments that it was given.

    A generator of a collection's is called as its public method is, or as the one that it is a form of: ``put_many``
    and ``offer`` are ``put``. Its ``self`` has a kind and a name.
    """
    generator = cast("GeneratorType[Any, Any, Any]", operation)
    given = dict(generator.gi_frame.f_locals) if generator.gi_frame is not None else {}
    owner = given.get("self")
    kind, name = getattr(owner, "kind", None), getattr(owner, "name", None)
    if not isinstance(kind, str) or not isinstance(name, str):
        kind, name = "operator", ""
    return Subject(kind, name, generator.gi_code.co_name.lstrip("_")), given
