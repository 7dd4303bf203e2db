"""Files that are either there whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from edgezo_runtime.errors import EdgezoError, InputError

CHUNK_BYTES = 1 << 22
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)  # room would not help


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of the file at `path`, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that takes its place only once it is on the disk.

    The order is write, fsync, rename, fsync of the folder: a crash at any moment leaves the old
    file or the new one. On any failure the temporary file is removed and the old file stays.

    Raises:
        EdgezoError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise EdgezoError(cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, atomically; raises EdgezoError as `atomic_writer` does."""
    with atomic_writer(path) as file:
        file.write(text.encode())


def make_folder(path: Path) -> None:
    """Makes the folder `path`, if it is not there yet; raises EdgezoError if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgezoError(cannot_write(path, error)) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the platform can (Windows cannot and need not)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: IO[bytes], path: Path) -> None:
    """Keeps `file` from other processes until it is closed, or this process ends in any way.

    Raises:
        InputError: another process has it; the message says that of `path`.
    """
    try:
        import fcntl
    except ImportError:  # Windows: an open file cannot be replaced there anyway
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"another process is writing {path}: wait for it or stop it") from error


def cannot_write(path: Path, error: OSError) -> str:
    """Returns the sentence for a failed write to `path`."""
    reason = error.strerror or str(error)
    advice = "" if error.errno in _FORBIDDEN else "free space there or "
    return f"cannot write {path}: {reason}; {advice}use another folder"
