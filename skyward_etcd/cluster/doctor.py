"""What is wrong with a cluster, and what to do about it: a judgement of what `survey` has found, which asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from skyward_etcd.cluster.binary import Verdict, grade, spell
from skyward_etcd.cluster.survey import Answer, Listed, Survey
from skyward_etcd.errors import PermissionDenied
from skyward_etcd.wire.tls import is_about_certificates

__all__ = ["Finding", "Severity", "diagnose", "majority_of"]

LAG_ENTRIES = 1000
"""So far behind the others a member is said to lag: half a second of a busy cluster's writes."""
FULL = 0.8
"""Of the quota."""
FRAGMENTED = 0.5
"""Of the file that is free, in one that has a quarter of the quota."""
CLOCK_S = 5.0
"""Between two clocks. etcd itself complains of 1 s between members, which HTTP's whole seconds do not tell."""

_MAKE_ROOM = (
    "remove what is not needed (`skyward-etcd ls --exact`, `rm`, `queue purge`), then compact and defragment, one "
    "member after the other, the leader last: docs/etcdctl.md has the lines"
)


class Severity(IntEnum):
    """How bad it is."""

    NOTE = 0
    """Worth knowing."""
    WARNING = 1
    """It works, and the next fault may be one too many."""
    PROBLEM = 2
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    code: str
    """Its name, for programs."""
    severity: Severity
    what: str
    remedy: str


def diagnose(survey: Survey) -> list[Finding]:
    """Return what is wrong, the worst first; nothing if all is well."""
    found = [finding for check in _CHECKS for finding in check(survey)]
    return sorted(found, key=lambda finding: -finding.severity)


def majority_of(survey: Survey) -> int:
    """Return how many members have to be there."""
    return sum(not member.is_learner for member in survey.members) // 2 + 1


def _reach(survey: Survey) -> Iterator[Finding]:
    """Who does not answer."""
    refused = [where for where, error in survey.failures if isinstance(error, PermissionDenied)]
    silent = [(where, error) for where, error in survey.failures if where not in refused]
    strangers = [(where, error) for where, error in silent if is_about_certificates(str(error))]
    if strangers:
        yield Finding(
            "wrong-certificates",
            Severity.PROBLEM,
            f"we and {', '.join(where for where, _ in strangers)} do not accept each other: {strangers[0][1]}",
            "check the files of --ca, --certificate and --key (SKYWARD_ETCD_TLS_CA, _CERTIFICATE, _KEY): `openssl x509 "
            "-noout -issuer -subject -enddate -ext subjectAltName -in FILE` shows what they say",
        )
        silent = [each for each in silent if each not in strangers]
    if not survey.answers and silent and not refused:
        where = ", ".join(where for where, _ in silent)
        yield Finding(
            "nobody-answers",
            Severity.PROBLEM,
            f"no member answers at {where}: {silent[0][1]}",
            "check the endpoints and the network from here; start the members; if their disks are lost, "
            "`skyward-etcd recover DIRECTORY`, or `skyward-etcd restore` a snapshot",
        )
        return
    named = {where for member in survey.members for where in member.endpoints if not survey.answer_of(member)}
    for where, error in silent:
        if where in survey.endpoints and where not in named:
            yield Finding(
                "unreachable-endpoint",
                Severity.WARNING,
                f"nobody answers at the endpoint {where}, and no member of the cluster says that it is there: {error}",
                "take it out of SKYWARD_ETCD_ENDPOINTS, or mend its name or port: it costs every new session 3 s",
            )


def _down(survey: Survey) -> Iterator[Finding]:
    """Which members are not there."""
    for member in survey.members:
        if survey.answer_of(member):
            continue
        if not member.name:
            yield Finding(
                "never-started",
                Severity.WARNING,
                f"member {member.id:x} was added to the cluster, and has never run",
                "start it with --initial-cluster-state existing and the list that the addition returned, or remove it: "
                f"`etcdctl member remove {member.id:x}`; meanwhile it counts for the majority",
            )
        else:
            where = ", ".join(member.endpoints)
            yield Finding(
                "member-down",
                Severity.PROBLEM,
                f"member {member.name} ({member.id:x}) does not answer at {where}",
                "start it, or look for what keeps it from us; if its machine is gone for good, remove it "
                f"(`etcdctl member remove {member.id:x}`) and add a fresh one with an empty directory, as a pool does",
            )


def _quorum(survey: Survey) -> Iterator[Finding]:
    """Whether there is a majority, and a leader."""
    if not survey.answers:
        return
    voters = [member for member in survey.members if not member.is_learner]
    there = [member for member in voters if survey.answer_of(member)]
    if voters and len(there) < majority_of(survey):
        yield Finding(
            "quorum-lost",
            Severity.PROBLEM,
            f"{len(there)} of {len(voters)} members answer, and {majority_of(survey)} are needed: nothing can be read "
            "or written but by --stale reads",
            "start the members that are down. Only if their disks are lost for good: pool.recover(), or "
            "`skyward-etcd recover DIRECTORY`, which goes on with what a survivor has",
        )
    elif not survey.has_majority:
        yield Finding(
            "no-leader",
            Severity.PROBLEM,
            "members answer, but none of them follows a leader",
            "an election takes some seconds: ask again. If it lasts, the members do not reach each other's peer "
            "addresses: check the network between them and their --initial-advertise-peer-urls",
        )
    else:
        yield from _lonely(survey)


def _lonely(survey: Survey) -> Iterator[Finding]:
    """Members that the others have left behind."""
    ahead = max(each.committed for each in survey.answers)
    for each in survey.answers:
        name = _name(survey, each)
        if not each.leader:
            yield Finding(
                "member-without-leader",
                Severity.PROBLEM,
                f"member {name} answers, but follows no leader, as the others do: it is cut off from them",
                "check the network between its peer address and the others'; restart it if that is well",
            )
        if ahead - each.applied >= LAG_ENTRIES:
            yield Finding(
                "lagging-member",
                Severity.WARNING,
                f"member {name} is {ahead - each.applied:,} entries behind: eventual reads there are old, and each is "
                "asked again elsewhere",
                "look at its disk and its network (etcd_disk_wal_fsync_duration_seconds in its /metrics); "
                "if it does not catch up, replace it",
            )


def _space(survey: Survey) -> Iterator[Finding]:
    """Alarms, and what comes before them."""
    alarms = {alarm for each in survey.answers for alarm in each.errors if "alarm:" in alarm}
    if any("NOSPACE" in alarm for alarm in alarms):
        yield Finding(
            "no-space",
            Severity.PROBLEM,
            "the quota was reached: the cluster refuses all that needs space (alarm NOSPACE), new sessions too",
            f"{_MAKE_ROOM}, and take the alarm back: `etcdctl alarm disarm`. Or raise --quota-backend-bytes",
        )
    if any("CORRUPT" in alarm for alarm in alarms):
        yield Finding(
            "corrupt",
            Severity.PROBLEM,
            "a member's data differ from the others' (alarm CORRUPT)",
            "find it by `etcdctl endpoint hashkv --cluster`, replace it by a fresh one with an empty directory, then "
            "`etcdctl alarm disarm`. Take a snapshot of a good one first",
        )
    if any("NOSPACE" in alarm for alarm in alarms):
        return
    for each in survey.answers:
        if each.quota_bytes and each.db_bytes >= FULL * each.quota_bytes:
            yield Finding(
                "near-quota",
                Severity.WARNING,
                f"member {_name(survey, each)} has {_mb(each.db_bytes)} of its quota of {_mb(each.quota_bytes)}; "
                f"{_mb(each.used_bytes)} are in use",
                f"{_MAKE_ROOM}; or raise --quota-backend-bytes",
            )
        elif _is_fragmented(each):
            yield Finding(
                "fragmented",
                Severity.NOTE,
                f"of the {_mb(each.db_bytes)} of member {_name(survey, each)}, {_mb(each.db_bytes - each.used_bytes)} "
                "are free",
                f"`etcdctl --endpoints={each.endpoint} defrag` gives them back; it stands still meanwhile",
            )


def _versions(survey: Survey) -> Iterator[Finding]:
    """What is known of these releases."""
    versions = sorted({each.version for each in survey.answers})
    if len(versions) > 1:
        yield Finding(
            "mixed-versions",
            Severity.WARNING,
            f"the members run different releases: {', '.join(map(spell, versions))}",
            "bring all to the newest of them, one after the other",
        )
    for version in versions:
        verdict = grade(version, durable=True, members=len(survey.members))
        if verdict.verdict is Verdict.ACCEPTED:
            continue
        refused = verdict.verdict is Verdict.REFUSED
        yield Finding(
            "refused-version" if refused else "weak-version",
            Severity.WARNING if refused else Severity.NOTE,
            f"etcd {spell(version)}: {verdict.reason}",
            "good for pools, whose members never restart from their disks; for all else " * refused
            + f"`skyward-etcd fetch{'' if refused else ' --version … --sha256 …'}` brings another release",
        )


def _shape(survey: Survey) -> Iterator[Finding]:
    """What the cluster is made of."""
    clusters = sorted({each.cluster_id for each in survey.answers})
    if len(clusters) > 1:
        where = "; ".join(
            f"{cluster:x}: {', '.join(each.endpoint for each in survey.answers if each.cluster_id == cluster)}"
            for cluster in clusters
        )
        yield Finding(
            "different-clusters",
            Severity.PROBLEM,
            f"these endpoints are of {len(clusters)} different clusters ({where})",
            "give the endpoints of one: sessions would see now this and now that, and end each time",
        )
        return
    voters = [member for member in survey.members if not member.is_learner]
    if voters and len(voters) % 2 == 0:
        yield Finding(
            "even-members",
            Severity.WARNING,
            f"the cluster has {len(voters)} members: it bears no more losses than one of {len(voters) - 1}, and has "
            "more to lose",
            "add one, or remove one",
        )
    for member in survey.members:
        if member.is_learner and member.name:
            yield Finding(
                "learner",
                Severity.NOTE,
                f"member {member.name} is a learner: it has no vote",
                f"a replacement is under way; if not, promote it (`etcdctl member promote {member.id:x}`) or remove it",
            )
    known = {where for member in survey.members for where in member.endpoints}
    if len(survey.members) > 1 and len(survey.endpoints) == 1 and len(known) > 1:
        yield Finding(
            "one-endpoint",
            Severity.NOTE,
            f"one endpoint is given, and the cluster has {len(survey.members)} members: without that one we are lost",
            f"SKYWARD_ETCD_ENDPOINTS={','.join(sorted(known))} (or one name that leads to all of them)",
        )


def _access(survey: Survey) -> Iterator[Finding]:
    """Whether we may read."""
    if survey.denied:
        yield Finding(
            "wrong-credentials",
            Severity.PROBLEM,
            f"these credentials may not read the namespace: {survey.denied}",
            "check SKYWARD_ETCD_USER and SKYWARD_ETCD_PASSWORD (or --user), and that a role of that user's may read "
            "and write /skyward/: `etcdctl user get USER`, `etcdctl role get ROLE`",
        )


def _clocks(survey: Survey) -> Iterator[Finding]:
    """Whether clocks agree."""
    for each in survey.answers:
        if each.clock_s is not None and abs(each.clock_s) >= CLOCK_S:
            side = "ahead of" if each.clock_s > 0 else "behind"
            yield Finding(
                "clock",
                Severity.WARNING,
                f"the clock of member {_name(survey, each)} is {abs(each.clock_s):,.0f} s {side} this machine's",
                "set both by NTP. Leases and locks do not depend on it; certificates, users' tokens, logs, and the "
                "times that are shown here do",
            )


_CHECKS: Sequence[Callable[[Survey], Iterator[Finding]]] = (
    _access,
    _reach,
    _quorum,
    _down,
    _space,
    _shape,
    _versions,
    _clocks,
)


def _is_fragmented(answer: Answer) -> bool:
    free = answer.db_bytes - answer.used_bytes
    return bool(
        answer.quota_bytes and answer.db_bytes >= answer.quota_bytes / 4 and free >= FRAGMENTED * answer.db_bytes
    )


def _name(survey: Survey, answer: Answer) -> str:
    listed: Listed | None = next((each for each in survey.members if each.id == answer.member_id), None)
    return f"{listed.name if listed and listed.name else f'{answer.member_id:x}'} ({answer.endpoint})"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
