"""A cluster of a test's own that lets nobody in without a certificate."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from skyward_etcd.cluster import tls
from skyward_etcd.cluster.binary import Etcd, inspect
from skyward_etcd.cluster.bootstrap import free_ports
from skyward_etcd.cluster.member import Member, MemberSpec
from skyward_etcd.cluster.membership import Membership
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Tls, Wire


class Cluster:
    """Members of a test's own, under authorities of their own."""

    def __init__(self, etcd: Path, directory: Path, authorities: tls.Authorities | None = None) -> None:
        self.authorities = authorities or tls.make()
        self.client = self.authorities.client("test")
        self.members: dict[str, Member] = {}
        self._etcd = Etcd(etcd, inspect(etcd) or (0, 0, 0), "test")
        self._directory = directory
        self._numbers = itertools.count(1)

    def fresh(self) -> MemberSpec:
        name = f"m{next(self._numbers)}"
        client, peer, health = free_ports(3)
        return MemberSpec(
            name,
            self._directory / name,
            f"https://127.0.0.1:{client}",
            f"https://127.0.0.1:{peer}",
            {},
            "test_tls",
            state="existing",
            files=tls.write(self.authorities, self._directory / f"{name}-tls", name, ["127.0.0.1"]),
            health_url=f"http://127.0.0.1:{health}",
        )

    def found(self, **options: Any) -> MemberSpec:
        """Start the first member; ``options`` are of its spec."""
        spec = self.fresh()
        spec = replace(spec, state="new", initial_cluster={spec.name: spec.peer_url}, **{"grows": True, **options})
        self.start(spec)
        return spec

    def start(self, spec: MemberSpec) -> None:
        member = self.members[spec.name] = Member(self._etcd, spec)
        member.start()
        member.wait_ready()

    def membership(self, size: int) -> Membership:
        return Membership(
            {name: member.spec.endpoint for name, member in self.members.items()}, size=size, tls=self.client
        )

    def grow(self, size: int) -> None:
        with closing(self.membership(size)) as membership:
            while len(self.members) < size:
                membership.replace(self.fresh(), self.start)

    def listed(self) -> list[str]:
        reply: Any = self.ask(methods.MEMBER_LIST, pb.MemberListRequest(linearizable=True))
        assert not any(member.isLearner for member in reply.members)
        return sorted(member.name for member in reply.members)

    def ask(self, method: Any, request: Any, *, shown: Tls | None = None, endpoint: str = "") -> Any:
        endpoints = (endpoint,) if endpoint else tuple(member.spec.endpoint for member in self.members.values())
        with closing(Wire(endpoints, tls=shown or self.client)) as wire:
            return wire.call(method, request, timeout_s=3.0)

    def close(self) -> None:
        for member in self.members.values():
            member.kill()
