"""What a failed call means: one table from gRPC's status and etcd's words to our errors.

The important column is whether the request may have been applied: it decides what may be sent again.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

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

__all__ = ["translate"]


@dataclass(frozen=True, slots=True)
class _Meaning:
    words: str
    error: type[SkywardEtcdError]
    maybe_applied: bool = False
    remedy: str = ""


# etcd's own messages (api/v3rpc/rpctypes/error.go). The first that occurs in the details counts.
_ETCD_SAYS = (
    _Meaning("requested lease not found", LeaseNotFound),
    _Meaning("required revision has been compacted", Compacted),
    _Meaning("database space exceeded", NoSpace, remedy="compact, defragment and disarm the alarm, or raise the quota"),
    _Meaning("request is too large", ValueTooLarge, remedy="store a reference to large data instead"),
    _Meaning("message larger than max", ValueTooLarge, remedy="store a reference to large data instead"),
    _Meaning("permission denied", PermissionDenied, remedy="check the user's role in etcd"),
    _Meaning("invalid auth token", PermissionDenied),
    _Meaning("user name is empty", PermissionDenied, remedy="this cluster wants credentials"),
    # Refused before it was proposed:
    _Meaning("no leader", Unavailable),
    _Meaning("too many requests", Unavailable),
    _Meaning("not capable", Unavailable),
    _Meaning("raft proposal dropped", Unavailable),
    # Proposed, and then nobody knows:
    _Meaning("leader changed", Unavailable, maybe_applied=True),
    _Meaning("request timed out", Unavailable, maybe_applied=True),
    _Meaning("server stopped", Unavailable, maybe_applied=True),
    # gRPC's words for a connection that was never made (grpc/src/core, pick_first and subchannel):
    _Meaning("failed to connect to all addresses", Unavailable),
    _Meaning("DNS resolution failed", Unavailable),
    _Meaning("Cannot invoke RPC", Unavailable),
)

_IN_DOUBT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    }
)


def translate(code: grpc.StatusCode, details: str, *, endpoint: str, path: str) -> SkywardEtcdError:
    """Return our error for a failed call of ``path`` at ``endpoint``."""
    call = path.rpartition("/")[2]
    for meaning in _ETCD_SAYS:
        if meaning.words in details:
            message = f"{call} at {endpoint}: {details}"
            if meaning.remedy:
                message += f" ({meaning.remedy})"
            if issubclass(meaning.error, Unavailable):
                return meaning.error(message, maybe_applied=meaning.maybe_applied)
            return meaning.error(message)
    if code in _IN_DOUBT:
        return Unavailable(f"{call} at {endpoint}: {code.name.lower().replace('_', ' ')}: {details}")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return PermissionDenied(f"{call} at {endpoint}: {details}")
    return EtcdError(f"{call} at {endpoint}: {code.name.lower()}: {details}")
