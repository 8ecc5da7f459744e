"""Which node runs which call: in turn, those that have a free place, so that a slow node holds nobody up."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable

from skyward_etcd.errors import QuorumLost, SkywardEtcdError
from skyward_etcd.pool.call import Call
from skyward_etcd.pool.handle import NodeHandle, lost

__all__ = ["Dispatcher"]


class Dispatcher:
    """Queues calls and hands them to nodes with a free place. Never waits."""

    def __init__(self) -> None:
        self._nodes: dict[int, NodeHandle] = {}
        self._for_any: deque[Call] = deque()
        self._for_one: defaultdict[int, deque[Call]] = defaultdict(deque)
        self._turn = 0
        self._closed: SkywardEtcdError | None = None
        self._guard = threading.RLock()

    def add(self, node: NodeHandle) -> None:
        """Let a node have calls; it takes the place of one that is lost."""
        with self._guard:
            self._nodes[node.index] = node
        self.assign()

    def remove(self, node: NodeHandle) -> None:
        """Give a node no more calls."""
        with self._guard:
            if self._nodes.get(node.index) is node:
                del self._nodes[node.index]

    @property
    def takes_calls(self) -> bool:
        """Whether it is not closed."""
        return self._closed is None

    @property
    def nodes(self) -> list[NodeHandle]:
        """The nodes that take calls, in the order of their numbers."""
        with self._guard:
            return sorted(self._nodes.values(), key=lambda node: node.index)

    def submit(self, calls: Iterable[Call]) -> None:
        """Queue calls, in order.

        Raises:
            SkywardEtcdError: the dispatcher is closed, with the error that it was closed with.
        """
        with self._guard:
            if self._closed:
                raise self._closed
            for call in calls:
                self._queue_of(call).append(call)
        self.assign()

    def assign(self) -> None:
        """Hand out what can be handed out: called whenever a call comes or a place becomes free."""
        while True:
            with self._guard:
                node = self._next_with_work()
                if node is None:
                    return
                call = (self._for_one[node.index] or self._for_any).popleft()
                if call.take():
                    self._turn = node.index + 1
                    node.run(call)

    def again(self, node: NodeHandle, code: int, calls: list[Call]) -> None:
        """Deal with the calls of a node that has died: those that may run again go to the front of the queue."""
        for call in reversed(calls):
            if call.retries > 0 and not self._closed:
                call.retries -= 1
                with self._guard:
                    self._queue_of(call).appendleft(call)
            else:
                call.set_exception(lost(node.name, code, call.order.name))

    def give_up(self, call: Call, error: BaseException) -> None:
        """Stop waiting for a call, wherever it is."""
        if call.cancel() or call.done():
            return
        if not any(node.give_up(call.number, error) for node in self.nodes) and not call.done():
            with self._guard:
                if call in self._queue_of(call):  # it is to be run again
                    self._queue_of(call).remove(call)
                    call.set_exception(error)

    def close(self, error: SkywardEtcdError) -> None:
        """Take no more calls, and fail those that wait. Only the first error counts."""
        with self._guard:
            self._closed = self._closed or error
            waiting = [*self._for_any, *(call for queue in self._for_one.values() for call in queue)]
            self._for_any.clear()
            self._for_one.clear()
        for call in waiting:
            if call.take():
                call.set_exception(error)

    def reopen(self) -> None:
        """Take calls again, if it was closed because the cluster was lost."""
        with self._guard:
            if isinstance(self._closed, QuorumLost):
                self._closed = None

    def _queue_of(self, call: Call) -> deque[Call]:
        return self._for_any if call.target is None else self._for_one[call.target]

    def _next_with_work(self) -> NodeHandle | None:
        """The next node in turn that has a free place and something to do."""
        if not self._for_any and not any(self._for_one.values()):
            return None
        in_turn = sorted(self._nodes.values(), key=lambda node: (node.index < self._turn, node.index))
        return next((node for node in in_turn if node.free and (self._for_one[node.index] or self._for_any)), None)
