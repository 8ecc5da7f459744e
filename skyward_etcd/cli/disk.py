"""The commands about a cluster's data as a whole: snapshot, restore, recover."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from skyward_etcd.cli.output import in_mb, say_json
from skyward_etcd.cli.target import TEMPORARY, Target, on_a_cluster, stop
from skyward_etcd.cluster import binary, bootstrap, recovery
from skyward_etcd.errors import QuorumLost
from skyward_etcd.session import recovered

__all__ = ["COMMANDS"]


@click.command("snapshot")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@on_a_cluster
def snapshot(target: Target, file: Path) -> None:
    """Write all data of the cluster, of all namespaces, into FILE: what `restore` makes a cluster of.

    They are those of the member that has the newest; a majority is not needed. FILE is replaced when the whole is
    there and its hash is right, and is for its owner's eyes. With etcd's authentication it takes the user root.
    """
    found = target.survey()
    if not found.answers:
        stop(f"nobody answers: {'; '.join(str(error) for _, error in found.failures)}", TEMPORARY)
    newest = max(found.answers, key=lambda each: each.revision)
    size = recovery.save(newest.endpoint, file, tls=target.tls, login=target.login)
    if target.as_json:
        say_json({"file": str(file), "bytes": size, "revision": newest.revision, "endpoint": newest.endpoint})
    else:
        click.echo(f"{in_mb(size)} of {newest.endpoint} in {file}, revision {newest.revision} or later")


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, resolve_path=True))
@click.option("--members", type=int, default=1, show_default=True, help="1, 3 or 5.")
def restore(file: Path, directory: Path, members: int) -> None:
    """Make a durable cluster in DIRECTORY with the data of a snapshot: for `skyward-etcd up` or `Compute(durable=)`.

    It is another cluster. All locks and claims are free; fencing tokens go on beyond all that were given.
    """
    etcd = binary.find(durable=True, members=members)
    made = recovery.restore_directory(directory, file, etcd, members=members, make_fit=recovered.make_fit)
    click.echo(
        f"restored into {directory}, {len(made)} members; nothing runs yet: skyward-etcd up --directory {directory}"
    )


@click.command("recover")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True))
def recover(directory: Path) -> None:
    """Recover the durable cluster in DIRECTORY, of which most members' data are lost.

    The newest data that are left become those of a new cluster. What only the lost members knew is lost, acknowledged
    or not. All locks and claims are free; fencing tokens go on growing. No pool may use the directory meanwhile.
    """
    etcd = binary.find(durable=True, members=len(bootstrap.planned(directory)))
    try:
        done = recovery.recover_directory(directory, etcd, make_fit=recovered.make_fit)
    except QuorumLost as error:
        stop(str(error))  # for good: trying again does not help
    click.echo(f"recovered from member {done.source}, which had everything up to revision {done.revision}")
    click.echo("lost: what the lost members had acknowledged after that; what was got from queues since comes again")
    for left in done.left:
        click.echo(f"no longer used, remove it when you are sure: {left}")


COMMANDS: Sequence[click.Command] = (snapshot, restore, recover)
