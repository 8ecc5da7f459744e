"""The command that shows a cluster as a page: dashboard."""

from __future__ import annotations

from collections.abc import Sequence

import click

from skyward_etcd.cli.target import FAILED, USAGE, Target, on_a_cluster, stop
from skyward_etcd.cluster.survey import Survey, survey

__all__ = ["COMMANDS"]


@click.command("dashboard")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), default=8379, show_default=True)
@click.option("--allow-host", "names", multiple=True, metavar="NAME", help="A name under which it is asked for; * any.")
@click.option("--every", "every_s", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds.")
@on_a_cluster
def dashboard(target: Target, host: str, port: int, names: Sequence[str], every_s: float) -> None:
    """Show the cluster as a page in a browser, live. It changes nothing, and shows no values.

    Members, collections, how deep the queues have been, who holds a lock and who waits, who is missing at a barrier; at
    /metrics the same for Prometheus. It knows no users: who reaches the port sees it.
    """
    try:
        from skyward_etcd.dashboard.looking import Looking
        from skyward_etcd.dashboard.server import names_of, serve
    except ImportError as error:
        stop(f"{error}: pip install 'skyward-etcd[dashboard]'", USAGE)
    known = names_of(host) | frozenset(names)
    if not known:
        raise click.UsageError(f"--host {host} is no name: say how it is asked for, --allow-host NAME")
    with target.session() as session:

        def ask() -> Survey:
            return survey(session.endpoints, reads=session.layout.root, tls=target.tls, login=target.login)

        shown = f"[{host}]" if ":" in host else host
        click.echo(f"http://{shown}:{port}/ shows namespace {target.namespace!r}; Ctrl-C ends it", err=True)
        try:
            serve(Looking(session, ask, every_s=every_s), host=host, port=port, names=known)
        except SystemExit as error:  # uvicorn has said why
            raise click.exceptions.Exit(FAILED) from error


COMMANDS: Sequence[click.Command] = (dashboard,)
