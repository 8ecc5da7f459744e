"""The commands of `skyward-etcd`."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import click

from skyward_etcd.cli import change, disk, local, look, web
from skyward_etcd.cli.target import exit_code, stop
from skyward_etcd.cluster import binary, fetch
from skyward_etcd.errors import SkywardEtcdError

__all__ = ["main"]


class _Commands(click.Group):
    """A group whose commands show the library's errors as a user should read them."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SkywardEtcdError as error:
            stop(str(error), exit_code(error))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Shared collections on an embedded etcd cluster.

    Exit codes: 0 done; 1 refused, or something is wrong; 2 wrong usage or configuration; 3 nobody knows whether a write
    was applied; 75 the cluster is not to be reached, try again; 77 wrong credentials.
    """


@main.command()
def version() -> None:
    """Print the version of skyward-etcd, and which etcd a pool would launch."""
    click.echo(f"skyward-etcd {importlib.metadata.version('skyward-etcd')}")
    try:
        found = binary.find()
    except SkywardEtcdError as error:
        click.echo(str(error))
    else:
        click.echo(f"etcd {binary.spell(found.version)} ({found.source}: {found.path})")


@main.command("fetch")
@click.option("--from", "source", type=click.Choice(["official", "debian"]), default="official", show_default=True)
@click.option("--file", type=click.Path(path_type=Path), help="A release archive that is already here.")
@click.option("--mirror", metavar="URL", help="Where to find v3.5.21/etcd-v3.5.21-linux-amd64.tar.gz and the like.")
@click.option(
    "--version",
    "release",
    default=binary.spell(fetch.LATEST_PINNED),
    show_default=True,
    help="The release to download.",
)
@click.option("--sha256", metavar="HASH|FILE", help="The archive's SHA-256, or the release's SHA256SUMS file.")
def fetch_command(source: str, file: Path | None, mirror: str | None, release: str, sha256: str | None) -> None:
    """Bring an etcd into the cache directory; no root needed.

    Official archives are checked against hashes in skyward-etcd's own source; for a release that it does not know, give
    --sha256. Debian's packages are checked by apt.
    """
    if source == "debian":
        etcd = fetch.fetch_debian()
    elif file:
        etcd = fetch.fetch_file(file, sha256=sha256)
    else:
        etcd = fetch.fetch_release(_parse(release), mirror=mirror or fetch.OFFICIAL, sha256=sha256)
    click.echo(f"etcd {binary.spell(etcd.version)} in {etcd.path}")
    for durable, mode in ((False, "pools"), (True, "durable clusters")):
        grade = binary.grade(etcd.version, durable=durable)
        click.echo(f"  for {mode}: {grade.verdict.value}{': ' if grade.reason else ''}{grade.reason}")


def _parse(release: str) -> binary.Version:
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", release)
    if not match:
        raise click.BadParameter(f"{release!r} is not a release like 3.5.21", param_hint="--version")
    return int(match[1]), int(match[2]), int(match[3])


for _command in (*look.COMMANDS, *change.COMMANDS, *disk.COMMANDS, *local.COMMANDS, *web.COMMANDS):
    main.add_command(_command)
