"""Bring an etcd into our cache directory, checked before it is installed, without root.

Nothing is fetched unless asked for: never at import, never when a pool starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from skyward_etcd.cluster import private
from skyward_etcd.cluster.binary import Etcd, Version, inspect, install_dir, spell
from skyward_etcd.errors import BinaryNotFound, UnsafeEtcd

__all__ = ["LATEST_PINNED", "OFFICIAL", "fetch_debian", "fetch_file", "fetch_release"]

OFFICIAL = "https://github.com/etcd-io/etcd/releases/download"
LATEST_PINNED: Version = (3, 5, 21)

PINNED = {
    "etcd-v3.5.21-linux-amd64.tar.gz": "adddda4b06718e68671ffabff2f8cee48488ba61ad82900e639d108f2148501c",
    "etcd-v3.5.21-linux-arm64.tar.gz": "95bf6918623a097c0385b96f139d90248614485e781ec9bee4768dbb6c79c53f",
}
"""Release archives and their SHA-256. A hash gets in here when independent publishers agree on it, or by the release's
own SHA256SUMS; a hash that came with the download proves nothing."""

_PROGRAMS = ("etcd", "etcdctl", "etcdutl")


def fetch_release(
    version: Version = LATEST_PINNED, *, mirror: str = OFFICIAL, sha256: str | Path | None = None
) -> Etcd:
    """Download a release archive, check it, and install what is in it.

    ``mirror`` replaces the part of the address before ``/v3.5.21/etcd-v3.5.21-linux-amd64.tar.gz``. ``sha256`` is the
    expected hash, or a SHA256SUMS file; it may be left out for the releases whose hash this library knows.

    Raises:
        BinaryNotFound: the download failed, or there is no such archive.
        UnsafeEtcd: the archive is not what it should be, or nothing tells what it should be; nothing was installed.
    """
    name = f"etcd-v{spell(version)}-linux-{_architecture()}.tar.gz"
    url = f"{mirror.rstrip('/')}/v{spell(version)}/{name}"
    if not url.startswith(("https://", "http://", "file://")):
        raise BinaryNotFound(f"{url}: not an https, http or file address")
    expected = _expected(name, sha256)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, name)
        try:
            with urllib.request.urlopen(url, timeout=30) as answer, archive.open("wb") as file:  # noqa: S310 - checked
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise BinaryNotFound(
                f"cannot download {url}: {error}. On a closed network: --mirror URL, --file ARCHIVE or --from debian"
            ) from error
        return _install_archive(archive, expected)


def fetch_file(archive: Path, *, sha256: str | Path | None = None) -> Etcd:
    """Install from a release archive that is already on this machine; it is checked as a download would be.

    Raises:
        BinaryNotFound: there is no such file, or no etcd in it.
        UnsafeEtcd: as for `fetch_release`.
    """
    if not archive.is_file():
        raise BinaryNotFound(f"no file {archive}")
    return _install_archive(archive, _expected(archive.name, sha256))


def fetch_debian() -> Etcd:
    """Install what Debian's or Ubuntu's package manager offers: apt checks its signatures, and we only unpack it.

    Raises:
        BinaryNotFound: there is no apt-get here, or it has no such packages.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise BinaryNotFound("`--from debian` needs apt-get and dpkg-deb, which are not on this machine")
    with tempfile.TemporaryDirectory() as scratch:
        _run("apt-get", "-q", "download", "etcd-server", "etcd-client", cwd=scratch)
        for package in Path(scratch).glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), "root", cwd=scratch)
        return _install(Path(scratch, "root", "usr", "bin"))


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _expected(name: str, sha256: str | Path | None) -> str:
    """Return the hash that the archive must have, from the user or from our table."""
    if sha256 is None:
        if name in PINNED:
            return PINNED[name]
        raise UnsafeEtcd(
            f"no SHA-256 is known here for {name}: give --sha256 with the hash, or with the SHA256SUMS file, of the "
            "release page. Known: " + ", ".join(PINNED)
        )
    if re.fullmatch(r"[0-9a-fA-F]{64}", str(sha256)):
        return str(sha256).lower()
    if not Path(sha256).is_file():
        raise UnsafeEtcd(f"--sha256 {sha256}: neither 64 hexadecimal digits nor a SHA256SUMS file")
    for line in Path(sha256).read_text().splitlines():
        digest, _, of = line.partition(" ")
        if of.strip().lstrip("*") == name:
            return digest.lower()
    raise UnsafeEtcd(f"{sha256} does not list {name}")


def _install_archive(archive: Path, expected: str) -> Etcd:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UnsafeEtcd(f"{archive.name} has SHA-256 {found}, not {expected}: nothing was installed")
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as tar:
            for name, content in _programs(tar):
                with Path(scratch, name).open("wb") as file:
                    shutil.copyfileobj(content, file)
        return _install(Path(scratch))


def _programs(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield etcd's programs and nothing else, so that no path in the archive can lead anywhere."""
    for entry in tar:
        name = Path(entry.name).name
        content = tar.extractfile(entry) if entry.isfile() and name in _PROGRAMS else None
        if content:
            yield name, content


def _install(source: Path) -> Etcd:
    """Copy the programs to a directory named by their version, which appears at once and complete."""
    home = install_dir()
    private.directory(home)
    home.chmod(0o700)
    with tempfile.TemporaryDirectory(dir=home, prefix=".new-", ignore_cleanup_errors=True) as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        fresh.mkdir(mode=0o700)
        for name in _PROGRAMS:
            if (source / name).is_file():
                shutil.copyfile(source / name, fresh / name)
                (fresh / name).chmod(0o700)
        version = inspect(fresh / "etcd")
        if version is None:
            raise BinaryNotFound("there is no etcd that runs here in what was fetched; nothing was installed")
        target = home / spell(version)
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        fresh.rename(target)
    return Etcd(target / "etcd", version, "fetched")


def _run(*command: str, cwd: str) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BinaryNotFound(
            f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]} (is the package list there? `apt-get update`)"
        )
