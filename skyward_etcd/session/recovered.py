"""What has to be done to a cluster that was made from the data of a lost one, before anybody uses it.

The data may be behind what the lost cluster's clients have seen, and nobody can tell how far. So two things must not
come again: what hung on a session (locks, claims, places at barriers, proofs of writes), and fencing tokens.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from skyward_etcd.errors import LeaseNotFound
from skyward_etcd.ops import kv
from skyward_etcd.ops.layout import TOKEN_BASE
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Tls, Wire
from skyward_etcd.wire.methods import LEASE_LEASES, LEASE_REVOKE, PUT, RANGE

__all__ = ["make_fit", "next_token_base"]

_CALL_S = 10.0
_REVISIONS = 10**12
"""More than any cluster ever writes: at 10,000 a second it takes three years."""


def make_fit(endpoint: str, *, tls: Tls | None = None) -> None:
    """End all sessions that the cluster knows of, and make fencing tokens go on beyond all that were ever given.

    Not for a cluster that somebody uses. Done twice, it does no harm.

    Raises:
        Unavailable, EtcdError: not done.
    """
    with contextlib.closing(Wire((endpoint,), tls=tls)) as wire:

        def call(method: Any, request: Any) -> Any:
            return wire.call(method, request, timeout_s=_CALL_S)

        for lease in call(LEASE_LEASES, pb.LeaseLeasesRequest()).leases:
            with contextlib.suppress(LeaseNotFound):  # it has ended in this moment
                call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease.ID))
        found = call(RANGE, kv.read(TOKEN_BASE))
        base = next_token_base(kv.number(found.kvs), found.header.revision, now_us=time.time_ns() // 1000)
        call(PUT, pb.PutRequest(key=TOKEN_BASE, value=b"%d" % base))


def next_token_base(base: int, revision: int, *, now_us: int) -> int:
    """Return what to add to revisions from this one on, so that tokens go on growing.

    That no cluster writes 10**12 times between what is left of it and its loss is enough, while the base before is
    known. Where that is lost too, as in the copy of a disk from before an earlier recovery, the clock helps: no etcd
    writes a million times a second, so tokens that begin with the microseconds since 1970 are never overtaken.
    """
    return max(base + _REVISIONS, now_us - revision)
