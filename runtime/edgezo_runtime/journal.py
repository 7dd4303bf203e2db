"""The journal: an append-only file that holds everything a run took from its data and its user.

From the base weights and the journal anybody rebuilds the tuned weights bit for bit, without data
and without forward passes. Layout, little-endian::

    magic (8 bytes) | header length u32 | header JSON | CRC32 of all before it u32
    record 1 | record 2 | ...       record: scalars f32 x n | learning rate f32 | flags u32 | CRC32

A record's CRC also covers the header's CRC and the number of its step, so that a record of another
run or of another place in this one is never taken for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import atomic_writer, cannot_write, lock

NAME = "journal.ezj"
SCHEMA = 1
SKIPPED = 1  # flag: the projected gradient was not finite, the step only restored the weights
ACCEPTED = 2  # flag: of a conservative step, that it went down the slope
REVERSED = 4  # flag: of one, that it went up
_MAGIC = b"edgezo\x00\x01"
_MAX_HEADER_BYTES = 1 << 24
_MAX_SCALARS = 1 << 16
_SYNC_SECONDS = 1.0


class Record(NamedTuple):
    """One step: the estimator's scalars, the learning rate as used, and flags."""

    scalars: tuple[np.float32, ...]
    lr: np.float32
    flags: int = 0

    @property
    def skipped(self) -> bool:
        """Whether the step updated nothing."""
        return bool(self.flags & SKIPPED)


@dataclass(frozen=True)
class Journal:
    """A journal that was read.

    Attributes:
        header: what the run is; see docs/journal.md.
        records: one per step, step 1 first.
        torn: bytes of an unfinished record that were left out at the end.
        start: where the first record lies in the file.
        header_crc: the checksum in front of it, which every record's covers.
    """

    header: dict[str, Any]
    records: list[Record]
    torn: int = 0
    start: int = 0
    header_crc: int = 0


def encode_header(header: dict[str, Any]) -> bytes:
    """Returns the bytes in front of the first record."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    front = _MAGIC + struct.pack("<I", len(text)) + text
    return front + struct.pack("<I", zlib.crc32(front))


def encode_record(record: Record, step: int, header_crc: int) -> bytes:
    """Returns the bytes of the record of `step`; 16 for methods with one scalar."""
    count = len(record.scalars)
    payload = struct.pack(f"<{count + 1}fI", *record.scalars, record.lr, record.flags)
    return payload + struct.pack("<I", _record_crc(payload, step, header_crc))


def checksum(records: Sequence[Record]) -> str:
    """Returns the SHA-256 of steps, from the first one on."""
    digest = hashlib.sha256()
    for step, record in enumerate(records, start=1):
        digest.update(encode_record(record, step, 0))
    return digest.hexdigest()


def read(path: Path) -> Journal:
    """Reads the journal at `path`. A torn tail is left out; it is never an error.

    A crash leaves less than one record, or zeros where a file system had made room. Anything more
    behind the last intact record is damage: bytes that were changed, lost or put in.

    Raises:
        InputError: there is no journal, its header is damaged, or a record is.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the journal {path}: {error.strerror}") from error
    header, start = _decode_header(data, path)
    header_crc = struct.unpack("<I", data[start - 4 : start])[0]
    count = header["scalars"]
    size = 4 * count + 12
    records: list[Record] = []
    end = start
    for step, at in enumerate(range(start, len(data) - size + 1, size), start=1):
        payload, crc = data[at : at + size - 4], data[at + size - 4 : at + size]
        if struct.unpack("<I", crc)[0] != _record_crc(payload, step, header_crc):
            break
        *numbers, flags = struct.unpack(f"<{count + 1}fI", payload)
        scalars = tuple(np.float32(number) for number in numbers)
        records.append(Record(scalars[:-1], scalars[-1], flags))
        end = at + size
    if len(data[end:].rstrip(b"\0")) >= size:
        raise InputError(
            f"the journal {path} is damaged at step {len(records) + 1}, and not only torn at its "
            "end: restore it from a copy"
        )
    return Journal(header, records, len(data) - end, start, header_crc)


class JournalWriter:
    """Appends records to a journal; they reach the system at once and the disk once a second.

    Args:
        path: the journal.
        header: starts a new journal with this header; None continues the one at `path`, whose torn
            tail is cut off.

    Raises:
        InputError: the journal to continue is damaged, another process writes to it, or a journal
            lies where a new one should start.
        EdgezoError: it cannot be written.
    """

    def __init__(self, path: Path, header: dict[str, Any] | None = None) -> None:
        self.path = path
        if header is not None:
            if path.exists():
                raise InputError(f"{path} already holds a run: continue it or choose another")
            with atomic_writer(path) as file:
                file.write(encode_header(header))
        elif not path.is_file():
            raise InputError(f"cannot read the journal {path}: there is no such file")
        try:
            self._file = path.open("r+b", buffering=0)
        except OSError as error:
            raise EdgezoError(cannot_write(path, error)) from error
        try:
            lock(self._file, path)
            journal = read(path)  # under the lock: nobody appends between reading and cutting
            self.header = journal.header
            self.records = journal.records
            self._start = journal.start
            self._header_crc = journal.header_crc
            if journal.torn:
                self._file.truncate(path.stat().st_size - journal.torn)
        except BaseException as error:
            self._file.close()
            if isinstance(error, OSError):
                raise EdgezoError(cannot_write(path, error)) from error
            raise
        self._synced = time.monotonic()

    def append(self, record: Record) -> None:
        """Appends the next step's record; raises EdgezoError if the disk does not take it.

        A record that was not kept leaves nothing behind: the next one takes its place.
        """
        data = encode_record(record, len(self.records) + 1, self._header_crc)
        end = self._start + len(data) * len(self.records)
        try:
            self._file.seek(end)  # not where the last write ended: that one may have failed
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except (OSError, EdgezoError) as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            if isinstance(error, OSError):
                raise EdgezoError(cannot_write(self.path, error)) from error
            raise
        self.records.append(record)

    def cut(self, steps: int) -> None:
        """Forgets the records after the first `steps`; raises EdgezoError as `append` does."""
        size = 4 * self.header["scalars"] + 12
        try:
            self._file.truncate(self._start + size * steps)
        except OSError as error:
            raise EdgezoError(cannot_write(self.path, error)) from error
        del self.records[steps:]
        self.sync()

    def sync(self) -> None:
        """Waits until all records are on the disk; raises EdgezoError if they do not get there."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise EdgezoError(cannot_write(self.path, error)) from error
        self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes the journal."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()


def consecutive_skips(records: Sequence[Record]) -> int:
    """Returns how many of the last records in a row were skipped."""
    count = 0
    for record in reversed(records):
        if not record.skipped:
            break
        count += 1
    return count


def _decode_header(data: bytes, path: Path) -> tuple[dict[str, Any], int]:
    if data[: len(_MAGIC)] != _MAGIC:
        raise InputError(f"{path} is not an edgezo journal")
    at = len(_MAGIC) + 4
    length = struct.unpack("<I", data[len(_MAGIC) : at])[0] if len(data) >= at else 0
    end = at + length
    damaged = f"the journal {path} has a damaged header: restore it from a copy"
    if length > _MAX_HEADER_BYTES or len(data) < end + 4:
        raise InputError(damaged)
    if struct.unpack("<I", data[end : end + 4])[0] != zlib.crc32(data[:end]):
        raise InputError(damaged)
    try:
        header = json.loads(data[at:end])
    except (ValueError, RecursionError) as error:
        raise InputError(damaged) from error
    if not isinstance(header, dict):
        raise InputError(damaged)
    if header.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has journal schema {header.get('schema')}, this edgezo reads {SCHEMA}"
        )
    if type(header.get("scalars")) is not int or not 0 <= header["scalars"] <= _MAX_SCALARS:
        raise InputError(damaged)
    return header, end + 4


def _record_crc(payload: bytes, step: int, header_crc: int) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<Q", step), header_crc))
