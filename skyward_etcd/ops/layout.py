"""Where things are in etcd: one prefix per collection, readable with ``etcdctl get --prefix``.

Names are percent-encoded, so that the prefix of one collection is never a prefix of another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

__all__ = ["KINDS", "TOKEN_BASE", "Kind", "Layout", "check_name", "decode_name", "encode_name"]

Kind = Literal["dict", "set", "counter", "queue", "barrier", "lock"]
KINDS: tuple[Kind, ...] = ("dict", "set", "counter", "queue", "barrier", "lock")

TOKEN_BASE = b"/skyward/token-base"
"""No namespace's: their keys have a slash after the name."""
_NAME_BYTES = 1024
_ESCAPED = re.compile(r"[/%\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_name(name: object, *, what: str = "a collection's name") -> str:
    """Return ``name`` if it can be one: text that is not empty, up to 1024 bytes.

    Raises:
        TypeError: not text.
        ValueError: empty or too long.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} is text, not {type(name).__name__}: {name!r}")
    if not name:
        raise ValueError(f"{what} is empty: give it a name that all participants share")
    if len(name.encode("utf-8", "surrogatepass")) > _NAME_BYTES:
        raise ValueError(f"{what} is over {_NAME_BYTES} bytes: {name[:40]!r}…")
    return name


def encode_name(name: str) -> str:
    """Return the name as it stands in keys: ``/``, ``%`` and control characters as ``%XX``."""
    return _ESCAPED.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")), name
    )


def decode_name(text: str) -> str:
    """Return the name that `encode_name` was given."""
    return unquote(text, errors="surrogatepass")


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys of one namespace."""

    namespace: str

    def __post_init__(self) -> None:
        check_name(self.namespace, what="a namespace")

    @property
    def root(self) -> bytes:
        """The prefix of everything in this namespace."""
        return f"/skyward/{encode_name(self.namespace)}/".encode()

    def collection(self, kind: Kind, name: str) -> bytes:
        """The prefix of one collection."""
        return self.root + f"{kind}/{encode_name(name)}/".encode()

    def meta(self, kind: Kind, name: str) -> bytes:
        """What a collection is: made by its first use, compared by later ones."""
        return self.root + f"meta/{kind}/{encode_name(name)}".encode()

    @property
    def token_base(self) -> bytes:
        """What a recovery adds to revisions to make fencing tokens, in decimal; one for all namespaces of a cluster.

        One that has lost all its keys must not begin again with old tokens.
        """
        return TOKEN_BASE

    @property
    def sessions(self) -> bytes:
        """The prefix of the live sessions."""
        return self.root + b"sessions/"

    def session(self, session: str) -> bytes:
        """A live session: node, pid, since when; on its lease."""
        return self.sessions + session.encode()

    def slot(self, session: str, number: int) -> bytes:
        """A session's proof of its last mutation; on its lease."""
        return self.root + f"slots/{session}/{number}".encode()
