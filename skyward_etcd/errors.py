"""Every error of the library, each also the builtin that a caller would catch.

::

    SkywardEtcdError
    ├── NotConnected(RuntimeError)              no session here: outside a pool, or cluster=False
    ├── OutcomeUnknown(RuntimeError)            a write may or may not have been applied; it was not repeated
    ├── Unavailable(ConnectionError)            no endpoint answered in time
    │   └── QuorumLost                          the majority of the members is gone
    ├── EtcdError(RuntimeError)                 etcd refused the request
    │   ├── LeaseNotFound                       the session's lease has expired or was revoked
    │   ├── Compacted                           the asked-for revision is no longer in the history
    │   ├── PermissionDenied(PermissionError)   wrong or missing credentials
    │   └── NoSpace(OSError)                    the cluster's quota is reached
    ├── LockTimeout(TimeoutError)               the lock was not to be had in time
    ├── NotHeld(RuntimeError)                   release() by somebody who does not hold it
    ├── HoldLost(RuntimeError)                  a lock or a claim was lost while it was held
    ├── BrokenBarrier(BrokenBarrierError)       a participant died, left or timed out
    ├── WrongKind(TypeError)                    the name belongs to another kind of collection
    ├── NoSuchCollection(LookupError)           an operator asked for a name that nobody has used
    ├── ValueTooLarge(ValueError)               over the limit for one value
    ├── UnsupportedType(TypeError)              no codec for this key or value
    ├── CorruptValue(ValueError)                stored bytes that are not ours, or not signed by us
    ├── BinaryNotFound(FileNotFoundError)       no etcd binary
    ├── UnsafeEtcd(RuntimeError)                this etcd version cannot keep the promise asked for
    ├── PoolError(RuntimeError)                 the pool could not start, or is closed
    └── NodeLost(RuntimeError)                  a node died under a running function

Every message says what happened, to which collection, and what to do about it.
"""

from __future__ import annotations

import threading

__all__ = [
    "BinaryNotFound",
    "BrokenBarrier",
    "Compacted",
    "CorruptValue",
    "EtcdError",
    "HoldLost",
    "LeaseNotFound",
    "LockTimeout",
    "NoSpace",
    "NoSuchCollection",
    "NodeLost",
    "NotConnected",
    "NotHeld",
    "OutcomeUnknown",
    "PermissionDenied",
    "PoolError",
    "QuorumLost",
    "SkywardEtcdError",
    "Unavailable",
    "UnsafeEtcd",
    "UnsupportedType",
    "ValueTooLarge",
    "WrongKind",
]


class SkywardEtcdError(Exception):
    """The root of everything this library raises on purpose."""


class NotConnected(SkywardEtcdError, RuntimeError):
    """There is no session here: code runs outside a pool and outside ``connect()``, or the pool has no cluster."""


class OutcomeUnknown(SkywardEtcdError, RuntimeError):
    """A write was sent, its answer was lost, and whether it was applied cannot be found out.

    It was applied once or not at all, never twice.
    """


class Unavailable(SkywardEtcdError, ConnectionError):
    """No endpoint answered within the time the operation had.

    ``maybe_applied`` is false only if the operation certainly has changed nothing: it may be made again.
    """

    def __init__(self, message: str, *, maybe_applied: bool = True) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class QuorumLost(Unavailable):
    """The majority of the cluster's members is gone, so that nothing can be read or written.

    Also raised, once, by what was under way when the cluster was recovered: another call will do.
    """


class EtcdError(SkywardEtcdError, RuntimeError):
    """etcd answered, and refused the request."""


class LeaseNotFound(EtcdError):
    """The lease named in a request has expired or was revoked: the session is lost."""


class Compacted(EtcdError):
    """The revision asked for is no longer in etcd's history."""


class PermissionDenied(EtcdError, PermissionError):
    """etcd does not accept the credentials, or they do not allow this key."""


class NoSpace(EtcdError, OSError):
    """The cluster's space quota is reached: writes are refused until space is made.

    Nothing was written (of a bulk operation: nothing from this part on), except perhaps by ``d[k] = v`` and ``update``
    of an eventual dict.
    """


class LockTimeout(SkywardEtcdError, TimeoutError):
    """The lock was not to be had within the time given; the caller does not hold it and no longer waits for it."""


class NotHeld(SkywardEtcdError, RuntimeError):
    """A lock or a claim was given up by somebody who does not hold it (any more). Nobody's hold was touched."""


class HoldLost(SkywardEtcdError, RuntimeError):
    """The session's lease ended while a lock or a claim was held: another holder may be at work."""


class BrokenBarrier(SkywardEtcdError, threading.BrokenBarrierError):
    """A participant of this generation died, left, or timed out, so that it can never be complete."""


class WrongKind(SkywardEtcdError, TypeError):
    """The name is in use by another kind of collection, or with other settings."""


class NoSuchCollection(SkywardEtcdError, LookupError):
    """Nobody has used this name for a collection of this kind, in this namespace."""


class ValueTooLarge(SkywardEtcdError, ValueError):
    """The encoded key or value is over the limit; nothing was sent."""


class UnsupportedType(SkywardEtcdError, TypeError):
    """There is no codec for this key or value; nothing was sent."""


class CorruptValue(SkywardEtcdError, ValueError):
    """Stored bytes that this library did not write, or whose signature does not match."""


class BinaryNotFound(SkywardEtcdError, FileNotFoundError):
    """No etcd binary was found. The message lists where was looked and how to get one."""


class UnsafeEtcd(SkywardEtcdError, RuntimeError):
    """The etcd found cannot keep the promise asked for: for instance a durable cluster on 3.5.0 to 3.5.2."""


class PoolError(SkywardEtcdError, RuntimeError):
    """The pool could not be started, or is no longer open."""


class NodeLost(SkywardEtcdError, RuntimeError):
    """A node of the pool died while it ran the function."""
