"""What can be set from outside: environment variables, read here and nowhere else, and the time limits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "SKYWARD_ACCESS",
    "Limits",
    "SkywardNode",
    "TlsFiles",
    "cache_dir",
    "compute_pool",
    "endpoints",
    "environment_of_etcd",
    "environment_without_secrets",
    "etcd_binary",
    "local_dir",
    "metrics_port",
    "namespace",
    "password",
    "secret",
    "skyward_access",
    "skyward_cluster",
    "skyward_hook",
    "skyward_node",
    "skyward_peers",
    "tls_files",
    "transport",
    "user",
]


_SECRETS = frozenset({"SKYWARD_ETCD_SECRET", "SKYWARD_ETCD_PASSWORD"})
SKYWARD_ACCESS = "SKYWARD_ETCD_ACCESS"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds, how large they may be, in bytes, and how many there may be."""

    call_s: float = 3.0
    """One request to one member. A member that is cut off would take 7 s to say so: we switch before."""
    operation_s: float = 30.0
    """One request with all its repetitions, at all members. Waiting for others is not bound by it."""
    ttl_s: float = 15.0
    """The session's lease: how long a dead process keeps its locks, claims and barrier places."""
    calls_at_once: int = 8
    """How many requests threads, and the tasks of each event loop, have under way before others travel together."""
    value_bytes: int = 1 << 20
    """One encoded value. etcd refuses requests over 1.5 MiB."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificates are: of who signs the members', and our own with its key, if the cluster wants one."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None


def endpoints() -> tuple[str, ...]:
    """``SKYWARD_ETCD_ENDPOINTS``: the members, separated by commas."""
    return tuple(part.strip() for part in os.environ.get("SKYWARD_ETCD_ENDPOINTS", "").split(",") if part.strip())


def namespace() -> str:
    """``SKYWARD_ETCD_NAMESPACE``: keeps programs that share a cluster apart; ``default`` if unset."""
    return os.environ.get("SKYWARD_ETCD_NAMESPACE", "") or "default"


def secret() -> bytes | None:
    """``SKYWARD_ETCD_SECRET``, or ``_SECRET_FILE`` for one in a file: signs and checks pickled values."""
    text = _secret("SKYWARD_ETCD_SECRET")
    return text.encode() if text else None


def metrics_port() -> int | None:
    """``SKYWARD_ETCD_METRICS_PORT``: where ``skyward-etcd run`` serves Prometheus metrics, at all addresses; or None.

    Raises:
        ValueError: it is no port.
    """
    text = os.environ.get("SKYWARD_ETCD_METRICS_PORT", "")
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ValueError(f"SKYWARD_ETCD_METRICS_PORT={text!r}: it is a port, from 1 to 65535")
    return int(text)


def user() -> str:
    """``SKYWARD_ETCD_USER``: who we are where etcd's own authentication is enabled."""
    return os.environ.get("SKYWARD_ETCD_USER", "")


def password() -> str:
    """``SKYWARD_ETCD_PASSWORD``, or ``_PASSWORD_FILE`` for one in a file: the user's."""
    return _secret("SKYWARD_ETCD_PASSWORD")


def _secret(name: str) -> str:
    """Return a variable, or the text of the file that its namesake names, without the end of its last line."""
    file = os.environ.get(f"{name}_FILE")
    return os.environ.get(name, "") or (Path(file).read_text().rstrip("\r\n") if file else "")


def environment_without_secrets() -> dict[str, str]:
    """Return this process's environment for a program that needs none of the secrets in it."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def environment_of_etcd() -> dict[str, str]:
    """Return what etcd and its tools are started with: they would take any flag from variables of theirs."""
    plain = environment_without_secrets()
    return {name: value for name, value in plain.items() if not name.startswith(("ETCD_", "ETCDCTL_"))}


def tls_files() -> TlsFiles | None:
    """``SKYWARD_ETCD_TLS_CA``, ``_CERTIFICATE`` and ``_KEY``: PEM files for a cluster that wants TLS; or None."""
    ca, certificate, key = (os.environ.get(f"SKYWARD_ETCD_TLS_{part}") for part in ("CA", "CERTIFICATE", "KEY"))
    return TlsFiles(Path(ca), Path(certificate) if certificate else None, Path(key) if key else None) if ca else None


def transport() -> str:
    """``SKYWARD_ETCD_TRANSPORT``: ``sockets``, the default, or ``grpcio`` (which has to be installed)."""
    return os.environ.get("SKYWARD_ETCD_TRANSPORT") or "sockets"


def compute_pool() -> str | None:
    """``COMPUTE_POOL``: Skyward's word to its workers about which node of which pool they are, in JSON."""
    return os.environ.get("COMPUTE_POOL") or None


@dataclass(frozen=True, slots=True)
class SkywardNode:
    """What Skyward tells a worker about its node, as the worker is started."""

    id: str
    host: str
    """Where the other nodes reach it."""
    opens: bool
    """Whether it is the node that the others are told to join: the one without seeds."""
    certificate: str
    """Paths of the node's certificate, its key, and of who signed those of all nodes; empty where there are none."""
    key: str
    authority: str


def skyward_node() -> SkywardNode | None:
    """``SKYWARD_NODE``, ``_PEER``, ``_SEEDS`` and ``_TLS_…``; None in a process that is no worker of Skyward's.

    Its generation 1 says ``SKYWARD_NODE_ID``, a rank, and ``SKYWARD_HOST``.
    """
    told = os.environ
    node = told.get("SKYWARD_NODE") or told.get("SKYWARD_NODE_ID")
    if not node:
        return None
    return SkywardNode(
        node,
        told.get("SKYWARD_PEER") or told.get("SKYWARD_HOST", ""),
        not told.get("SKYWARD_SEEDS"),
        told.get("SKYWARD_TLS_CERT", ""),
        told.get("SKYWARD_TLS_KEY", ""),
        told.get("SKYWARD_TLS_CA", ""),
    )


def skyward_peers() -> tuple[str, ...]:
    """``SKYWARD_PEERS``: the hosts of all nodes in the order of their ranks. Skyward changes it while a worker runs."""
    return tuple(part for part in os.environ.get("SKYWARD_PEERS", "").split(",") if part)


def skyward_cluster() -> bool:
    """``SKYWARD_CLUSTER``: whether the pool's nodes may know each other: not with ``Options(cluster=False)``."""
    return os.environ.get("SKYWARD_CLUSTER", "1") in ("1", "true")


def skyward_access() -> Path | None:
    """``SKYWARD_ETCD_ACCESS``: where a node's other processes find what lets them into its cluster."""
    file = os.environ.get(SKYWARD_ACCESS)
    return Path(file) if file else None


def skyward_hook() -> bool:
    """``SKYWARD_ETCD_HOOK``: whether Skyward is told of our plugin when it is imported; ``0`` for no."""
    return os.environ.get("SKYWARD_ETCD_HOOK", "1") != "0"


def etcd_binary() -> str | None:
    """``SKYWARD_ETCD_BINARY``: the etcd to launch."""
    return os.environ.get("SKYWARD_ETCD_BINARY") or None


def cache_dir() -> Path:
    """``SKYWARD_ETCD_CACHE``, else ``skyward-etcd`` in the user's cache directory: where ``fetch`` puts etcd."""
    explicit = os.environ.get("SKYWARD_ETCD_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skyward-etcd"


def local_dir() -> Path:
    """``SKYWARD_ETCD_LOCAL``, else in the user's state directory: where ``skyward-etcd up`` keeps its cluster."""
    explicit = os.environ.get("SKYWARD_ETCD_LOCAL")
    if explicit:
        return Path(explicit).absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "skyward-etcd" / "local"
