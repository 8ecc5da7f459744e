"""The command where nobody is let in without a certificate: every look and change, and what it says of wrong ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from skyward_etcd.active import Tls, connect
from skyward_etcd.cli.main import main
from skyward_etcd.cluster import private, recovery, tls
from skyward_etcd.cluster.bootstrap import LocalCluster
from tests.integration.conftest import any_usable
from tests.integration.secured import Cluster

NAMES = ("ca.crt", "tls.crt", "tls.key")


@dataclass(frozen=True)
class Secured:
    """A cluster with data in it, and files that let the command in."""

    endpoint: str
    directory: Path
    client: Tls

    def options(self, directory: Path | None = None, *, without: Sequence[str] = ()) -> list[str]:
        paths = [(directory or self.directory) / name for name in NAMES]
        options = zip(("--ca", "--certificate", "--key"), map(str, paths), strict=True)
        return [part for pair in options if pair[0] not in without for part in pair]

    def __call__(self, *arguments: str, options: Sequence[str] | None = None, code: int = 0, **env: str) -> Result:
        shown = self.options() if options is None else options
        environment = {"SKYWARD_ETCD_ENDPOINTS": self.endpoint, **env}
        done = CliRunner().invoke(main, [*arguments, "--timeout", "2", *shown], env=environment)
        assert done.exit_code == code, f"{arguments} ended with {done.exit_code}: {done.output} {done.exception!r}"
        return done

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self(*arguments, "--json", **options).stdout)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    with closing(Cluster(any_usable(), directory)) as cluster:
        endpoint = cluster.found().endpoint
        write(directory / "client", cluster.client)
        with connect([endpoint], tls=cluster.client) as sky:
            sky.dict("d").update({"k": [1, 2], "other": "x"})
            sky.queue("q").put_many(range(3))
        yield Secured(endpoint, directory / "client", cluster.client)


def write(directory: Path, shown: Tls) -> Path:
    private.directory(directory)
    for name, content in zip(NAMES, (shown.ca, shown.certificate, shown.key), strict=True):
        private.write(directory / name, content or b"")
    return directory


def test_status_and_doctor_ask_over_tls(secured: Secured) -> None:
    said = secured.json("status")
    (member,) = said["members"]
    assert (said["has_leader"], member["answers"], member["role"]) == (True, True, "leader")
    assert member["quota_bytes"] == 2 << 30, "which older releases tell over HTTPS only"
    assert {each["code"] for each in secured.json("doctor")} <= {"weak-version", "refused-version"}


def test_ls_and_show_read_over_tls(secured: Secured) -> None:
    listed = {each["name"]: each["entries"] for each in secured.json("ls")["collections"]}
    assert listed == {"d": 2, "q": 3}
    assert secured.json("show", "dict", "d")["count"] == 2
    assert "3" in secured("show", "queue", "q").stdout


def test_the_files_that_the_environment_names_do_as_well(secured: Secured) -> None:
    paths = [str(secured.directory / name) for name in NAMES]
    names = [f"SKYWARD_ETCD_TLS_{each}" for each in ("CA", "CERTIFICATE", "KEY")]
    assert secured.json("status", options=(), **dict(zip(names, paths, strict=True)))["has_leader"]


def test_export_and_import_travel_over_tls(secured: Secured, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    secured("export", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    secured("import", str(file), "--namespace", "copy")
    assert secured.json("show", "dict", "d", "--namespace", "copy")["count"] == 2


def test_a_snapshot_comes_over_tls(secured: Secured, tmp_path: Path) -> None:
    file = tmp_path / "snapshot"
    assert secured.json("snapshot", str(file))["bytes"] == file.stat().st_size
    recovery.require_snapshot(file)
    assert file.stat().st_mode & 0o777 == 0o600


COMMANDS = (("status",), ("ls",), ("show", "dict", "d"), ("export", "-"), ("snapshot", "never"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_a_certificate_it_says_which_is_missing(
    secured: Secured, command: Sequence[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = secured(*command, options=secured.options(without=("--certificate", "--key")), code=75)
    said = done.output
    assert "give certificate and key" in said or "client certificate" in said, said
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_strangers_are_told_what_is_wrong_with_them(secured: Secured, tmp_path: Path) -> None:
    theirs = tls.make().client("stranger")
    another_ca = write(tmp_path / "ca", theirs)
    done = secured("ls", options=secured.options(another_ca), code=75)
    assert "not signed by the CA given" in done.output
    stranger = write(tmp_path / "stranger", Tls(secured.client.ca, theirs.certificate, theirs.key))
    done = secured("ls", options=secured.options(stranger), code=75)
    said = done.output
    assert "CA of our client certificate" in said or "client certificate" in said or "renew them" in said, said


def test_plain_and_tls_are_told_apart(secured: Secured, one_member: LocalCluster) -> None:
    done = secured("ls", options=(), code=75)
    assert "give the cluster's CA, certificate and key" in done.output
    done = secured("ls", "--endpoints", one_member.endpoints[0], code=75)
    assert "there is no TLS at this address" in done.output
    done = secured("ls", "--endpoints", f"https://{secured.endpoint}", options=(), code=2)
    assert "SKYWARD_ETCD_TLS_CA" in done.output


def test_files_that_cannot_be_used_are_refused_at_once(secured: Secured, tmp_path: Path) -> None:
    done = secured("ls", options=secured.options(without=("--ca",)), code=2)
    assert "want --ca too" in done.output
    done = secured("ls", options=secured.options(without=("--key",)), code=2)
    assert "both files, or neither" in done.output
    mixed = write(tmp_path / "mixed", Tls(secured.client.ca, secured.client.certificate, tls.make().client("x").key))
    done = secured("ls", options=secured.options(mixed), code=2)
    assert "do not go together" in done.output
    assert "PRIVATE" not in done.output
