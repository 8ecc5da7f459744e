"""What is planned before any etcd is started."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from skyward_etcd.cluster.binary import Etcd, Version
from skyward_etcd.cluster.bootstrap import free_ports, plan, start_all, voters
from skyward_etcd.cluster.member import Member, MemberSpec, flags
from skyward_etcd.errors import PoolError


@pytest.mark.parametrize(
    ("nodes", "spot", "members"),
    [
        (1, False, 1),
        (2, False, 1),
        (3, False, 3),
        (6, True, 3),
        (7, False, 3),
        (7, True, 5),
        (100, False, 3),
        (100, True, 5),
        (2, True, 1),
    ],
)
def test_as_many_members_as_survive_what_is_to_be_expected(nodes: int, members: int, *, spot: bool) -> None:
    assert voters(nodes, spot=spot) == members


def test_never_an_even_number_of_members() -> None:
    assert {voters(nodes, spot=spot) % 2 for nodes in range(1, 50) for spot in (False, True)} == {1}


@pytest.mark.parametrize("nodes", [0, -1])
def test_a_pool_without_nodes_has_no_members(nodes: int) -> None:
    with pytest.raises(ValueError, match="at least one node"):
        voters(nodes)


@pytest.mark.parametrize("members", [0, 2, 4, -1])
def test_an_even_cluster_is_refused(members: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1, 3 or 5"):
        plan(members, tmp_path)


def test_a_plan_gives_every_member_its_own_place_and_all_the_same_list(tmp_path: Path) -> None:
    specs = plan(3, tmp_path)
    assert len({spec.name for spec in specs}) == 3
    assert len({spec.data_dir for spec in specs}) == 3
    assert len({url for spec in specs for url in (spec.client_url, spec.peer_url)}) == 6
    for spec in specs:
        assert spec.initial_cluster == {each.name: each.peer_url for each in specs}
        assert spec.endpoint == f"unix://{tmp_path}/sockets/{spec.name}:2379"
        assert (spec.state, spec.durable, spec.token) == ("new", False, specs[0].token)
    assert plan(3, tmp_path)[0].token != specs[0].token


def test_a_planned_port_goes_only_to_those_who_name_it() -> None:
    ports = free_ports(3)
    with socket.create_server(("127.0.0.1", ports[0])) as server:  # as etcd does, with SO_REUSEADDR
        assert server.getsockname()[1] == ports[0]
    for _ in range(200):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in ports


def spec_for(directory: Path, members: int = 3, *, durable: bool = False) -> MemberSpec:
    cluster = {f"m{i}": f"http://127.0.0.1:{i}" for i in range(members)}
    return MemberSpec("m0", directory / "m0", "http://127.0.0.1:9", cluster["m0"], cluster, "t", durable=durable)


def options(version: Version, spec: MemberSpec) -> dict[str, str]:
    pairs = (flag.removeprefix("--").partition("=") for flag in flags(Etcd(Path("etcd"), version, "test"), spec))
    return {name: value for name, _, value in pairs}


RELEASES: list[Version] = [(3, 4, 0), (3, 4, 23), (3, 5, 1), (3, 5, 28), (3, 6, 9), (3, 7, 1)]


@pytest.mark.parametrize("version", RELEASES)
def test_every_release_gets_the_settings_that_we_always_want(version: Version, tmp_path: Path) -> None:
    said = options(version, spec_for(tmp_path))
    assert said["strict-reconfig-check"] == "true"
    assert (said["auto-compaction-mode"], said["auto-compaction-retention"]) == ("periodic", "10m")
    assert int(said["max-txn-ops"]) > 128
    assert int(said["quota-backend-bytes"]) > 0
    assert "max-request-bytes" not in said
    assert all("127.0.0.1" in url for name, url in said.items() if name.endswith("-urls"))


@pytest.mark.parametrize("version", RELEASES)
def test_experimental_names_end_where_etcd_ended_them(version: Version, tmp_path: Path) -> None:
    said = options(version, spec_for(tmp_path))
    experimental = {name for name in said if name.startswith("experimental-")}
    assert bool(experimental) is (version < (3, 6, 0))
    assert ("feature-gates" in said) is (version >= (3, 6, 0))
    assert ("pre-vote" in said and "enable-v2" in said) is (version < (3, 5, 0))
    notify = {name: value for name, value in said.items() if name.endswith("watch-progress-notify-interval")}
    assert list(notify.values()) == (["5s"] if version >= (3, 4, 11) else [])


def test_only_what_is_not_durable_goes_without_fsync(tmp_path: Path) -> None:
    assert options((3, 4, 23), spec_for(tmp_path))["unsafe-no-fsync"] == "true"
    assert "unsafe-no-fsync" not in options((3, 4, 23), spec_for(tmp_path, durable=True))
    assert "unsafe-no-fsync" not in options((3, 4, 9), spec_for(tmp_path)), "it did not exist yet"


@pytest.mark.parametrize("members", [1, 3])
def test_an_election_takes_at_least_five_heartbeats(members: int, tmp_path: Path) -> None:
    said = options((3, 5, 28), spec_for(tmp_path, members))
    assert int(said["election-timeout"]) >= 5 * int(said["heartbeat-interval"])


def test_too_little_disk_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [Member(Etcd(Path("/bin/false"), (3, 5, 28), "test"), spec) for spec in plan(3, tmp_path / "pool")]

    def nearly_full(_path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=300_000_000)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(PoolError, match=r"300 MB free .* 3 new etcd member\(s\) take 369 MB"):
        start_all(members)
    assert not any(member.alive for member in members)
    assert not (tmp_path / "pool").exists()
