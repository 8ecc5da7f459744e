"""Values as operators see them. No pickle is ever loaded for a look: that would run its writer's code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.ops.codec import Codec

__all__ = ["Shown", "shown"]

_CODEC = Codec()
_DATA, _PICKLE = b"\x01", b"\x02"


@dataclass(frozen=True, slots=True)
class Shown:
    """A stored value."""

    text: str
    """On one line: JSON where it is stored so, else as Python writes it."""
    bytes: int
    json: Any = None
    """The value, where JSON can say it exactly."""
    is_json: bool = False


def shown(data: bytes) -> Shown:
    """Return a value, or what can be said of it without its secret."""
    size = len(data)
    if data[:1] == _PICKLE:
        return Shown(f"<signed pickle, {size:,} bytes>", size)
    try:
        value = _CODEC.decode(data, key=b"")
    except (SkywardEtcdError, ImportError) as error:
        return Shown(f"<{size:,} bytes: {error}>", size)
    if data[:1] == _DATA:
        return Shown(" ".join(repr(value).split()), size)
    return Shown(json.dumps(value, ensure_ascii=False), size, value, is_json=True)
