"""Make a new cluster from what a lost one has left: the newest data that a surviving member has.

A member that has lost its majority still tells what it has, and its whole data, though nothing can be written. A new
cluster begins with that under another id and token, so that members of the old one can never mix with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from skyward_etcd import config
from skyward_etcd.cluster import bootstrap, private
from skyward_etcd.cluster.binary import Etcd, Version, spell
from skyward_etcd.cluster.member import Member, MemberSpec, data_directory, require_space
from skyward_etcd.errors import PoolError, QuorumLost, SkywardEtcdError, Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Login, Tls, Wire
from skyward_etcd.wire.methods import SNAPSHOT, STATUS

__all__ = [
    "Recovered",
    "newest",
    "recover_directory",
    "require_snapshot",
    "restore",
    "restore_directory",
    "restore_flags",
    "revision",
    "save",
]

_CALL_S = 3.0
_SAVE_S = 300.0
_HASH_BYTES = hashlib.sha256().digest_size
_BUMP = 1_000_000_000
"""More revisions than a cluster writes between its snapshot and its loss: etcd's own advice for a week."""


def newest(endpoints: Iterable[str], *, tls: Tls | None = None) -> tuple[str, int]:
    """Return which of these members has the highest `revision`, and that. They need no majority to tell.

    Raises:
        QuorumLost: none of those that have a vote answers.
    """

    def answer(endpoint: str) -> int:
        with contextlib.suppress(SkywardEtcdError):
            return revision(endpoint, tls=tls)
        return 0

    asked = list(endpoints)
    with ThreadPoolExecutor(len(asked) or 1) as pool:
        highest, found = max(zip(pool.map(answer, asked), asked, strict=True), default=(0, ""))
    if not highest:
        raise QuorumLost("no member of the cluster is left: there is nothing to recover from", maybe_applied=False)
    return found, highest


def revision(endpoint: str, *, tls: Tls | None = None) -> int:
    """Return up to where a member has all data. Zero for one without a vote, which may lack some, and gives none.

    Raises:
        Unavailable: it does not answer.
    """
    with contextlib.closing(Wire((endpoint,), tls=tls)) as wire:
        status = wire.call(STATUS, pb.StatusRequest(), timeout_s=_CALL_S)
    return 0 if status.isLearner else int(status.header.revision)


def save(endpoint: str, file: Path, *, tls: Tls | None = None, login: Login | None = None) -> int:
    """Write all the data of one member into a file, for its owner only; return how many bytes.

    A majority is not needed. A file of this name is replaced, once the whole is there and its hash is right.

    Raises:
        Unavailable, PermissionDenied, EtcdError: the member does not give it.
        PoolError: what it gave is not whole, or cannot be written there.
    """
    try:
        with contextlib.closing(Wire((endpoint,), tls=tls, login=login)) as wire:
            return _save(wire, file)
    except Unavailable:  # which is an OSError too
        raise
    except OSError as error:
        raise PoolError(f"the data of {endpoint} could not be written to {file}: {error}") from error


def _save(wire: Wire, file: Path) -> int:
    size, seen, tail = 0, hashlib.sha256(), b""
    with tempfile.NamedTemporaryFile(dir=file.absolute().parent, prefix=f".{file.name}.", delete=False) as draft:
        try:
            stream = wire.stream(SNAPSHOT)
            try:
                stream.send(pb.SnapshotRequest())
                with contextlib.closing(iter(stream)) as parts:
                    for part in parts:
                        draft.write(part.blob)
                        size += len(part.blob)
                        tail += part.blob  # the last 32 bytes are the hash of all before them
                        seen.update(tail[:-_HASH_BYTES])
                        tail = tail[-_HASH_BYTES:]
            finally:
                stream.cancel()
            if seen.digest() != tail:
                raise PoolError(f"what {wire.endpoint} sent is no whole snapshot: try again, or another member")
            draft.flush()
            os.fsync(draft.fileno())
            Path(draft.name).replace(file)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise
    return size


def require_snapshot(file: Path) -> None:
    """Make sure that a file is a snapshot, and whole.

    Raises:
        PoolError: it is not.
    """
    seen, left = hashlib.sha256(), file.stat().st_size - _HASH_BYTES
    with file.open("rb") as data:
        while left > 0 and (part := data.read(min(left, 1 << 20))):
            seen.update(part)
            left -= len(part)
        if left < 0 or data.read() != seen.digest():
            raise PoolError(f"{file} is no snapshot, or not whole: `skyward-etcd snapshot` or `etcdctl` writes one")


def restore(etcd: Etcd, file: Path, spec: MemberSpec) -> None:
    """Give a member that has never run the data of a file. Its spec says of which new cluster it is one.

    Releases from 3.6 on also move its revisions on, so that none is given out twice.

    Raises:
        PoolError: that was not possible, for the reason given.
    """
    require_space(spec.data_dir, 1)
    private.directory(spec.data_dir)
    tool = _tool(etcd, "etcdutl" if etcd.version >= (3, 6, 0) else "etcdctl")  # which could do it until then
    _run(tool, "snapshot", "restore", file, *restore_flags(etcd.version, spec))


def restore_flags(version: Version, spec: MemberSpec) -> list[str]:
    """Return how a release is told for which member it restores."""
    peers = ",".join(f"{name}={url}" for name, url in spec.initial_cluster.items())
    flags = [
        f"--data-dir={data_directory(spec)}",
        f"--name={spec.name}",
        f"--initial-cluster={peers}",
        f"--initial-cluster-token={spec.token}",
        f"--initial-advertise-peer-urls={spec.peer_url}",
    ]
    if version >= (3, 6, 0):
        flags += [f"--bump-revision={_BUMP}", "--mark-compacted"]
    return flags


# --- a durable cluster that nobody runs


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done to a durable cluster's directory."""

    source: str
    """The member whose data were taken."""
    revision: int
    left: tuple[Path, ...]
    """The old members' directories, which were not touched."""


def recover_directory(directory: Path, etcd: Etcd, *, make_fit: Callable[[str], None]) -> Recovered:
    """Give a durable cluster of which most data are lost new members, with the newest data that are left.

    ``make_fit`` is given the endpoint of a member that has these data, before they are taken. Until all is done, the
    old plan is in force, and the old members' data are there; nobody else uses the directory meanwhile.

    Raises:
        QuorumLost: no member has data that can be used.
        Unavailable: the one with the newest does not give them.
        PoolError: most have, so that the cluster is not lost; or the directory is in use, or holds no cluster.
    """
    before = bootstrap.planned(directory)
    with bootstrap.claim(directory), contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recovering-", dir=directory)))
        alone: dict[str, Member] = {}
        for spec in before:
            with contextlib.suppress(PoolError):  # these data are not to be used
                alone[spec.name] = member = _started_alone(etcd, spec, scratch / spec.name)
                stack.callback(_drop, member)
        if len(alone) > len(before) // 2:
            have = f"{len(alone)} of its {len(before)} members have their data ({', '.join(alone)})"
            raise PoolError(f"the cluster in {directory} is not lost: {have}. Open it as always")
        endpoint, reached = newest(member.spec.endpoint for member in alone.values())
        source = next(name for name, member in alone.items() if member.spec.endpoint == endpoint)
        make_fit(endpoint)
        save(endpoint, scratch / "snapshot")
        after = _successors(directory, before)
        try:
            for spec in after:
                restore(etcd, scratch / "snapshot", spec)
            bootstrap.replan(directory, after)
        except BaseException:
            for spec in after:
                shutil.rmtree(spec.data_dir, ignore_errors=True)
            raise
    return Recovered(source, reached, tuple(spec.data_dir for spec in before if spec.data_dir.exists()))


def restore_directory(
    directory: Path, file: Path, etcd: Etcd, *, members: int, make_fit: Callable[[str], None]
) -> list[MemberSpec]:
    """Make a new durable cluster in a directory, of so many members, with the data of a snapshot.

    As in a recovery, ``make_fit`` is given the endpoint of a member that has the data, before they are taken. Nothing
    is left in the directory if this fails.

    Raises:
        PoolError: the directory holds a cluster, or is in use; or the file is no snapshot.
        ValueError: a cluster cannot have so many members.
    """
    require_snapshot(file)
    with bootstrap.claim(directory), contextlib.ExitStack() as stack:
        if bootstrap.has_plan(directory):
            raise PoolError(f"{directory} holds a cluster: restore into another directory, or move it away")
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="restoring-", dir=directory)))
        alone = bootstrap.newcomer("restored", scratch, secrets.token_hex(8))
        alone = replace(alone, initial_cluster={alone.name: alone.peer_url}, state="new")
        restore(etcd, file, alone)
        member = Member(etcd, alone)
        stack.callback(_drop, member)
        member.start()
        member.wait_ready()
        make_fit(alone.endpoint)
        save(alone.endpoint, scratch / "snapshot")
        after = bootstrap.plan(members, directory, durable=True)
        try:
            for spec in after:
                restore(etcd, scratch / "snapshot", spec)
        except BaseException:
            bootstrap.drop_plan(directory)
            for spec in after:
                shutil.rmtree(spec.data_dir, ignore_errors=True)
            raise
    return after


def _started_alone(etcd: Etcd, spec: MemberSpec, scratch: Path) -> Member:
    """Run a copy of a member, where nobody finds it. It reads its log to the end, which its data file lags."""
    copy = bootstrap.newcomer(spec.name, scratch, spec.token)
    copy = replace(copy, initial_cluster={copy.name: copy.peer_url}, state="new", alone=True)
    if not data_directory(spec).is_dir():
        raise PoolError(f"etcd member {spec.name} has no data")
    shutil.copytree(data_directory(spec), data_directory(copy))
    member = Member(etcd, copy)
    try:
        member.start()
        member.wait_ready()
    except BaseException:
        _drop(member)
        raise
    return member


def _drop(member: Member) -> None:
    member.kill()
    if member.spec.sockets:
        shutil.rmtree(member.spec.sockets, ignore_errors=True)


def _successors(directory: Path, before: Sequence[MemberSpec]) -> list[MemberSpec]:
    """Plan a new cluster at the same addresses, whose members have names, and so directories, that none had before."""
    token = secrets.token_hex(8)
    names = {spec.name: f"{spec.name.partition('-')[0]}-{token[:6]}" for spec in before}
    cluster = {names[spec.name]: spec.peer_url for spec in before}
    return [
        replace(spec, name=name, data_dir=directory / name, initial_cluster=cluster, token=token)
        for spec, name in zip(before, names.values(), strict=True)
    ]


def _tool(etcd: Etcd, name: str) -> Path:
    """Return the program of this name that lies beside etcd, else the one on PATH."""
    beside = etcd.path.parent / name
    found = beside if beside.exists() else shutil.which(name)
    if found is None:
        raise PoolError(
            f"to recover a cluster, {name} is needed beside {etcd.path} (etcd {spell(etcd.version)}), or on PATH: "
            "`skyward-etcd fetch` brings it; Debian's package is etcd-client"
        )
    return Path(found)


def _run(*command: str | Path) -> None:
    environment = config.environment_of_etcd() | {"ETCDCTL_API": "3"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SAVE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PoolError(f"the cluster could not be recovered: {error}") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise PoolError(f"the cluster could not be recovered: {command[0]} ended with {done.returncode}:\n{said}")
