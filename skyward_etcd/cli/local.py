"""The commands that run something: up and down, a cluster for development; run, the process of a pod."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from skyward_etcd import config, observe
from skyward_etcd.cli.output import say_json
from skyward_etcd.cli.target import USAGE, Target, on_a_cluster, stop
from skyward_etcd.cluster import local
from skyward_etcd.work import running
from skyward_etcd.work.place import UnknownPlace, place

__all__ = ["COMMANDS"]

directory_option = click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="Where it is; by default SKYWARD_ETCD_LOCAL, else in the user's state directory.",
)


@click.command("up")
@directory_option
@click.option("--members", type=int, default=None, help="1, 3 or 5; by default what runs or is kept there, else 3.")
@click.option("--ephemeral", is_flag=True, help="Keep no data after `down`: any etcd is good for that.")
@click.option("--etcd", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The binary.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def up(directory: Path | None, members: int | None, ephemeral: bool, etcd: Path | None, as_json: bool) -> None:  # noqa: FBT001 - options
    """Start a cluster on this machine, and leave it running until `down`.

    It prints the line that tells programs where it is: eval "$(skyward-etcd up)".
    """
    where = directory or config.local_dir()
    try:
        there = local.up(where, members=members or local.size(where), durable=not ephemeral, etcd=etcd)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        say_json(there)
    else:
        click.echo(f"export SKYWARD_ETCD_ENDPOINTS={','.join(there.endpoints)}")
        click.echo(f"etcd {there.version}, {len(there.endpoints)} members, in {where}", err=True)


@click.command("down")
@directory_option
def down(directory: Path | None) -> None:
    """End the cluster that `up` has started. Its data stay, and the next `up` finds them."""
    where = directory or config.local_dir()
    if not local.down(where):
        stop(f"no cluster runs in {where}")
    click.echo(f"the cluster in {where} has ended", err=True)


@click.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("spec", metavar="MODULE:FUNCTION")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=300.0, show_default=True, help="For the cluster."
)
@click.option(
    "--grace", "grace_s", type=click.FloatRange(min=0), default=20.0, show_default=True, help="After SIGTERM."
)
@on_a_cluster
def run(target: Target, spec: str, arguments: Sequence[str], wait_s: float, grace_s: float) -> None:
    """Run a function with the collections of a cluster: the process of a pod, a task, a rank.

    Which of how many it is comes from an Indexed Job, a StatefulSet, SLURM, MPI, torchrun, or SKYWARD_ETCD_RANK and
    SKYWARD_ETCD_SIZE; `instance_info()` says it. ARGUMENTS are given to the function, as text. With
    SKYWARD_ETCD_METRICS_PORT, Prometheus finds metrics at that port.

    Exit codes: 0 done; 1 the function raised; 2 it cannot be run at all, do not try again; 75 the cluster is not to be
    reached; 143 SIGTERM, and its locks and claims are handed back. What the function gives to sys.exit is passed on.
    """
    try:
        here = place(dict(os.environ))
        function = running.load(spec)
    except (UnknownPlace, running.NotRunnable) as error:
        stop(str(error), USAGE)

    try:
        if (port := config.metrics_port()) is not None:
            observe.serve_prometheus(port, host="0.0.0.0")  # noqa: S104 - of a pod, whose other ports are no secret either
    except (ValueError, ImportError, OSError) as error:
        stop(f"no metrics: {error}", USAGE)

    def say(text: str) -> None:
        click.echo(f"rank {here.rank} of {here.size}: {text}", err=True)

    code = running.run(function, arguments, target.connection(), here, wait_s=wait_s, grace_s=grace_s, say=say)
    raise click.exceptions.Exit(code)


COMMANDS: Sequence[click.Command] = (up, down, run)
