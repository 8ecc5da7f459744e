"""The commands that change collections: queue requeue and purge, lock break, rm, export and import."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import click

from skyward_etcd.cli.look import KIND, stale_option
from skyward_etcd.cli.output import say_json
from skyward_etcd.cli.target import Target, exit_code, on_a_cluster, stop
from skyward_etcd.errors import OutcomeUnknown, SkywardEtcdError
from skyward_etcd.operate import changes, transfer
from skyward_etcd.operate.kinds import Kind

__all__ = ["COMMANDS"]

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
at_once_option = click.option(
    "--now", "at_once", is_flag=True, help="Give it on at once, though its holder may not know for some seconds."
)


@click.group("queue")
def queue() -> None:
    """Mend a queue: requeue, purge."""


@queue.command("requeue")
@click.argument("name")
@click.option("--most", type=click.IntRange(min=1), help="So many dead items at most.")
@click.option(
    "--claimed", is_flag=True, help="The claimed items instead, by ending the sessions of those who have them."
)
@click.option("--node", help="With --claimed: those of this node only.")
@at_once_option
@yes_option
@on_a_cluster
def requeue(target: Target, name: str, **options: Any) -> None:
    """Put the dead items of queue NAME at its end again, oldest first, each exactly once.

    With --claimed: have what is claimed come back to its place, as when a worker dies. Its session is ended, with all
    its locks and claims; these are kept from others until its process must know (see `lock break`).
    """
    if not options["claimed"]:
        moved = target.run(lambda session: changes.requeue(session, name, most=options["most"]))
        say_json({"requeued": moved}) if target.as_json else click.echo(f"{moved:,} dead items requeued")
        return
    if not options["yes"]:
        click.confirm(f"End the sessions that have claimed items of queue {name!r}, with all their locks?", abort=True)
    node, at_once = options["node"], options["at_once"]
    ended = target.run(lambda session: changes.end_holders(session, name, node=node, at_once=at_once))
    _tell_ended(target, ended)


@queue.command("purge")
@click.argument("name")
@yes_option
@on_a_cluster
def purge(target: Target, name: str, yes: bool) -> None:  # noqa: FBT001 - an option
    """Remove all items of queue NAME at once, the claimed ones too; give NAME.dead for the dead ones."""
    if not yes:
        click.confirm(f"Remove all items of queue {name!r}?", abort=True)
    removed = target.run(lambda session: changes.purge(session, name))
    say_json({"removed": removed}) if target.as_json else click.echo(f"{removed:,} items removed")


@click.group("lock")
def lock() -> None:
    """Mend a lock: break."""


@lock.command("break")
@click.argument("name")
@at_once_option
@yes_option
@on_a_cluster
def break_lock(target: Target, name: str, at_once: bool, yes: bool) -> None:  # noqa: FBT001 - options
    """Take lock NAME from its holder, by ending its session, as if its process had died.

    That process hears of it within a third of its lease (5 s). The lock, and all that the session had locked or
    claimed, is kept from others until the lease would have ended by the holder's own reckoning (15 s), so that nobody
    else has it while the holder's `hold.valid` says yes. With --now it is given on at once.
    """
    if not yes:
        click.confirm(f"End the session that holds lock {name!r}, with all its locks, claims and barriers?", abort=True)
    ended = target.run(lambda session: changes.break_lock(session, name, at_once=at_once))
    _tell_ended(target, [ended])


def _tell_ended(target: Target, ended: Sequence[changes.Ended]) -> None:
    if target.as_json:
        say_json({"ended": ended})
        return
    for each in ended:
        waited = f", {each.waited_s:.0f} s later" if each.waited_s else ""
        click.echo(f"session {each.session} ended; free{waited}: {each.locks} locks, {each.claims} claimed items")
    if not ended:
        click.echo("nothing is claimed there")


@click.command("rm")
@click.argument("kind", type=KIND)
@click.argument("name")
@yes_option
@on_a_cluster
def rm(target: Target, kind: str, name: str, yes: bool) -> None:  # noqa: FBT001 - an option
    """Remove a collection and its name. A lock or barrier that somebody uses is left alone."""
    if not yes:
        click.confirm(f"Remove {kind} {name!r}?", abort=True)
    removed = target.run(lambda session: changes.remove(session, cast(Kind, kind), name))
    say_json({"removed": removed}) if target.as_json else click.echo(
        f"{kind} {name!r} removed, with {removed:,} entries"
    )


# ---- export and import


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")
@click.option(
    "--only", "names", type=(KIND, str), multiple=True, metavar="KIND NAME", help="Only this; may be repeated."
)
@stale_option
@on_a_cluster
def export(target: Target, file: Path, names: Sequence[tuple[str, str]], stale: bool) -> None:  # noqa: FBT001
    """Write the namespace into FILE as lines of JSON, as it was at one moment.

    What lives on sessions is left out: who holds a lock, waits at a barrier, or has claimed an item. A FILE is there
    only when it is whole; it is for its owner's eyes. Signed pickles stay signed.
    """
    only: list[tuple[Kind, str]] = [(cast(Kind, kind), name) for kind, name in names]
    with _written(file) as write:
        lines = target.run(lambda session: transfer.exported(session, write, names=only, stale=stale))
    click.echo(f"{lines:,} lines", err=True)


@contextlib.contextmanager
def _written(file: Path) -> Generator[Callable[[Mapping[str, Any]], None]]:
    if str(file) == "-":
        yield partial(_write, sys.stdout)
        return
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.absolute().parent, prefix=f".{file.name}.", delete=False
    ) as draft:
        try:
            yield partial(_write, draft)
            draft.flush()
            Path(draft.name).replace(file)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def _write(out: Any, line: Mapping[str, Any]) -> None:
    out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


@click.command("import")
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
@click.option(
    "--merge", is_flag=True, help="Into collections that have entries: replaces entries, appends items, adds up."
)
@click.option(
    "--skip", type=click.IntRange(min=0), default=0, help="Leave out so many lines: they are imported already."
)
@on_a_cluster
def import_(target: Target, file: IO[str], merge: bool, skip: int) -> None:  # noqa: FBT001 - options
    """Read what `export` has written from FILE into the namespace, each line exactly once.

    Signed pickles go into another namespace only with SKYWARD_ETCD_SECRET, which signs them anew.
    """
    seen: set[tuple[str, str]] = set()
    done = skip
    with target.session() as session:
        try:
            for part in transfer.parts_of(transfer.lines_of(file), skip=skip):
                if not merge and not skip and (part.kind, part.name) not in seen:
                    session.run(transfer.require_unused(session, part.kind, part.name))
                seen.add((part.kind, part.name))
                try:
                    session.run(transfer.import_part(session, part))
                except OutcomeUnknown as error:
                    lines = f"lines {part.first_line} to {part.last_line} may be imported, or not: look, and go on with"
                    stop(f"{error}; {lines} --skip {done} or --skip {part.last_line}", exit_code(error))
                done = part.last_line
        except (SkywardEtcdError, ValueError) as error:
            so_far = f"; lines up to {done} are imported: go on with --skip {done}" if done else "; nothing is imported"
            stop(f"{error}{so_far}", exit_code(error))
    say_json({"lines": done}) if target.as_json else click.echo(f"{done:,} lines imported", err=True)


COMMANDS: Sequence[click.Command] = (queue, lock, rm, export, import_)
