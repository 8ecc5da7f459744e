"""The bare stub: grpcio's own calls with etcd's messages, and nothing above. What everything is measured against."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from skyward_etcd.wire import http, methods
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.methods import Method, Reply, Request

__all__ = ["OurWire", "Rpcs", "Stub", "absent", "cpu_seconds", "delete", "end_of", "kv_requests", "modified_at", "put"]


class Rpcs:
    """etcd's unary calls on some transport."""

    def __init__(self) -> None:
        self.range = self._unary(methods.RANGE)
        self.put = self._unary(methods.PUT)
        self.delete_range = self._unary(methods.DELETE_RANGE)
        self.txn = self._unary(methods.TXN)
        self.lease_grant = self._unary(methods.LEASE_GRANT)

    def _unary(self, method: Method[Request, Reply]) -> Callable[[Request], Reply]:
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection."""
        raise NotImplementedError


class OurWire(Rpcs):
    """The same calls on our own transport, without what is above it: what our layers cost is the difference."""

    def __init__(self, endpoint: str) -> None:
        self._wire = Wire([endpoint], transport="sockets")
        super().__init__()

    def _unary(self, method: Method[Request, Reply]) -> Callable[[Request], Reply]:
        return lambda request: self._wire.call(method, request, timeout_s=3.0)

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()


class Stub(Rpcs):
    """grpcio's channel to one member, and its stubs. Blocking, for several threads."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(
            endpoint, options=(("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
        )
        super().__init__()
        self._watch: Any = self._channel.stream_stream(
            methods.WATCH.path,
            request_serializer=methods.WATCH.encode,
            response_deserializer=methods.WATCH.decode,
        )

    def _unary(self, method: Method[Request, Reply]) -> Callable[[Request], Reply]:
        make: Any = self._channel.unary_unary
        stub: Callable[[Request], Reply] = make(
            method.path, request_serializer=_serializer(method.request), response_deserializer=_parser(method.reply)
        )
        return stub

    def wait_for(self, kind: pb.Event.EventType, key: bytes, range_end: bytes = b"", *, start_revision: int) -> None:
        """Watch until a put or a delete happens: a stream of its own each time, as in etcd's recipes."""
        requests: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        create = pb.WatchCreateRequest(key=key, range_end=range_end, start_revision=start_revision)
        requests.put(pb.WatchRequest(create_request=create))
        stream = self._watch(iter(requests.get, None))
        try:
            for reply in stream:
                if any(event.type == kind for event in reply.events):
                    return
        finally:
            stream.cancel()
            requests.put(None)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _serializer(message: Any) -> Any:
    return message.SerializeToString  # protobuf's own, without a Python function of ours around it


def _parser(message: Any) -> Any:
    return message.FromString


def put(key: bytes, value: bytes = b"", *, lease: int = 0) -> pb.RequestOp:
    """Write a key, as a part of a transaction."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes) -> pb.RequestOp:
    """Delete a key, as a part of a transaction."""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def absent(key: bytes) -> pb.Compare:
    """The key does not exist."""
    return pb.Compare(target=pb.Compare.CREATE, result=pb.Compare.EQUAL, key=key, create_revision=0)


def modified_at(key: bytes, revision: int) -> pb.Compare:
    """The key was last written at this revision."""
    return pb.Compare(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=key, mod_revision=revision)


def end_of(prefix: bytes) -> bytes:
    """Return the end of the interval of all keys that begin with a prefix."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def kv_requests(endpoints: Sequence[str]) -> int:
    """Return how many reads, writes and transactions the members have answered since they started.

    From etcd's own metrics: so it does not matter which process, thread or layer asked. Leases, watches and questions
    about a member's health are not in it.
    """
    handled = "grpc_server_handled_total{"
    return round(_total(endpoints, lambda line: line.startswith(handled) and 'grpc_service="etcdserverpb.KV"' in line))


def cpu_seconds(endpoints: Sequence[str]) -> float:
    """Return how much CPU the members have used since they started, all together: from their own metrics too."""
    return _total(endpoints, lambda line: line.startswith("process_cpu_seconds_total "))


def _total(endpoints: Sequence[str], counts: Callable[[str], bool]) -> float:
    total = 0.0
    for endpoint in endpoints:
        page = http.ask(endpoint, "/metrics", timeout_s=10.0)
        if page is None:
            raise ConnectionError(f"{endpoint} does not tell its metrics")
        total += sum(float(line.rpartition(" ")[2]) for line in page.body.decode().splitlines() if counts(line))
    return total
