"""Ask every member of a cluster how it is, at once. No answer needs a majority, and a dead member costs two seconds."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from skyward_etcd.cluster.binary import Version
from skyward_etcd.errors import PermissionDenied, SkywardEtcdError
from skyward_etcd.wire import http
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Login, Tls, Wire
from skyward_etcd.wire.methods import MEMBER_LIST, RANGE, STATUS

__all__ = ["Answer", "Listed", "Survey", "survey"]

_CALL_S = 2.0
_QUOTA = re.compile(rb"^etcd_server_quota_backend_bytes ([\d.]{1,20}(?:e\+?\d{1,2})?)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one member says of itself."""

    endpoint: str
    """Where it answered."""
    cluster_id: int
    member_id: int
    leader: int
    """The member that it follows; 0: none."""
    version: Version
    revision: int
    term: int
    db_bytes: int
    """Its file, which only a defragmentation makes smaller."""
    used_bytes: int
    """What of the file is in use."""
    quota_bytes: int | None
    """At this size it takes no more writes; ``None``: it does not say."""
    committed: int
    """The last entry of the log that it knows to be with the majority."""
    applied: int
    """The last one that it has applied."""
    is_learner: bool
    errors: Sequence[str]
    """Alarms, and the lack of a leader."""
    clock_s: float | None
    """How far its clock is ahead of ours."""
    round_trip_s: float

    @property
    def leads(self) -> bool:
        """Whether it is the leader."""
        return self.leader == self.member_id


@dataclass(frozen=True, slots=True)
class Listed:
    """A member as the others know it."""

    id: int
    name: str
    """Empty: it was added, and has never run."""
    endpoints: Sequence[str]
    """Where it says that clients reach it."""
    is_learner: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found out about a cluster."""

    endpoints: Sequence[str]
    """Those that were given."""
    answers: Sequence[Answer]
    failures: Sequence[tuple[str, SkywardEtcdError]]
    """Who did not answer, and why."""
    members: Sequence[Listed]
    """Nobody knows more when nobody answers."""
    denied: str
    """Why these credentials may not read; empty: they may."""

    @property
    def leader(self) -> Answer | None:
        """The leader, if it has answered and others do not say otherwise."""
        return max((each for each in self.answers if each.leads), key=lambda each: each.term, default=None)

    @property
    def has_majority(self) -> bool:
        """Whether a leader is followed, as far as those that answer know."""
        return any(each.leader for each in self.answers)

    def answer_of(self, member: Listed) -> Answer | None:
        """Return what a member has answered."""
        return next((each for each in self.answers if each.member_id == member.id), None)


def survey(endpoints: Sequence[str], *, reads: bytes, tls: Tls | None = None, login: Login | None = None) -> Survey:
    """Ask the members at these endpoints, and those that they name. ``reads``: a prefix that we want to read.

    Raises:
        ValueError: an endpoint is none.
    """
    with contextlib.ExitStack() as stack:
        asker = _Asker(tls, login, reads)
        threads = stack.enter_context(ThreadPoolExecutor(16))
        found = dict(zip(endpoints, threads.map(asker.ask, endpoints), strict=True))
        members = next((each.members for each in found.values() if isinstance(each, _Found) and each.members), ())
        seen = {each.answer.member_id for each in found.values() if isinstance(each, _Found)}
        others = [where for each in members if each.id not in seen for where in each.endpoints if where not in found]
        found |= dict(zip(others, threads.map(asker.ask, others), strict=True))
    answers = {each.answer.member_id: each.answer for each in found.values() if isinstance(each, _Found)}
    failures = [(where, each) for where, each in found.items() if isinstance(each, SkywardEtcdError)]
    denied = [each.denied for each in found.values() if isinstance(each, _Found) and each.denied]
    denied += [str(error) for _, error in failures if isinstance(error, PermissionDenied)]
    return Survey(tuple(endpoints), list(answers.values()), failures, members, next(iter(denied), ""))


@dataclass(frozen=True, slots=True)
class _Found:
    answer: Answer
    members: Sequence[Listed]
    denied: str


class _Asker:
    def __init__(self, tls: Tls | None, login: Login | None, reads: bytes) -> None:
        self._tls = tls
        self._login = login
        self._reads = reads

    def ask(self, endpoint: str) -> _Found | SkywardEtcdError:
        """Return what the member there says, or why it does not."""
        wire = Wire((endpoint,), tls=self._tls, login=self._login)
        with contextlib.closing(wire):
            try:
                sent = time.monotonic()
                status = wire.call(STATUS, pb.StatusRequest(), timeout_s=_CALL_S)
                took = time.monotonic() - sent
            except SkywardEtcdError as error:
                return error
            return _Found(self._answer(endpoint, status, took), _members(wire, endpoint), self._denied(wire))

    def _answer(self, endpoint: str, status: pb.StatusResponse, took_s: float) -> Answer:
        page = http.ask(endpoint, "/metrics", tls=self._tls, timeout_s=_CALL_S)
        quota = _QUOTA.search(page.body) if page else None
        numbers = [int(part) for part in re.findall(r"\d{1,9}", status.version)[:3]]
        return Answer(
            endpoint,
            status.header.cluster_id,
            status.header.member_id,
            status.leader,
            (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else (0, 0, 0),
            status.header.revision,
            status.raftTerm,
            status.dbSize,
            status.dbSizeInUse,
            status.dbSizeQuota or (int(float(quota[1])) if quota else None),
            status.raftIndex,
            status.raftAppliedIndex,
            status.isLearner,
            tuple(status.errors),
            page.clock_s if page else None,
            took_s,
        )

    def _denied(self, wire: Wire) -> str:
        """Read something, from this member alone: whether we may, no status tells."""
        end = self._reads[:-1] + bytes((self._reads[-1] + 1,))
        request = pb.RangeRequest(key=self._reads, range_end=end, limit=1, keys_only=True, serializable=True)
        try:
            wire.call(RANGE, request, timeout_s=_CALL_S)
        except PermissionDenied as error:
            return str(error)
        except SkywardEtcdError:  # not about who we are
            pass
        return ""


def _members(wire: Wire, asked: str) -> Sequence[Listed]:
    """Return the members that this one knows."""
    try:
        listed = wire.call(MEMBER_LIST, pb.MemberListRequest(linearizable=False), timeout_s=_CALL_S).members
    except SkywardEtcdError:
        return ()
    return [
        Listed(each.ID, each.name, [_endpoint(url, asked) for url in each.clientURLs], each.isLearner)
        for each in sorted(listed, key=lambda each: str(each.name))
    ]


def _endpoint(url: str, asked: str) -> str:
    """Return where a URL leads that the member at the endpoint ``asked`` has told of: a socket lies beside its own."""
    if url.startswith("https://"):
        return url
    place = urlsplit(url).netloc or url
    return f"{asked.rpartition('/')[0]}/{place}" if url.startswith("unix://") and place != url else place
