"""The pool's nodes: started side by side, replaced when they die, and all ended with the pool."""

from __future__ import annotations

import logging
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from skyward_etcd.cluster import binary, bootstrap
from skyward_etcd.cluster.binary import Etcd, Verdict
from skyward_etcd.cluster.lifeline import SCRATCH
from skyward_etcd.cluster.member import MemberSpec
from skyward_etcd.errors import PoolError, QuorumLost
from skyward_etcd.pool.call import Call
from skyward_etcd.pool.dispatch import Dispatcher
from skyward_etcd.pool.handle import NodeHandle
from skyward_etcd.pool.link import environment
from skyward_etcd.pool.members import Members
from skyward_etcd.pool.protocol import NodeConfig
from skyward_etcd.pool.runtime import InstanceInfo, NetworkInfo, PeerInfo
from skyward_etcd.pool.spec import Worker

__all__ = ["Blueprint", "Fleet"]

_log = logging.getLogger("skyward_etcd.pool")

_ATTEMPTS = 3
"""To replace a node."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What nodes to start."""

    nodes: int
    worker: Worker
    clustered: bool
    spot: bool
    durable: Path | None
    namespace: str
    etcd: str | Path | None
    env: Mapping[str, str] = field(repr=False)
    start_s: float
    job: str
    secret: bytes = field(repr=False, default_factory=lambda: secrets.token_bytes(32))


class Fleet:
    """All nodes of one pool. What becomes ready is given to the dispatcher, what dies is taken from it and replaced.

    ``on_change`` is called when the cluster's `endpoints` have changed, ``on_lost`` with the reason when it is lost,
    and ``on_recovered`` with what to tell those who still wait when there is another one; from any thread.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        dispatcher: Dispatcher,
        *,
        on_change: Callable[[], None],
        on_lost: Callable[[str], None],
        on_recovered: Callable[[str], None],
    ) -> None:
        self._blueprint = blueprint
        self._dispatcher = dispatcher
        self._on_change = on_change
        self._on_lost = on_lost
        self._on_recovered = on_recovered
        self._handles: dict[int, NodeHandle] = {}
        self._members: Members | None = None
        self.lost = ""
        """Why the cluster is lost for good, if it is."""
        self._replacing: set[NodeHandle] = set()
        self._scratch: list[Path] = []
        self._closing = False
        self._guard = threading.Lock()
        self._turning = threading.RLock()
        """Held while all are told that the cluster is lost, or that there is another one."""
        self._recovering = threading.Lock()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the members are; none without a cluster."""
        return self._members.endpoints() if self._members else ()

    def start(self) -> None:
        """Start all nodes and wait until they are ready; if one fails, none is left.

        Raises:
            BinaryNotFound: there is no etcd.
            UnsafeEtcd: the etcd to be had cannot keep what this pool promises.
            PoolError: a node could not be started, for the reason given.
        """
        etcd = self._find_etcd()
        try:
            self._start_all(etcd)
        except BaseException:
            self.kill()
            raise

    def recover(self) -> None:
        """Make a new cluster from what is left of a lost one, and replace the nodes that died.

        Raises:
            QuorumLost: no member is left.
            PoolError: it was not possible, for the reason given, or there is nothing to recover.
            Unavailable: the member with the newest data does not give them.
        """
        with self._recovering:
            if not self._members or not self.lost:
                raise PoolError("there is nothing to recover: the pool has no cluster, or that has its majority")
            if self._blueprint.durable:
                raise PoolError(
                    f"a durable cluster is recovered when nobody uses it: close the pool, run `skyward-etcd recover "
                    f"{self._blueprint.durable}`, and open it again"
                )
            with self._guard:
                nodes = {index: handle for index, handle in self._handles.items() if handle.alive}
            members = self._members.recover(nodes)
            self._turn_to(members)
            (host,) = (node for node in nodes.values() if members.of(node.index))
            try:
                host.check_member()  # it may have died before anybody knew that the cluster hangs on it
            except PoolError as error:
                members.member_lost(host.index, str(error))
                raise QuorumLost(f"the cluster was recovered, and lost again: {error}", maybe_applied=False) from error
            with self._guard:
                handles = list(self._handles.values())
            for handle in handles:
                if handle.alive:
                    members.fill(handle)
                elif handle.was_ready:  # else somebody is about to replace it
                    self._begin_replacing(handle)

    def _turn_to(self, members: Members) -> None:
        """Let all go on with the members of a new cluster."""
        reason = "the pool's cluster was lost, and recovered: what was under way has ended, and all holds are free"
        with self._turning:
            if self._closing:
                members.close()
                raise PoolError("the pool is closed")
            before, self._members = self._members, members
            if before:
                before.close()
            with self._guard:
                handles = list(self._handles.values())
            for handle in handles:
                handle.start_over(members.endpoints(handle.index), reason)
            self._on_recovered(reason)
            self.lost = ""
            self._dispatcher.reopen()
        self._dispatcher.assign()

    def close(self, timeout_s: float) -> None:
        """Let all nodes say good-bye while all members are there, then end them; kill those that take too long."""
        self._closing = True
        if self._members:
            self._members.close()
        deadline = time.monotonic() + timeout_s
        handles = list(self._handles.values())
        try:
            for handle in handles:
                handle.leave()
            for handle in handles:
                handle.wait_left(max(0.0, deadline - time.monotonic()))
            for handle in handles:
                handle.hang_up()
            for handle in handles:
                handle.join(max(1.0, deadline - time.monotonic()))
        finally:
            self.kill()

    def kill(self) -> None:
        """End all nodes now, and remove what they had on disk."""
        self._closing = True
        if self._members:
            self._members.close()
        with self._guard:
            handles, self._handles = list(self._handles.values()), {}
        for handle in handles:
            handle.kill()
        for directory in self._scratch:
            shutil.rmtree(directory, ignore_errors=True)
        self._scratch.clear()

    def _find_etcd(self) -> Etcd | None:
        if not self._blueprint.clustered:
            return None
        return binary.find(self._blueprint.etcd, durable=self._blueprint.durable is not None, members=self._voters)

    @property
    def _voters(self) -> int:
        return bootstrap.voters(self._blueprint.nodes, spot=self._blueprint.spot)

    def _start_all(self, etcd: Etcd | None) -> None:
        self._closing = False
        if etcd:
            self._members = Members(
                etcd,
                dict(enumerate(self._plan(etcd))),
                new_directory=self._new_scratch,
                on_change=self._tell_endpoints,
                on_end=self._cluster_lost,
            )
        head_port = bootstrap.free_ports(1)[0]
        infos = [self._info(index, head_port) for index in range(self._blueprint.nodes)]
        for info in infos:
            self._start(info)
        self._wait_ready(list(self._handles.values()))
        for handle in self._handles.values():
            self._dispatcher.add(handle)

    def _plan(self, etcd: Etcd) -> Sequence[MemberSpec]:
        directory = self._blueprint.durable
        specs = bootstrap.plan(self._voters, directory or self._new_scratch(), durable=directory is not None)
        self._scratch += [specs[0].sockets] if specs[0].sockets else []
        if directory:
            return specs
        # A directory for each node: it goes with the node, as the disk of a lost machine would. Only one that is alone
        # keeps it, if its release may restart from it: else a function that crashes its node would end the pool.
        sound = binary.grade(etcd.version, durable=True, members=1).verdict is not Verdict.REFUSED
        if len(specs) == 1:
            return [replace(specs[0], restarts=sound)]
        return [replace(spec, data_dir=self._new_scratch() / spec.name) for spec in specs]

    def _new_scratch(self) -> Path:
        self._scratch.append(Path(tempfile.mkdtemp(prefix=SCRATCH)))
        return self._scratch[-1]

    def _start(self, info: InstanceInfo) -> NodeHandle:
        member = self._members.of(info.node) if self._members else None
        env, python_path = environment(self._blueprint.env)
        config = NodeConfig(
            info=info,
            worker=self._blueprint.worker,
            path=tuple(sys.path),
            python_path=python_path,
            endpoints=self._members.endpoints(info.node) if self._members else (),
            namespace=self._blueprint.namespace,
            secret=self._blueprint.secret,
            etcd=self._members.etcd if self._members and member else None,
            member=member,
            start_s=self._blueprint.start_s,
        )
        handle = NodeHandle(
            config, on_free=self._dispatcher.assign, on_lost=self._lost, on_member_lost=self._member_lost
        )
        with self._guard:
            if self._closing:
                raise PoolError("the pool is closed")
            self._handles[info.node] = handle
        handle.start(env, member.data_dir.parent if member and not member.durable else None)
        return handle

    def _info(self, index: int, head_port: int) -> InstanceInfo:
        worker = self._blueprint.worker
        return InstanceInfo(
            node=index,
            total_nodes=self._blueprint.nodes,
            workers_per_node=worker.concurrency if worker.resolved_executor == "process" else 1,
            head_port=head_port,
            job_id=self._blueprint.job,
            peers=[
                PeerInfo(node=peer, private_ip="127.0.0.1", public_ip=None) for peer in range(self._blueprint.nodes)
            ],
            network=NetworkInfo(interface="lo", bandwidth_gbps=0.0),
        )

    def _wait_ready(self, handles: Sequence[NodeHandle]) -> None:
        waiting = [handle.ready for handle in handles]
        done, late = wait(waiting, self._blueprint.start_s, FIRST_EXCEPTION)
        for ready in done:
            ready.result()
        if late:
            names = ", ".join(handle.name for handle in handles if handle.ready in late)
            raise PoolError(f"not ready after {self._blueprint.start_s:g} s: {names}")

    def _cluster_lost(self, error: QuorumLost) -> None:
        with self._turning:
            self.lost = str(error)
            self._dispatcher.close(error)
            with self._guard:
                handles = list(self._handles.values())
            for handle in handles:
                handle.lose(self.lost)
            self._on_lost(self.lost)

    def _tell_endpoints(self) -> None:
        with self._guard:
            handles = list(self._handles.values())
        for handle in handles:
            self._tell(handle)
        self._on_change()

    def _tell(self, handle: NodeHandle) -> None:
        if self._members:
            handle.follow(self._members.endpoints(handle.index))

    def _lost(self, handle: NodeHandle, code: int, calls: list[Call]) -> None:
        """A node has died. Runs in the thread of the node's link."""
        self._dispatcher.remove(handle)
        goes_on = not self._members or self._members.node_lost(handle.index, f"{handle.name} ended with {code}")
        self._dispatcher.again(handle, code, calls)
        if goes_on and not self._closing:
            _log.warning("%s ended with %s; starting another in its place", handle.name, code)
            self._begin_replacing(handle)

    def _member_lost(self, handle: NodeHandle, reason: str) -> None:
        """A member has died under a node that lives. Runs in the thread of the node's link."""
        if self._members and self._members.member_lost(handle.index, reason) and not self._closing:
            _log.warning("%s; the others go on without it", reason)
            self._members.fill(handle)

    def _begin_replacing(self, dead: NodeHandle) -> None:
        """Have a dead node replaced, once, whoever says so."""
        with self._guard:
            if self._closing or self._handles.get(dead.index) is not dead or dead in self._replacing:
                return
            self._replacing.add(dead)
        threading.Thread(target=self._replace, args=(dead,), name=f"new {dead.name}", daemon=True).start()

    def _replace(self, dead: NodeHandle) -> None:
        """Start a node in the place of a dead one, then give it a member; a pool that cannot is at its end."""
        try:
            self._try_to_replace(dead)
        finally:
            with self._guard:
                self._replacing.discard(dead)

    def _try_to_replace(self, dead: NodeHandle) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                handle = self._start(dead.info)
                self._wait_ready([handle])
            except Exception as error:  # noqa: BLE001  it ends in the pool's own error
                if self._closing:
                    return
                if attempt == _ATTEMPTS:
                    self._dispatcher.close(PoolError(f"{dead.name} died and could not be replaced: {error}"))
                time.sleep(0.1 * attempt)
            else:
                self._catch_up(handle)
                self._dispatcher.add(handle)
                if self._members:
                    self._members.fill(handle)
                return

    def _catch_up(self, handle: NodeHandle) -> None:
        """Tell a node what has become of the cluster while it was starting."""
        with self._turning:
            self._tell(handle)
            if self.lost:
                handle.lose(self.lost)
