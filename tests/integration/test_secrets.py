"""What must not be seen is not seen: not in arguments, logs, messages, reprs and tracebacks, nor by other users."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import skyward_etcd as sky
from skyward_etcd import config
from skyward_etcd.active import connect
from skyward_etcd.cli.main import main
from skyward_etcd.cluster import local, tls
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.errors import SkywardEtcdError, Unavailable
from skyward_etcd.plugin.shared import Access, Cluster
from tests.conftest import MARK
from tests.integration.conftest import any_usable
from tests.integration.helpers import next_line

SECRET = "open-sesame-0123456789-open-sesame"
PASSWORD = "xyzzy-plugh-plover-0123456789"
TOKEN = "frotz-blorb-rezrov-0123456789"


@pytest.fixture(params=[0o000, 0o022], ids=["umask-000", "umask-022"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def ours() -> Iterator[Path]:
    """Yield the processes of this test run in /proc."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                yield process


def seen_in_processes(*words: str) -> list[str]:
    """Return the command lines with one of these words, and the environments of etcd's processes."""
    found: list[str] = []
    for process in ours():
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            name = (process / "comm").read_text().strip()
            shown = command + ((process / "environ").read_bytes() if name == "etcd" else b"")
            found += [f"{name}: {word}" for word in words if word.encode() in shown]
    return found


def loose(directory: Path) -> list[str]:
    """Return what is below a directory that others than its owner may touch."""
    found: list[str] = []
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # etcd renames what it has prepared
            mode = path.lstat().st_mode
            if not path.is_symlink() and mode & 0o077:
                found.append(f"{path.relative_to(directory)}: {mode & 0o777:o}")
    return found


def fails() -> None:
    raise ValueError("on purpose")


# ---- a pool


def test_a_pool_shows_its_secret_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    random = secrets.token_bytes

    def known(count: int) -> bytes:
        return SECRET.encode() if count == 32 else random(count)

    monkeypatch.setattr(secrets, "token_bytes", known)
    monkeypatch.setenv("SKYWARD_ETCD_SECRET", PASSWORD)  # of another cluster: none of the pool's business
    image = sky.Image(env={"TOKEN": TOKEN})
    shown: list[str] = []
    with sky.Compute(nodes=2, image=image, etcd=any_usable(), options=sky.Options(console=False)) as pool:
        assert pool._blueprint.secret == SECRET.encode()
        pool.dict("d")["k"] = ValueError  # signed
        assert seen_in_processes(SECRET, PASSWORD) == []
        attempts: list[Callable[[], Any]] = [
            lambda: sky.function(fails)() >> pool,
            lambda: pool.dict("d", consistency="wrong"),  # type: ignore[arg-type]
            lambda: pool.queue("d").put(1),
        ]
        for wrong in attempts:
            with pytest.raises(Exception) as failed:
                wrong()
            shown.append("".join(traceback.format_exception(failed.value)))
        shown += map(repr, (pool, pool._blueprint, pool._specs, pool.dict("d"), pool._fleet, *vars(pool).values()))
        logs = "".join(log.read_text(errors="replace") for log in tmp_path.rglob("*.log"))
    captured = capfd.readouterr()
    everything = "\n".join([*shown, caplog.text, captured.out, captured.err, logs])
    assert "on purpose" in everything
    for secret in (SECRET, SECRET.encode().hex(), PASSWORD, TOKEN):
        assert secret not in everything


def test_a_pool_leaves_nothing_for_others_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with sky.Compute(nodes=1, etcd=any_usable(), options=sky.Options(console=False)) as pool:
        pool.dict("d")["k"] = 1
        assert list(tmp_path.rglob("etcd.log"))
        assert loose(tmp_path) == []


# ---- clusters, files


def test_a_cluster_that_stays_leaves_nothing_for_others_to_read(tmp_path: Path, umask: int) -> None:
    directory = tmp_path / "upper" / "cluster"
    local.up(directory, members=1, durable=False, etcd=any_usable())
    try:
        assert {"up.log", "running.json"} <= {path.name for path in directory.iterdir()}
        assert loose(tmp_path) == []
    finally:
        local.down(directory)


def test_what_a_node_keeps_is_its_owners(tmp_path: Path, umask: int) -> None:
    authorities = tls.make()
    tls.write(authorities, tmp_path / "a" / "tls", "m", ["127.0.0.1"])
    access = Access(1, "t", ("h:1",), "n", SECRET.encode(), authorities.client("c"))
    access.write(tmp_path / "a" / "access.json")
    access.write(tmp_path / "a" / "access.json")
    assert Access.parse((tmp_path / "a" / "access.json").read_bytes()) == access
    assert loose(tmp_path) == []
    assert len(list((tmp_path / "a").iterdir())) == 2, "no drafts are left"
    known = Cluster(1, "t", {}, SECRET.encode(), authorities)
    for shown in (repr(access), repr(known), repr(authorities)):
        assert SECRET not in shown
        assert "PRIVATE" not in shown


def test_exports_and_snapshots_are_their_owners(one_member: LocalCluster, tmp_path: Path, umask: int) -> None:
    env = {"SKYWARD_ETCD_ENDPOINTS": ",".join(one_member.endpoints), "SKYWARD_ETCD_NAMESPACE": "exported"}
    for command in ("export", "snapshot"):
        for _ in range(2):  # a file that was there is replaced
            (tmp_path / command).touch(mode=0o666)
            done = CliRunner().invoke(main, [command, str(tmp_path / command)], env=env)
            assert done.exit_code == 0, done.output
    assert loose(tmp_path) == []


# ---- connect, run


def test_a_connection_shows_its_secrets_to_nobody(
    one_member: LocalCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    shown: list[Any] = []
    with connect(one_member.endpoints, secret=SECRET.encode(), namespace="secrets") as here:
        here.dict("d")["k"] = ValueError
        shown += map(repr, (here, here.session, here.session.codec, here.dict("d"), *vars(here.session).values()))
    with connect(one_member.endpoints, secret=b"another one of enough bytes", namespace="secrets") as there:
        with pytest.raises(SkywardEtcdError) as refused:
            _ = there.dict("d")["k"]
        shown.append("".join(traceback.format_exception(refused.value)))
    attempts: list[dict[str, Any]] = [{"user": "root", "password": PASSWORD}, {"secret": SECRET}]
    for options in attempts:
        with pytest.raises((SkywardEtcdError, TypeError, ValueError)) as failed:
            connect(one_member.endpoints, **options).session.open()
        shown.append("".join(traceback.format_exception(failed.value)))
    everything = "\n".join([*shown, caplog.text])
    assert SECRET not in everything
    assert PASSWORD not in everything


def test_secrets_in_files_do_as_well_as_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET", "PASSWORD"):
        monkeypatch.delenv(f"SKYWARD_ETCD_{name}", raising=False)
        (tmp_path / name).write_text(f"{SECRET}\n")
        monkeypatch.setenv(f"SKYWARD_ETCD_{name}_FILE", str(tmp_path / name))
    assert (config.secret(), config.password()) == (SECRET.encode(), SECRET)
    monkeypatch.setenv("SKYWARD_ETCD_PASSWORD", PASSWORD)
    assert config.password() == PASSWORD, "the variable itself counts more"
    assert SECRET not in "".join(config.environment_without_secrets().values())
    assert PASSWORD not in "".join(config.environment_of_etcd().values())
    (tmp_path / "SECRET").unlink()
    with pytest.raises(FileNotFoundError):
        config.secret()


def test_a_program_that_is_run_shows_its_secrets_to_nobody(one_member: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        textwrap.dedent(
            """
            import sys
            import skyward_etcd as sky

            def work():
                sky.dict("d")["k"] = work
                print(sky.dict("d"), flush=True)
                sys.stdin.readline()
                sky.barrier("d", 2)
                sky.queue("d").put(1)
            """
        )
    )
    (tmp_path / "secret").write_text(SECRET)
    command = [sys.executable, "-c", "from skyward_etcd.cli import main; main()", "run", "job:work"]
    env = {
        **os.environ,
        "SKYWARD_ETCD_ENDPOINTS": ",".join(one_member.endpoints),
        "SKYWARD_ETCD_NAMESPACE": "run-secrets",
        "SKYWARD_ETCD_SECRET_FILE": str(tmp_path / "secret"),
    }
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            first = next_line(process)
            assert seen_in_processes(SECRET) == []
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            assert SECRET.encode() not in environment
            said = process.communicate("\n", timeout=60)[0]
        finally:
            process.kill()
    assert "Traceback" in said
    assert SECRET not in first + said


def test_a_password_is_no_argument_and_in_no_message(one_member: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    arguments = ["ls", "--user", "root", "--password-file", str(tmp_path / "password"), "--timeout", "2"]
    done = CliRunner().invoke(main, arguments, env={"SKYWARD_ETCD_ENDPOINTS": one_member.endpoints[0]})
    assert done.exit_code == 77
    assert PASSWORD not in done.output
    assert "--password" not in {option for each in main.commands["ls"].params for option in each.opts}


def test_a_certificate_that_is_refused_is_not_shown(one_member: LocalCluster) -> None:
    shown = tls.make().client("c")
    connection = connect(one_member.endpoints, tls=shown)
    connection.session.limits = config.Limits(operation_s=1.0)
    with pytest.raises(Unavailable) as failed:
        connection.session.open()
    assert "PRIVATE" not in "".join(traceback.format_exception(failed.value))
