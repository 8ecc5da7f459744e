"""Which cluster a command is about, and what its failures mean: the options and exit codes that all commands share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from skyward_etcd import active, config
from skyward_etcd.cluster.survey import Survey, survey
from skyward_etcd.config import TlsFiles
from skyward_etcd.errors import (
    NotConnected,
    OutcomeUnknown,
    PermissionDenied,
    SkywardEtcdError,
    Unavailable,
    UnsafeEtcd,
)
from skyward_etcd.session.session import Login, Session, Tls

__all__ = ["DENIED", "FAILED", "TEMPORARY", "UNKNOWN", "USAGE", "Target", "exit_code", "on_a_cluster", "stop"]

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

FAILED = 1
"""It was refused, or something is wrong."""
USAGE = 2
"""The command or the configuration is wrong: trying again does not help."""
UNKNOWN = 3
"""A write was sent, and nobody knows whether it was applied."""
TEMPORARY = 75
"""The cluster is not to be reached, or has no majority: try again later (``EX_TEMPFAIL`` of sysexits.h)."""
DENIED = 77
"""Wrong credentials (``EX_NOPERM``)."""


def exit_code(error: BaseException) -> int:
    """Return the exit code that tells of an error."""
    match error:
        case PermissionDenied():
            return DENIED
        case Unavailable():
            return TEMPORARY
        case OutcomeUnknown():
            return UNKNOWN
        case NotConnected() | UnsafeEtcd():
            return USAGE
        case _:
            return FAILED


def stop(message: str, code: int = FAILED) -> NoReturn:
    """End the command with a message and an exit code."""
    click.echo(f"Error: {message}", err=True)
    raise click.exceptions.Exit(code)


@dataclass(frozen=True)
class Target:
    """A cluster, a namespace in it, and how to print."""

    endpoints: tuple[str, ...]
    namespace: str
    login: Login | None
    tls: Tls | None
    timeout_s: float
    as_json: bool

    def connection(self) -> active.Connection:
        """Return a connection that is not open yet."""
        return active.connect(
            self.endpoints,
            namespace=self.namespace,
            user=self.login.user if self.login else None,
            password=self.login.password if self.login else None,
            tls=self.tls,
        )

    @contextlib.contextmanager
    def session(self) -> Generator[Session]:
        """Yield a session, which has no lease as long as nothing is written."""
        connection = self.connection()
        with contextlib.closing(connection):
            session = connection.session
            session.limits = replace(session.limits, operation_s=self.timeout_s)
            yield session

    def run(self, make: Callable[[Session], Generator[Any, Any, T]]) -> T:
        """Run one operation."""
        with self.session() as session:
            return session.run(make(session))

    def survey(self) -> Survey:
        """Ask all members."""
        with self.session() as session:
            return survey(session.endpoints, reads=session.layout.root, tls=self.tls, login=self.login)


_PATH = click.Path(path_type=Path, exists=True, dir_okay=False)
_OPTIONS = (
    click.option("--endpoints", metavar="HOST:PORT,…", help="The members; by default SKYWARD_ETCD_ENDPOINTS."),
    click.option("--namespace", "-n", help="By default SKYWARD_ETCD_NAMESPACE, else 'default'."),
    click.option("--user", help="Of etcd's own; by default SKYWARD_ETCD_USER. Its password: SKYWARD_ETCD_PASSWORD."),
    click.option("--password-file", type=_PATH, help="A file with the password, which is no argument of a command."),
    click.option("--ca", type=_PATH, help="Who has signed the members' certificates (PEM)."),
    click.option("--certificate", type=_PATH, help="Ours, if the cluster wants one."),
    click.option("--key", type=_PATH, help="The certificate's."),
    click.option(
        "--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds."
    ),
    click.option("--json", "as_json", is_flag=True, help="For programs."),
)


def on_a_cluster(command: Command) -> Command:
    """Give a command the options that say which cluster, and a `Target` of them as its first argument."""

    @functools.wraps(command)
    def with_target(
        *args: Any,
        endpoints: str | None,
        namespace: str | None,
        user: str | None,
        password_file: Path | None,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        timeout_s: float,
        as_json: bool,
        **rest: Any,
    ) -> Any:
        where = tuple(part.strip() for part in (endpoints or "").split(",") if part.strip()) or config.endpoints()
        if not where:
            raise click.UsageError("no endpoints: give --endpoints HOST:PORT, or set SKYWARD_ETCD_ENDPOINTS")
        try:
            login = _login(user, password_file)
            tls = _tls(ca, certificate, key)
            target = Target(where, namespace or config.namespace(), login, tls, timeout_s, as_json)
            with target.session():
                pass  # what is wrong with the configuration shows here
        except (ValueError, TypeError, OSError) as error:
            if isinstance(error, SkywardEtcdError):
                raise
            raise click.UsageError(str(error)) from error
        return command(target, *args, **rest)

    shown: Any = with_target
    for option in reversed(_OPTIONS):
        shown = option(shown)
    return shown  # type: ignore[no-any-return]


def _login(user: str | None, password_file: Path | None) -> Login | None:
    who = user or config.user()
    password = password_file.read_text().rstrip("\n") if password_file else config.password()
    if bool(who) != bool(password):
        raise ValueError("a user and a password go together: --user and --password-file, or SKYWARD_ETCD_PASSWORD")
    return Login(who, password) if who else None


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    if (certificate or key) and not ca:
        raise ValueError("--certificate and --key want --ca too: who has signed the members' certificates")
    files = TlsFiles(ca, certificate, key) if ca else config.tls_files()
    return Tls.of_files(files.ca, files.certificate, files.key) if files else None
