"""What a failed call means decides what may be sent again: the whole table."""

from __future__ import annotations

import pytest

from skyward_etcd import errors
from skyward_etcd.wire.status import CallFailed, Status, translate

UNAVAILABLE = Status.UNAVAILABLE


def meaning(code: Status, details: str) -> Exception:
    return translate(CallFailed(code, details), endpoint="h:1", path="/etcdserverpb.KV/Txn")


@pytest.mark.parametrize(
    "details",
    [
        "etcdserver: no leader",
        "etcdserver: too many requests",
    ],
)
def test_what_was_refused_before_it_was_proposed_was_certainly_not_applied(details: str) -> None:
    error = meaning(UNAVAILABLE, details)
    assert isinstance(error, errors.Unavailable)
    assert not error.maybe_applied


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (UNAVAILABLE, "Socket closed"),
        (UNAVAILABLE, "etcdserver: leader changed"),
        (UNAVAILABLE, "etcdserver: request timed out"),
        (UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
        (Status.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (Status.CANCELLED, "Channel deallocated!"),
        (Status.UNKNOWN, "Stream removed"),
        (Status.INTERNAL, "RST_STREAM"),
    ],
)
def test_a_connection_that_broke_under_a_call_leaves_it_in_doubt(code: Status, details: str) -> None:
    error = meaning(code, details)
    assert isinstance(error, errors.Unavailable)
    assert error.maybe_applied


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (Status.NOT_FOUND, "etcdserver: requested lease not found", errors.LeaseNotFound),
        (Status.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", errors.Compacted),
        (Status.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", errors.NoSpace),
        (Status.INVALID_ARGUMENT, "etcdserver: request is too large", errors.ValueTooLarge),
        (Status.PERMISSION_DENIED, "etcdserver: permission denied", errors.PermissionDenied),
        (Status.UNAUTHENTICATED, "whatever", errors.PermissionDenied),
        (Status.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", errors.EtcdError),
    ],
)
def test_a_refusal_has_its_own_error(code: Status, details: str, expected: type[Exception]) -> None:
    assert type(meaning(code, details)) is expected


def test_an_error_says_which_call_at_which_endpoint() -> None:
    assert str(meaning(UNAVAILABLE, "Socket closed")) == "Txn at h:1: unavailable: Socket closed"
