"""The commands that look and change nothing: status, ls, show, watch, top, doctor, bench."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import click

from skyward_etcd.cli.output import as_json, in_mb, say_json, table
from skyward_etcd.cli.target import FAILED, TEMPORARY, Target, on_a_cluster, stop
from skyward_etcd.cluster import doctor, report
from skyward_etcd.cluster.survey import Survey
from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.operate import catalog, following, measuring, reading, views
from skyward_etcd.operate.kinds import KINDS, Kind

__all__ = ["COMMANDS", "KIND"]

KIND = click.Choice(KINDS)

stale_option = click.option(
    "--stale", is_flag=True, help="What one member has, without asking the majority: for when that is lost."
)


# ---- status


@click.command("status")
@on_a_cluster
def status(target: Target) -> None:
    """Show the members of the cluster, and the processes that use the namespace.

    Ends with 75 when nobody answers, or there is no leader.
    """
    found = target.survey()
    processes: Sequence[reading.Who] = ()
    if found.answers and not found.denied:
        with contextlib.suppress(SkywardEtcdError), target.session() as session:
            look = reading.Reading(session, stale=not found.has_majority)
            processes = list(session.run(catalog.live_sessions(look)).values())
    if target.as_json:
        say_json(_status(target, found, processes))
    else:
        _print_status(target, found, processes)
    if not found.has_majority:
        stop("no leader, or nobody answers: `skyward-etcd doctor` says more", TEMPORARY)


def _status(target: Target, found: Survey, processes: Sequence[reading.Who]) -> Mapping[str, Any]:
    return {
        "cluster": sorted({f"{each.cluster_id:x}" for each in found.answers}),
        "has_leader": found.has_majority,
        "revision": max((each.revision for each in found.answers), default=None),
        "members": report.members(found),
        "unanswered": {where: str(error) for where, error in found.failures},
        "denied": found.denied or None,
        "namespace": target.namespace,
        "processes": as_json(processes),
    }


def _print_status(target: Target, found: Survey, processes: Sequence[reading.Who]) -> None:
    said = _status(target, found, processes)
    click.echo(f"cluster {', '.join(said['cluster']) or '?'}, revision {said['revision'] or '?'}")
    table(
        ("member", "endpoint", "role", "version", "db", "in use", "lag", "errors"),
        [
            (
                member["name"] or member["id"],
                ", ".join(member["endpoints"]),
                member["role"],
                f"{member['version']} ({member['grade']})" if member["answers"] else "",
                in_mb(member["db_bytes"]) if member["answers"] else "",
                in_mb(member["used_bytes"]) if member["answers"] else "",
                member["lag"],
                "; ".join(member["errors"]),
            )
            for member in said["members"]
        ],
    )
    for where, error in found.failures:
        click.echo(f"no answer from {where}: {error}")
    click.echo(f"\nnamespace {target.namespace!r}: {len(processes)} process{'' if len(processes) == 1 else 'es'}")
    if processes:
        table(("process", "since", "session"), [(str(who), who.since, who.session) for who in processes])


# ---- collections


@click.command("ls")
@click.option("--exact", is_flag=True, help="Read everything, to say exactly how large it is.")
@stale_option
@on_a_cluster
def ls(target: Target, exact: bool, stale: bool) -> None:  # noqa: FBT001 - an option
    """List the collections: kind, name, entries, bytes.

    The bytes of a large one are reckoned from its first entries (~), unless you say --exact.
    """
    found = target.run(lambda session: catalog.catalog(session, exact=exact, stale=stale))
    if target.as_json:
        say_json(found)
        return
    table(
        ("kind", "name", "entries", "bytes"),
        [
            (each.kind, each.name, each.entries, f"{'' if each.is_exact else '~'}{in_mb(each.bytes)}")
            for each in found.collections
        ],
    )


@click.command("show")
@click.argument("kind", type=KIND)
@click.argument("name")
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Entries to show.")
@stale_option
@on_a_cluster
def show(target: Target, kind: str, name: str, limit: int, stale: bool) -> None:  # noqa: FBT001 - an option
    """Show what is in a collection: entries; a queue's items and claims; who holds a lock; who is at a barrier."""
    which = cast(Kind, kind)
    view, revision = target.run(lambda session: views.view(session, which, name, limit=limit, stale=stale))
    if target.as_json:
        say_json({"kind": kind, "name": name, "revision": revision, **as_json(view)})
    else:
        click.echo(f"{kind} {name!r} at revision {revision}")
        _print_view(view)


@functools.singledispatch
def _print_view(view: object) -> None:
    raise TypeError(f"no way to print {view!r}")


@_print_view.register
def _(view: views.Entries) -> None:
    rows = [(key, value.text if value else "") for key, value in view.entries]
    table(("key", "value") if any(value for _, value in view.entries) else ("member", ""), rows)
    if view.count > len(rows):
        click.echo(f"… {view.count - len(rows):,} more: --limit")


@_print_view.register
def _(view: views.Counter) -> None:
    click.echo(f"total {view.total:,}, of which {view.base:,} in the base")
    table(
        ("process", "added", "session", "lives"),
        [(str(who), value, who.session, "yes" if lives else "no") for who, value, lives in view.shards],
    )


@_print_view.register
def _(view: views.Queue) -> None:
    after = f", after {view.max_deliveries} deliveries" if view.max_deliveries else ""
    click.echo(f"{view.waiting:,} wait, {view.claimed:,} claimed, {view.dead:,} dead{after}")
    table(
        ("item", "deliveries", "claimed by", "since"),
        [
            (item.value.text, item.deliveries, str(who) if who else "", who.since if who else "")
            for item in view.items
            for who in (item.claimed_by,)
        ],
    )
    if view.waiting + view.claimed > len(view.items):
        click.echo(f"… {view.waiting + view.claimed - len(view.items):,} more: --limit")


@_print_view.register
def _(view: views.Lock) -> None:
    if view.holder is None:
        click.echo("free")
        return
    if view.lease_s is not None:
        click.echo(f"free in {view.lease_s} s if its holder is dead")
    line = [("holds it", view.holder), *(("waits", waiter) for waiter in view.waiters)]
    table(
        ("", "process", "since", "token", "session"),
        [(what, str(each.who), each.who.since, str(each.token), each.who.session) for what, each in line],
    )


@_print_view.register
def _(view: views.Barrier) -> None:
    state = ", aborted" if view.is_aborted else ""
    click.echo(f"generation {view.generation}{state}: {len(view.waiting)} of {view.n} wait, {view.missing} missing")
    if view.broken:
        click.echo(f"broken: {', '.join(map(str, view.broken))}")
    line = [("waits", who) for who in view.waiting] + [("not here", who) for who in view.absent]
    table(("", "process", "since", "session"), [(what, str(who), who.since, who.session) for what, who in line])


# ---- live


@click.command("watch")
@click.argument("kind", type=KIND)
@click.argument("name")
@click.option("--count", type=click.IntRange(min=1), help="End after so many changes.")
@on_a_cluster
def watch(target: Target, kind: str, name: str, count: int | None) -> None:
    """Print the changes of a collection as they happen, until Ctrl-C."""
    left = count

    def tell(changes: Sequence[following.Change]) -> bool:
        nonlocal left
        if not changes:
            say_json({"missed": True}) if target.as_json else click.echo("… some changes may have been missed here")
        for change in changes[:left]:
            if target.as_json:
                say_json({"type": "put" if change.value else "delete", **as_json(change)})
            else:
                value = f"put     {change.key}  {change.value.text}" if change.value else f"delete  {change.key}"
                click.echo(f"{change.revision}  {value}".rstrip())
        left = None if left is None else left - len(changes)
        return left is None or left > 0

    with contextlib.suppress(KeyboardInterrupt):
        target.run(
            lambda session: following.follow(
                session, cast(Kind, kind), name, tell, ready=lambda: click.echo("watching; Ctrl-C ends it", err=True)
            )
        )


@click.command("top")
@click.option("--every", "every_s", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks.")
@on_a_cluster
def top(target: Target, every_s: float, count: int | None) -> None:
    """Show what changes: writes a second, and each collection's entries. Until Ctrl-C.

    With --json a line for each look.
    """
    before: tuple[float, catalog.Catalog] | None = None
    looks = 0
    with contextlib.suppress(KeyboardInterrupt), target.session() as session:
        while True:
            now, found = time.monotonic(), session.run(catalog.catalog(session))
            members = target.survey()
            if target.as_json:
                say_json({**as_json(found), "members": _status(target, members, ())["members"]})
            else:
                if looks:
                    click.clear()
                _print_top(target, members, found, before, now)
            before, looks = (now, found), looks + 1
            if looks == count:
                return
            time.sleep(every_s)


def _print_top(
    target: Target,
    members: Survey,
    found: catalog.Catalog,
    before: tuple[float, catalog.Catalog] | None,
    now: float,
) -> None:
    there = sum(members.answer_of(each) is not None for each in members.members)
    leader = members.leader.endpoint if members.leader else "none"
    rate = f", {(found.revision - before[1].revision) / (now - before[0]):,.0f} writes/s" if before else ""
    click.echo(f"{there} of {len(members.members)} members, leader {leader}, revision {found.revision}{rate}")
    was = {(each.kind, each.name): each.entries for each in before[1].collections} if before else {}
    rows = [
        (
            each.kind,
            each.name,
            each.entries,
            f"{each.entries - was.get((each.kind, each.name), 0):+,}" if before else "",
        )
        for each in found.collections
    ]
    click.echo(f"namespace {target.namespace!r}")
    table(("kind", "name", "entries", "change"), rows)


# ---- health


@click.command("doctor")
@on_a_cluster
def doctor_command(target: Target) -> None:
    """Say what is wrong with the cluster, and what to do about it.

    Ends with 1 when something does not work; warnings and notes alone end with 0.
    """
    findings = doctor.diagnose(target.survey())
    if target.as_json:
        say_json(findings)
    elif not findings:
        click.echo("all is well")
    for finding in () if target.as_json else findings:
        click.echo(f"{finding.severity.name.lower()} ({finding.code}): {finding.what}\n    do: {finding.remedy}")
    if any(finding.severity is doctor.Severity.PROBLEM for finding in findings):
        raise click.exceptions.Exit(FAILED)


@click.command("bench")
@click.option("--seconds", type=click.FloatRange(min=0.1, max=60.0), default=3.0, show_default=True)
@click.option("--bytes", "value_bytes", type=click.IntRange(1, 1 << 20), default=100, show_default=True)
@on_a_cluster
def bench(target: Target, seconds: float, value_bytes: int) -> None:
    """Measure one request after the other: a bare round trip, a read of the majority's, a write to their disks.

    What is written is removed at the end, and at the end of the command's lease at the latest.
    """
    found = target.run(lambda session: measuring.measure(session, for_s=seconds, value_bytes=value_bytes))
    if target.as_json:
        say_json(found)
        return

    def ms(seconds: float) -> str:
        return f"{seconds * 1e3:.2f} ms"

    table(
        ("", "p50", "p99", "longest", "in round trips", "requests"),
        [
            (each.what, ms(each.p50_s), ms(each.p99_s), ms(each.longest_s), f"{each.round_trips:.1f}", each.count)
            for each in found
        ],
    )


COMMANDS: Sequence[click.Command] = (status, ls, show, watch, top, doctor_command, bench)
