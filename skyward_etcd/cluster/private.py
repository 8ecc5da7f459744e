"""Files and directories for their owner's eyes only, whatever the umask: 0600 and 0700 from their first moment."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import IO, Literal

__all__ = ["closed", "directory", "opened", "write"]


def directory(path: Path) -> Path:
    """Make a directory, and those above it that are not there; one that is there is left as it is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):  # mkdir(parents=True) would give the upper ones what the umask leaves
        with contextlib.suppress(FileExistsError):  # another process was quicker
            each.mkdir(mode=0o700)
            each.chmod(0o700)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is there, and is no directory")
    return path


def closed(path: Path) -> None:
    """Make a directory that nobody else can enter, or make sure that this one is so.

    Raises:
        PermissionError: somebody else has made it.
    """
    directory(path)
    found = path.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{path} is another user's, or no directory: remove it")
    path.chmod(0o700)


def opened(path: Path, mode: Literal["ab", "wb"]) -> IO[bytes]:
    """Open a file to write, which nobody else can read; if it was there, nobody else can from now on."""
    file = open(path, mode, opener=_open)  # noqa: SIM115 - whoever asked closes it; Path.open has no opener
    with contextlib.suppress(PermissionError):  # another user's, who lets us write: it is as they want it
        os.fchmod(file.fileno(), 0o600)
    return file


def write(path: Path, data: bytes) -> None:
    """Put data in the place of what a file held, at once and as a whole."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _open(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
