"""etcd's textbook recipes, as one finds them in its documentation and in its Go client, on the bare stub."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.bare import Stub, absent, delete, end_of, modified_at, put
from skyward_etcd.wire import messages as pb

__all__ = ["TextbookCounter", "TextbookMutex", "TextbookQueue"]


class TextbookCounter:
    """Get, then compare-and-swap; again if another was quicker. The example of most introductions to etcd."""

    def __init__(self, stub: Stub, name: str) -> None:
        self._stub = stub
        self._key = f"/textbook/counter/{name}".encode()

    def increment(self) -> int:
        """Add one and return the new total."""
        while True:
            found = self._stub.range(pb.RangeRequest(key=self._key)).kvs
            total = int(found[0].value) + 1 if found else 1
            unchanged = modified_at(self._key, found[0].mod_revision) if found else absent(self._key)
            write = put(self._key, str(total).encode())
            if self._stub.txn(pb.TxnRequest(compare=[unchanged], success=[write])).succeeded:
                return total


class TextbookQueue:
    """The first key by create revision, deleted in a transaction: ``client/v3/experimental/recipes/queue.go``."""

    def __init__(self, stub: Stub, name: str) -> None:
        self._stub = stub
        self._prefix = f"/textbook/queue/{name}/".encode()

    def put(self, value: Any) -> None:
        """Add an item, under a key made of the time."""
        while True:
            key = self._prefix + str(time.time_ns()).encode()
            write = put(key, str(value).encode())
            if self._stub.txn(pb.TxnRequest(compare=[absent(key)], success=[write])).succeeded:
                return

    def put_many(self, values: list[Any]) -> None:
        """Add items, 100 in a transaction: not of the recipe, but to have a long queue before the measurement."""
        for start in range(0, len(values), 100):
            first = time.time_ns()
            writes = [
                put(self._prefix + str(first + place).encode(), str(value).encode())
                for place, value in enumerate(values[start : start + 100])
            ]
            self._stub.txn(pb.TxnRequest(success=writes))

    def get(self) -> bytes:
        """Take the first item; wait for one, by a watch from the revision after the look."""
        while True:
            look = self._stub.range(
                pb.RangeRequest(
                    key=self._prefix,
                    range_end=end_of(self._prefix),
                    limit=1,
                    sort_target=pb.RangeRequest.CREATE,
                    sort_order=pb.RangeRequest.ASCEND,
                )
            )
            if not look.kvs:
                self._stub.wait_for(
                    pb.Event.PUT, self._prefix, end_of(self._prefix), start_revision=look.header.revision + 1
                )
                continue
            first = look.kvs[0]
            unchanged = modified_at(first.key, first.mod_revision)
            if self._stub.txn(pb.TxnRequest(compare=[unchanged], success=[delete(first.key)])).succeeded:
                return first.value


class TextbookMutex:
    """A key on a lease for each contender, in the order of create revision: ``client/v3/concurrency/mutex.go``."""

    def __init__(self, stub: Stub, name: str) -> None:
        self._stub = stub
        self._prefix = f"/textbook/mutex/{name}/".encode()
        self._lease = stub.lease_grant(pb.LeaseGrantRequest(TTL=60)).ID
        self._key = self._prefix + f"{self._lease:x}".encode()

    def acquire(self) -> None:
        """Queue up, and wait for the deletion of the key before one's own."""
        entered = self._stub.txn(
            pb.TxnRequest(
                compare=[absent(self._key)],
                success=[put(self._key, lease=self._lease), self._first()],
                failure=[pb.RequestOp(request_range=pb.RangeRequest(key=self._key)), self._first()],
            )
        )
        mine = entered.header.revision
        if entered.responses[1].response_range.kvs[0].create_revision == mine:
            return
        while True:
            ahead = self._stub.range(
                pb.RangeRequest(
                    key=self._prefix,
                    range_end=end_of(self._prefix),
                    limit=1,
                    sort_target=pb.RangeRequest.CREATE,
                    sort_order=pb.RangeRequest.DESCEND,
                    max_create_revision=mine - 1,
                )
            )
            if not ahead.kvs:
                break
            self._stub.wait_for(pb.Event.DELETE, ahead.kvs[0].key, start_revision=ahead.header.revision)
        self._stub.range(pb.RangeRequest(key=self._key))  # is my key still there

    def release(self) -> None:
        """Delete one's key."""
        self._stub.delete_range(pb.DeleteRangeRequest(key=self._key))

    def _first(self) -> pb.RequestOp:
        return pb.RequestOp(
            request_range=pb.RangeRequest(
                key=self._prefix,
                range_end=end_of(self._prefix),
                limit=1,
                sort_target=pb.RangeRequest.CREATE,
                sort_order=pb.RangeRequest.ASCEND,
            )
        )
