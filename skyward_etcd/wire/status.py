"""What a failed call means: one table from gRPC's status and etcd's words to our errors.

The important column is whether the request may have been applied: it decides what may be sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from skyward_etcd.errors import (
    Compacted,
    EtcdError,
    LeaseNotFound,
    NoSpace,
    PermissionDenied,
    SkywardEtcdError,
    Unavailable,
    ValueTooLarge,
)

__all__ = ["CallFailed", "Status", "is_etcds_word", "is_stale_token", "translate"]


class Status(IntEnum):
    """gRPC's status codes (grpc/grpc, ``doc/statuscodes.md``)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the status of a trailer's text; what is no status is ``UNKNOWN``, as gRPC has it."""
        try:
            return cls(int(text))
        except ValueError:
            return cls(cls.UNKNOWN)


class CallFailed(Exception):
    """A call got no reply: gRPC's status, the server's or the connection's words, and whether it may have arrived."""

    def __init__(self, status: Status, details: str, *, maybe_applied: bool = True) -> None:
        super().__init__(details)
        self.status = status
        self.details = details
        self.maybe_applied = maybe_applied


@dataclass(frozen=True, slots=True)
class _Meaning:
    words: str
    error: type[SkywardEtcdError]
    maybe_applied: bool = False
    remedy: str = ""


_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")

# etcd's own messages (api/v3rpc/rpctypes/error.go). The first that occurs in the details counts.
_ETCD_SAYS = (
    _Meaning("requested lease not found", LeaseNotFound),
    _Meaning("required revision has been compacted", Compacted),
    _Meaning("database space exceeded", NoSpace, remedy="compact, defragment and disarm the alarm, or raise the quota"),
    _Meaning("request is too large", ValueTooLarge, remedy="store a reference to large data instead"),
    _Meaning("message larger than max", ValueTooLarge, remedy="store a reference to large data instead"),
    _Meaning("permission denied", PermissionDenied, remedy="check the user's role in etcd"),
    _Meaning("authentication failed", PermissionDenied, remedy="check user and password"),
    _Meaning("authentication is not enabled", PermissionDenied, remedy="this cluster takes no user and password"),
    _Meaning("user name is empty", PermissionDenied, remedy="this cluster wants credentials: pass user and password"),
    *(_Meaning(words, PermissionDenied, remedy="connect again") for words in _STALE_TOKEN),
    # Refused before it was proposed:
    _Meaning("no leader", Unavailable),
    _Meaning("too many requests", Unavailable),
    _Meaning("not capable", Unavailable),
    _Meaning("raft proposal dropped", Unavailable),
    # Proposed, and then nobody knows:
    _Meaning("leader changed", Unavailable, maybe_applied=True),
    _Meaning("request timed out", Unavailable, maybe_applied=True),
    _Meaning("server stopped", Unavailable, maybe_applied=True),
)

_NO_ANSWER = frozenset(
    {
        Status.UNAVAILABLE,
        Status.DEADLINE_EXCEEDED,
        Status.CANCELLED,
        Status.UNKNOWN,
        Status.INTERNAL,
        Status.ABORTED,
    }
)


def translate(failure: CallFailed, *, endpoint: str, path: str) -> SkywardEtcdError:
    """Return our error for a failed call of ``path`` at ``endpoint``."""
    call, status, details = path.rpartition("/")[2], failure.status, failure.details
    for meaning in _ETCD_SAYS:
        if meaning.words in details:
            message = f"{call} at {endpoint}: {details}"
            if meaning.remedy:
                message += f" ({meaning.remedy})"
            if issubclass(meaning.error, Unavailable):
                return meaning.error(message, maybe_applied=meaning.maybe_applied and failure.maybe_applied)
            return meaning.error(message)
    if status in _NO_ANSWER:
        said = f"{status.name.lower().replace('_', ' ')}: {details}"
        return Unavailable(f"{call} at {endpoint}: {said}", maybe_applied=failure.maybe_applied)
    if status in (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED):
        return PermissionDenied(f"{call} at {endpoint}: {details}")
    return EtcdError(f"{call} at {endpoint}: {status.name.lower()}: {details}")


def is_etcds_word(failure: CallFailed) -> bool:
    """Tell whether a member has said that it cannot serve now: it is there, and another one may do better."""
    return any(meaning.words in failure.details for meaning in _ETCD_SAYS)


def is_stale_token(failure: CallFailed) -> bool:
    """Tell whether etcd refused a token that it no longer knows: a new one may do better."""
    return any(words in failure.details for words in _STALE_TOKEN)
