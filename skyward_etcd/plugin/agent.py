"""A node's part in its pool's cluster: it finds or founds it, runs a member if it is to, and keeps it whole.

There is no coordinator: nodes come and go without a word. Each looks twice a second at what the cluster and the
other nodes say, and does what the rules of `roster` leave to it. Nobody waits for that: a node serves as soon as it
knows one member, and goes on wherever the members are.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from zlib import crc32

from skyward_etcd.active import Connection
from skyward_etcd.cluster import private, recovery, tls
from skyward_etcd.cluster.binary import Etcd, Verdict, grade, spell
from skyward_etcd.cluster.bootstrap import free_ports
from skyward_etcd.cluster.lifeline import SCRATCH
from skyward_etcd.cluster.member import Member, MemberSpec, PortTaken
from skyward_etcd.cluster.membership import Heard, Listed, Membership, hand_over, hear
from skyward_etcd.errors import EtcdError, LockTimeout, PoolError, QuorumLost, Unavailable
from skyward_etcd.plugin import roster
from skyward_etcd.plugin.copies import Copies
from skyward_etcd.plugin.relay import Relay
from skyward_etcd.plugin.roster import Seat, Word
from skyward_etcd.plugin.shared import Access, Cluster
from skyward_etcd.plugin.talk import Answer, Listener, ask, ask_all
from skyward_etcd.session import recovered
from skyward_etcd.session.session import Session, Tls

__all__ = ["ACCESS", "Agent", "Home"]

L = TypeVar("L", Listener, Relay)

_log = logging.getLogger("skyward_etcd.plugin")

ACCESS = "access.json"
"""What a node's other processes look for in its directory."""
_EVERY_S = 0.5
_IN_TROUBLE_S = 0.25
"""While a member or the majority is silent."""
_ASK_S = 1.0
_START_S = 30.0
_FIND_S = 120.0
"""For a first node to found the cluster. Skyward itself gives its nodes three minutes to meet."""
_NOBODY_OPENS_S = 20.0
"""After that the lowest node founds it: who was to do it has died on the way."""
_LOST_S = 2.0
"""A cluster whose majority does not answer for so long holds no election: it is lost, or we are cut off."""
_SHRINK_S = 60.0
"""A pool that has become too small for its members may be about to get a node for one that was lost."""
_LEAVE_S = 5.0
_RESTARTS = 5
_ATTEMPTS = 3
_LONGEST_PAUSE_S = 30.0
_NO_HASTE_S = 600.0
"""The same where no member is missing, and one was only to be on another node."""
_TURN = "skyward-etcd members"
"""The lock under which the members are changed."""


@dataclass(frozen=True, slots=True)
class Home:
    """A node, and with what it does its part."""

    node: str
    """What no other node of the pool is ever called."""
    host: str
    """Where the others reach it."""
    opens: bool
    """Whether it founds the cluster, if nobody else has."""
    peers: Callable[[], Sequence[str]]
    """The hosts of all nodes as they are now, in the order of their ranks."""
    directory: Path
    """Where the other processes of the node find what lets them in."""
    etcd: Etcd
    tls: Tls | None = None
    """The pool's own certificates, by which its nodes know each other; without them, all goes in clear."""
    port: int = 2379
    """Of etcd; its peers', the nodes' and the relay's are the next three."""
    members: int | None = None
    namespace: str = "default"
    relay: str | None = "127.0.0.1"
    """Where the relay listens: where this machine itself is reached, by a tunnel to it. None for no relay."""

    @property
    def access(self) -> Path:
        """The file that lets the node's processes in."""
        return self.directory / ACCESS


class Agent:
    """The agent of one node: `start` it once, `close` it once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._closing = threading.Event()
        self._guard = threading.RLock()
        self._cluster: Cluster | None = None
        self._client: Tls | None = None
        self._session: Session | None = None
        self._member: Member | None = None
        self._joining = ""
        self._restarts = 0
        self._seats: Sequence[Seat] = ()
        """The members as the quorum knew them when it was last heard."""
        self._membership: Membership | None = None
        self._looking: threading.Thread | None = None
        self._changing: threading.Thread | None = None
        self._change: Membership | None = None
        self._failures = 0
        self._unfit_until = 0.0
        self._known_peers: set[str] = set()
        self._lost_since: float | None = None
        self._has = 0
        """The revision of the newest data of this node, when the majority is lost."""
        self._heard_at = 0.0
        """When a majority of the members last answered us."""
        self._size = 1
        """How many members there are to be, where it falls late."""
        self._small_since: float | None = None
        self._silent: dict[str, float] = {}
        """The hosts whose members do not answer, and since when."""
        self._mute: set[str] = set()
        """Those of them of which nothing at all is heard."""
        self._copies = Copies(home.directory / "copy")
        self._turn = 0
        self._open = contextlib.ExitStack()

    def start(self) -> Session:
        """Find the pool's cluster, or found it, and return a session of it. What else there is to do, it does later.

        Raises:
            PoolError: there is none after two minutes, or it could not be founded.
        """
        home = self._home
        private.directory(home.directory)
        self._copies.drop()
        with contextlib.ExitStack() as opened:
            listener = _listening(home, home.port + 2, lambda port: Listener(home.host, port, home.tls, self._word))
            opened.callback(listener.close)
            opened.callback(self._end_member)
            cluster = self._find()
            with self._guard:
                self._cluster, self._client = cluster, _client(cluster, home.node)
                self._seats = _seats_of(cluster)
                self._peers()
            if at := home.relay:
                relay = _listening(home, home.port + 3, lambda port: Relay(at, port, self._endpoints))
                opened.callback(relay.close)
            self._session = self._join()
            self._publish()
            self._looking = threading.Thread(target=self._run, name="skyward-etcd", daemon=True)
            self._looking.start()
            self._open = opened.pop_all()
        return self._session

    def close(self) -> None:
        """Leave: give back what the session holds, let another member lead, and end ours."""
        self._closing.set()
        if change := self._change:
            change.close()
        for thread in (self._looking, self._changing):
            if thread:
                thread.join(_LEAVE_S)
        if self._session:
            self._session.close()
        if self._member:
            hand_over(self._member.spec.endpoint, tls=self._client)
            self._member.stop()
        self._open.close()
        if self._membership:
            self._membership.close()
        self._home.access.unlink(missing_ok=True)
        self._copies.drop()

    @property
    def secret(self) -> bytes:
        """What signs pickles in this pool."""
        return self._known.secret

    # --- finding or founding

    def _find(self) -> Cluster:
        began = time.monotonic()
        while True:
            answers = self._ask_others(self._home.peers())
            if found := _newest(answers):
                return found
            waited = time.monotonic() - began
            first = next((peer for peer in self._home.peers() if peer == self._home.host or peer in answers), "")
            if self._home.opens or (waited > _NOBODY_OPENS_S and first == self._home.host):
                return self._found()
            if waited > _FIND_S:
                raise PoolError(
                    f"no node of this pool has a cluster after {_FIND_S:g} s: is port {self._home.port + 2} open "
                    "between the nodes, and has the node that opens the pool started?"
                )
            self._closing.wait(_IN_TROUBLE_S)

    def _found(self) -> Cluster:
        """Start the first member of a first cluster."""
        authorities = tls.make() if self._home.tls else None
        first = Cluster(0, "", {}, secrets.token_bytes(32), authorities)
        return self._found_next(first, story="")

    def _found_next(self, before: Cluster, *, story: str, snapshot: Path | None = None) -> Cluster:
        """Start the first member of the cluster after this one, empty or with the data of a snapshot.

        Should two nodes do so, that with data counts more.
        """
        epoch = before.epoch + (2 if snapshot else 1)
        after = replace(before, epoch=epoch, token=secrets.token_hex(8), members={}, story=story)
        fresh = self._fresh(after)
        fresh = replace(fresh, initial_cluster={fresh.name: fresh.peer_url}, state="new")
        try:
            if snapshot:
                recovery.restore(self._home.etcd, snapshot, fresh)
            self._call_off()
            self._end_member()  # its data have been saved, and its ports are wanted
            self._start_first(fresh)
            if snapshot:
                recovered.make_fit(fresh.endpoint, tls=self._client)
        except BaseException:
            self._end_member(fresh.name)
            shutil.rmtree(fresh.data_dir.parent, ignore_errors=True)
            raise
        return replace(after, members={fresh.name: fresh.endpoint})

    def _call_off(self) -> None:
        """End a change of the members of a cluster that is lost, with a member of ours that it was about to start."""
        if change := self._change:
            change.close()
        if self._changing:
            self._changing.join(_LEAVE_S)
            if self._changing.is_alive():  # it waits for the start
                self._end_member(self._joining)
                self._changing.join(_LEAVE_S)

    def _start_first(self, fresh: MemberSpec) -> None:
        for _ in range(_ATTEMPTS - 1):  # whose ports we want may take its time to end
            with contextlib.suppress(PortTaken):
                self._start_member(fresh)
                return
            self._closing.wait(1.0)
        self._start_member(fresh)

    def _join(self) -> Session:
        cluster = self._known
        return Session(
            self._endpoints(),
            namespace=self._home.namespace,
            secret=cluster.secret,
            node=self._home.node,
            tls=self._client,
        )

    # --- what is done over and over

    def _run(self) -> None:
        while not self._closing.wait(_IN_TROUBLE_S if self._lost_since or self._silent else _EVERY_S):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001  whatever it is, the next look may do better
                _log.warning("node %s could not look after its cluster: %s", self._home.node, error)

    def _look(self) -> None:
        self._tend_member()
        if roster.is_heir(self._home.host, self._seats, self._peers()):
            self._copies.begin(self._known, self._client)
        try:
            listed = self._members().listed()
        except (Unavailable, EtcdError):
            self._look_without_quorum()
            return
        self._lost_since, self._has, self._heard_at = None, 0, time.monotonic()
        self._seats = [_seat(member) for member in listed]
        if not roster.leavers(self._seats, self._peers()):
            self._copies.drop()
        if self._member and not self._joining and self._member.spec.name not in {seat.name for seat in self._seats}:
            self._end_member()  # we did not answer for a while, and were taken off the list
        self._follow({member.name: self._endpoint(_seat(member).host) for member in listed if not member.learner})
        self._look_around()
        if self._member:
            self._look_at_members()
            self._bury()
        elif self._silent:
            self._look_at_members()
        self._grow_or_shrink()

    def _tend_member(self) -> None:
        """Start our member again from its disk if it has died and may; else we have none."""
        with self._guard:
            member = self._member
            if member is None or self._joining or member.alive:
                return
            reason = member.log_tail(3)
            if self._may_restart() and self._restarts < _RESTARTS:
                self._restarts += 1
                member.start()
                _log.warning("etcd member %s had died; it runs again from its disk: %s", member.spec.name, reason)
                return
            _log.warning("etcd member %s has died: %s", member.spec.name, reason)
            self._end_member()

    def _follow(self, members: Mapping[str, str]) -> None:
        """Go on with these members of our cluster, and have the node's other processes do so."""
        with self._guard:
            if not members or members == self._known.members:
                return
            self._cluster = replace(self._known, members=members)
            self._publish()
            if self._session:
                self._session.follow(self._endpoints())

    def _look_around(self) -> None:
        """Ask one other node a time whether there is a newer cluster: we may have been away when the last was lost."""
        others = self._others()
        if others:
            self._turn += 1
            host = others[self._turn % len(others)]
            answer = ask(host, self._home.port + 2, self._home.tls, _ASK_S)
            if answer and (newer := _newest({host: answer})) and newer.supersedes(self._known):
                self._adopt(newer)

    def _look_at_members(self) -> None:
        """See which of the other members answer, and have our clients try those first.

        A call that hangs because the leader is gone goes to another member after 3 s: that should be a living one.
        """
        hosts = [seat.host for seat in self._voting() if seat.host != self._home.host]
        if not hosts:
            self._silent = {}
            return

        def ask(host: str) -> Heard:
            return hear(self._endpoint(host), tls=self._client)

        now, before = time.monotonic(), set(self._silent)
        with ThreadPoolExecutor(len(hosts)) as pool:
            heard = dict(zip(hosts, pool.map(ask, hosts), strict=True))
        self._silent = {host: self._silent.get(host, now) for host in hosts if heard[host] is not Heard.ANSWER}
        self._mute = {host for host in hosts if heard[host] is Heard.NOTHING}
        if set(self._silent) != before:
            with self._guard:
                self._publish()
                if self._session:
                    self._session.follow(self._endpoints())

    def _bury(self) -> None:
        """Take members off the list that are dead, or have not answered for a while."""
        silent = [seat for seat in self._voting() if seat.name and seat.host in self._silent]
        if not silent or 2 * len(silent) >= len(self._voting()):  # those who are left could not do it
            return
        words = self._words(self._ask_others(seat.host for seat in silent))
        for seat in silent:
            for_s, is_mute = time.monotonic() - self._silent[seat.host], seat.host in self._mute
            if roster.is_to_be_buried(seat, self._peers(), words, for_s, is_mute=is_mute):
                _log.warning("etcd member %s of %s is gone: it is taken off the list", seat.name, seat.host)
                self._members().remove(seat.name, timeout_s=_ASK_S)

    def _grow_or_shrink(self) -> None:
        home, peers, voting, now = self._home, self._peers(), self._voting(), time.monotonic()
        size = roster.wanted(len(peers), home.members)
        self._small_since = (self._small_since or now) if size < self._size else None
        if not self._small_since or now - self._small_since > _SHRINK_S:
            self._size, self._small_since = size, None
        if (self._changing and self._changing.is_alive()) or now < self._unfit_until:
            return
        if self._member and roster.leaves(home.host, peers, voting, self._size):
            self._begin(self._leave)
        elif not self._member and roster.joins(home.host, peers, voting, size, self._is_up):
            self._begin(self._bring_in)

    # --- changes of the members, one at a time in the whole pool

    def _begin(self, make: Callable[[Membership], None]) -> None:
        """Change the members in a thread of its own, once nobody else does: what else there is to do must not wait."""
        session = self._session
        if session is None:
            return
        turn = Connection(session).lock(_TURN, timeout=0)

        def in_turn() -> None:
            change = Membership(self._known.members, size=len(self._seats) + 1, tls=self._client)
            try:
                self._change = change
                with turn:
                    make(change)
            except LockTimeout:
                pass  # another's turn
            except Exception as error:  # noqa: BLE001  whatever it is, another attempt may do better, or another node
                self._failures += 1
                longest = _LONGEST_PAUSE_S if len(self._voting()) < self._size else _NO_HASTE_S
                self._unfit_until = time.monotonic() + min(longest, 2.0**self._failures)
                _log.info("node %s could not change the members yet: %s", self._home.node, error)
            else:
                self._failures = 0
            finally:
                self._change = None
                change.close()

        self._changing = threading.Thread(target=in_turn, name="skyward-etcd-members", daemon=True)
        self._changing.start()

    def _bring_in(self, change: Membership) -> None:
        """Add a member of ours. Nobody else does now: a learner that is on the list was left by an earlier attempt."""
        home, peers = self._home, self._peers()
        voting = [seat for seat in map(_seat, change.listed()) if seat.votes]
        if not roster.joins(home.host, peers, voting, roster.wanted(len(peers), home.members), self._is_up):
            return
        fresh = self._fresh(self._known)
        self._joining = fresh.name
        try:
            change.replace(fresh, self._start_member, check=self._check_member)
            _log.info("node %s has etcd member %s", home.node, fresh.name)
        except BaseException:
            self._end_member(fresh.name)
            shutil.rmtree(fresh.data_dir.parent, ignore_errors=True)
            raise
        finally:
            self._joining = ""

    def _leave(self, change: Membership) -> None:
        """Take our member off: the pool has become too small for it."""
        home, peers, leaving = self._home, self._peers(), self._member
        voting = [seat for seat in map(_seat, change.listed()) if seat.votes]
        if leaving and roster.leaves(home.host, peers, voting, self._size):
            hand_over(leaving.spec.endpoint, tls=self._client)
            change.remove(leaving.spec.name)
            self._end_member(leaving.spec.name)
            _log.info("node %s has no etcd member any more: %d nodes want %d", home.node, len(peers), self._size)

    def _is_fit(self) -> bool:
        """Tell whether we can have a member: we have none, and have not just failed to bring one in."""
        return not self._member and time.monotonic() >= self._unfit_until

    # --- a cluster that is lost

    def _look_without_quorum(self) -> None:
        """Look for a newer cluster, or for members that we have not heard of; restore the cluster if that is ours."""
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        self._has = self._newest_here()
        self._look_at_members()
        answers = self._ask_others(self._peers())
        newer = _newest(answers)
        if newer and newer.supersedes(self._known):
            self._adopt(newer)
            return
        others = [Cluster.from_data(answer["cluster"]) for answer in answers.values() if answer["cluster"]]
        ours = [self._known, *(each for each in others if each.token == self._known.token)]
        self._follow({name: at for each in ours for name, at in each.members.items()})
        words = self._words(answers)
        is_lost = now - self._lost_since > _LOST_S and not self._may_go_on(answers)
        if is_lost and roster.is_restorer(self._home.host, self._seats, self._peers(), words):
            self._restore(roster.survivors(self._seats, self._peers(), words))

    def _newest_here(self) -> int:
        copy = self._copies.of(self._known)
        has = copy.revision if copy else 0
        if self._member and self._member.alive:
            with contextlib.suppress(Unavailable, EtcdError):
                has = max(has, recovery.revision(self._endpoint(self._home.host), tls=self._client))
        return has

    def _may_go_on(self, answers: Mapping[str, Answer]) -> bool:
        """Tell whether the members that answer are a majority, or another node has just been served by one."""
        voting = self._voting()
        ours = self._home.host if self._member and self._member.alive else ""
        answering = sum(seat.host == ours or seat.host not in (self._home.host, *self._silent) for seat in voting)
        said = [answer["heard_s"] for answer in answers.values() if _token(answer) == self._known.token]
        return 2 * answering > len(voting) or any(heard_s < _LOST_S for heard_s in said)

    def _restore(self, surviving: Sequence[Seat]) -> None:
        """Make a new cluster of the newest data: a survivor's, or those of a member that is about to go, or our copy.

        An empty one if there are none.

        Raises:
            Unavailable: no survivor is known to have a vote, and one does not say whether it has.
        """
        before = self._known
        sources = self._with_vote(surviving)
        voted = len({seat.name for seat in (*self._voting(), *sources)})
        lost = f"{voted - len(sources)} of {voted} etcd members were lost at once"
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
        try:
            origin = self._save_newest(before, sources, scratch / "snapshot")
            story = (
                f"{lost}: the cluster was restored from {origin}. What only the lost members knew is gone; locks and "
                "claims are free"
                if origin
                else f"{lost}, and all data with them: the pool goes on with none"
            )
            after = self._found_next(
                before,
                story=f"{story}. What was under way has ended: try again",
                snapshot=scratch / "snapshot" if origin else None,
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._adopt(after)
        _log.warning("node %s: %s", self._home.node, story)

    def _save_newest(self, cluster: Cluster, sources: Sequence[Seat], file: Path) -> str:
        """Write the newest data that are left into a file, and return whose they were; nothing if there are none."""
        copy = self._copies.of(cluster)
        endpoints = {*cluster.members.values(), *(self._endpoint(seat.host) for seat in sources)}
        try:
            source, revision = recovery.newest(endpoints, tls=self._client)
        except QuorumLost:
            source, revision = "", 0
        if copy and copy.revision > revision:
            shutil.copy(self._copies.file, file)
            return f"a copy of what {copy.source} had just before"
        if source:
            recovery.save(source, file, tls=self._client)
            return f"what {source} had"
        return ""

    def _with_vote(self, surviving: Sequence[Seat]) -> list[Seat]:
        """Return those that have a vote. Who had none when the quorum was last heard, is asked itself."""
        found: list[Seat] = []
        silent: Unavailable | None = None
        for seat in surviving:
            try:
                if seat.votes or recovery.revision(self._endpoint(seat.host), tls=self._client):
                    found.append(seat)
            except Unavailable as error:  # a node that was about to bring it in says that it runs
                if seat.host != self._home.host:
                    silent = error
        if silent and not found:
            raise silent
        return found

    def _adopt(self, newer: Cluster) -> None:
        """Go on with the cluster that has taken the place of ours."""
        with self._guard:
            if change := self._change:
                change.close()
            if self._member and self._member.spec.token != newer.token:
                self._end_member()
            self._cluster = newer
            self._seats = _seats_of(newer)
            self._lost_since, self._has = None, 0
            self._silent = {}
            self._publish()
            if self._session:
                self._session.start_over(self._endpoints(), newer.story)

    # --- our member

    def _fresh(self, cluster: Cluster) -> MemberSpec:
        """Plan a member of a name that none had before: the node's own, and which of its members it is."""
        home = self._home
        name = f"{home.node}-{secrets.token_hex(3)}"
        directory = Path(tempfile.mkdtemp(prefix=SCRATCH)) / name
        scheme = "https" if cluster.authorities else "http"
        return MemberSpec(
            name,
            directory,
            f"{scheme}://{home.host}:{home.port}",
            f"{scheme}://{home.host}:{home.port + 1}",
            {},
            cluster.token,
            state="existing",
            files=self._files(cluster, directory / "tls"),
            health_url=f"http://127.0.0.1:{free_ports(1)[0]}",
            grows=True,
        )

    def _files(self, cluster: Cluster, directory: Path) -> tls.MemberFiles | None:
        if cluster.authorities is None:
            return None
        return tls.write(cluster.authorities, directory, self._home.node, [self._home.host])

    def _start_member(self, spec: MemberSpec) -> None:
        self._member = member = Member(self._home.etcd, spec)
        try:
            member.start()
            member.wait_ready(_START_S)
        except BaseException:
            member.kill()
            if self._member is member:
                self._member = None
            raise

    def _check_member(self) -> None:
        if not (self._member and self._member.alive):
            raise PoolError("the etcd member of this node has ended")

    def _end_member(self, name: str = "") -> None:
        """End our member (the one of this name, if one is given), and remove what it had on the disk."""
        with self._guard:
            member = self._member
            if member and name in ("", member.spec.name):
                self._member = None
                member.kill()
                shutil.rmtree(member.spec.data_dir.parent, ignore_errors=True)

    def _may_restart(self) -> bool:
        verdict = grade(self._home.etcd.version, durable=True, members=1)
        if verdict.verdict is Verdict.REFUSED:
            _log.info("etcd %s is not started again from its disk: %s", spell(self._home.etcd.version), verdict.reason)
        return verdict.verdict is not Verdict.REFUSED

    # --- what we know, and tell

    def _word(self) -> Answer:
        """What we answer to other nodes."""
        with self._guard:
            name = self._joining or (self._member.spec.name if self._member else "")
            cluster = self._cluster and self._cluster.to_data()
            fit = bool(name) or self._is_fit()
        return {
            "node": self._home.node,
            "member": name,
            "fit": fit,
            "cluster": cluster,
            "heard_s": time.monotonic() - self._heard_at,
            "revision": self._has,
        }

    def _words(self, answers: Mapping[str, Answer]) -> dict[str, Word]:
        """Return what nodes say of their members in our cluster; those of another count for nothing."""
        said = {**answers, self._home.host: self._word()}
        return {
            host: Word(answer["node"], answer["member"], answer["revision"])
            if _token(answer) == self._known.token
            else Word(answer["node"], "")
            for host, answer in said.items()
        }

    def _publish(self) -> None:
        """Tell the other processes of the node where the members are."""
        cluster = self._known
        access = Access(
            cluster.epoch,
            cluster.token,
            self._endpoints(),
            self._home.namespace,
            cluster.secret,
            self._client,
            cluster.story,
        )
        access.write(self._home.access)

    def _endpoints(self) -> tuple[str, ...]:
        """Return the members as it suits this node: its own first, the others spread out, the silent last."""
        mine = self._endpoint(self._home.host)
        others = sorted(endpoint for endpoint in self._known.members.values() if endpoint != mine)
        first = crc32(self._home.node.encode()) % len(others) if others else 0
        own = (mine,) if mine in self._known.members.values() else ()
        silent = {self._endpoint(host) for host in self._silent}
        return (*own, *sorted((*others[first:], *others[:first]), key=silent.__contains__))

    def _endpoint(self, host: str) -> str:
        return f"{host}:{self._home.port}"

    def _peers(self) -> list[str]:
        """Return the hosts of all nodes. One that Skyward has not told us of yet, and that has a member, is one too."""
        told = list(self._home.peers())
        self._known_peers.update(told)
        return [*told, *dict.fromkeys(seat.host for seat in self._seats if seat.host not in self._known_peers)]

    def _others(self) -> list[str]:
        return [peer for peer in self._peers() if peer != self._home.host]

    def _ask_others(self, hosts: Iterable[str]) -> Mapping[str, Answer]:
        asked = [host for host in hosts if host != self._home.host]
        return ask_all(asked, self._home.port + 2, self._home.tls, _ASK_S)

    def _is_up(self, host: str) -> bool:
        """Tell whether the node at a host can have a member."""
        answer = ask(host, self._home.port + 2, self._home.tls, _ASK_S)
        return answer is not None and answer["fit"]

    def _voting(self) -> list[Seat]:
        return [seat for seat in self._seats if seat.votes]

    @property
    def _known(self) -> Cluster:
        if self._cluster is None:
            raise PoolError(f"node {self._home.node} has not found its cluster yet")
        return self._cluster

    def _members(self) -> Membership:
        """Return the membership, for the thread that looks."""
        if self._membership is None or self._membership.living != self._known.members:
            before, self._membership = self._membership, Membership(self._known.members, tls=self._client)
            if before:
                before.close()
        return self._membership


def _listening(home: Home, port: int, listen: Callable[[int], L]) -> L:
    try:
        return listen(port)
    except OSError as error:
        raise PoolError(
            f"node {home.node} cannot listen on port {port} ({error}): give the plugin another, as in Etcd(port=2479)"
        ) from error


def _newest(answers: Mapping[str, Answer]) -> Cluster | None:
    newest: Cluster | None = None
    for answer in answers.values():
        if answer["cluster"]:
            cluster = Cluster.from_data(answer["cluster"])
            newest = cluster if cluster.supersedes(newest) else newest
    return newest


def _token(answer: Answer) -> str:
    return str(answer["cluster"]["token"]) if answer["cluster"] else ""


def _seat(member: Listed) -> Seat:
    return Seat(member.name, urlsplit(member.peer_url).hostname or "", votes=not member.learner)


def _seats_of(cluster: Cluster) -> list[Seat]:
    return [Seat(name, endpoint.rpartition(":")[0]) for name, endpoint in cluster.members.items()]


def _client(cluster: Cluster, node: str) -> Tls | None:
    return cluster.authorities.client(node) if cluster.authorities else None
