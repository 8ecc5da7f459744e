"""What a pool's nodes know of their cluster, and hand to each other; and what of it a process needs to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skyward_etcd.cluster import private
from skyward_etcd.cluster.tls import Authorities, Authority
from skyward_etcd.session.session import Tls

__all__ = ["Access", "Cluster"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as every node of its pool knows it."""

    epoch: int
    """1 for a pool's first; one more each time that it is begun anew, and two where it was restored with its data."""
    token: str
    members: Mapping[str, str]
    """``host:port`` of the members that have a vote, by name."""
    secret: bytes = field(repr=False)
    authorities: Authorities | None = field(repr=False)
    """None where the nodes have no certificates of the pool's own to hand them over with."""
    story: str = ""
    """What became of the cluster before."""

    def supersedes(self, other: Cluster | None) -> bool:
        """Tell whether it has taken the other's place. Should two nodes have done that at once, all choose the same."""
        return other is None or (self.epoch, self.token) > (other.epoch, other.token)

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        pairs = self.authorities and (self.authorities.peers, self.authorities.clients)
        return {
            "epoch": self.epoch,
            "token": self.token,
            "members": dict(self.members),
            "secret": self.secret.hex(),
            "authorities": [[each.certificate.decode(), each.key.decode()] for each in pairs or ()],
            "story": self.story,
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Cluster:
        """Return what `to_data` was given."""
        pairs = [Authority(certificate.encode(), key.encode()) for certificate, key in data["authorities"]]
        return cls(
            data["epoch"],
            data["token"],
            data["members"],
            bytes.fromhex(data["secret"]),
            Authorities(*pairs) if pairs else None,
            data["story"],
        )


@dataclass(frozen=True, slots=True)
class Access:
    """Where the cluster is, and what lets a client in. It is kept in a file that only the node's own user can read."""

    epoch: int
    token: str
    endpoints: tuple[str, ...]
    namespace: str
    secret: bytes = field(repr=False)
    tls: Tls | None = field(repr=False)
    story: str = ""

    def write(self, file: Path) -> None:
        """Write it, at once and as a whole."""
        tls = self.tls and [part.decode() for part in (self.tls.ca, self.tls.certificate or b"", self.tls.key or b"")]
        data = {
            "epoch": self.epoch,
            "token": self.token,
            "endpoints": self.endpoints,
            "namespace": self.namespace,
            "secret": self.secret.hex(),
            "tls": tls,
            "story": self.story,
        }
        private.write(file, json.dumps(data).encode())

    @classmethod
    def parse(cls, text: bytes | str) -> Access:
        """Return what `write` wrote."""
        data = json.loads(text)
        tls = data["tls"] and Tls(*(part.encode() for part in data["tls"]))
        return cls(
            data["epoch"],
            data["token"],
            tuple(data["endpoints"]),
            data["namespace"],
            bytes.fromhex(data["secret"]),
            tls,
            data["story"],
        )
