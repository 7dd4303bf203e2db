"""Journals for tests, as their documentation describes them."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from edgezo_runtime.journal import JournalWriter, Record

HEADER: dict[str, Any] = {"schema": 1, "scalars": 1, "seed": 2**63 + 1, "task": "classify · ü"}
FILES = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def records(count: int) -> list[Record]:
    return [Record((np.float32(i + 0.1),), np.float32(1e-5 / (i + 1))) for i in range(count)]


def own_bytes(header: dict[str, Any], kept: list[Record]) -> bytes:
    """The file as its documentation describes it, written without the code under test."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    front = b"edgezo\x00\x01" + struct.pack("<I", len(text)) + text
    crc = zlib.crc32(front)
    out = front + struct.pack("<I", crc)
    for step, record in enumerate(kept, start=1):
        payload = struct.pack("<ffI", record.scalars[0], record.lr, record.flags)
        covered = zlib.crc32(payload, zlib.crc32(struct.pack("<Q", step), crc))
        out += payload + struct.pack("<I", covered)
    return out


def write(path: Path, kept: list[Record], header: dict[str, Any] = HEADER) -> bytes:
    path.unlink(missing_ok=True)
    writer = JournalWriter(path, header)
    for record in kept:
        writer.append(record)
    writer.close()
    return path.read_bytes()


def same(left: list[Record], right: list[Record]) -> bool:
    """Whether the records hold the same bits."""

    def bits(record: Record) -> bytes:
        numbers = np.array([*record.scalars, record.lr], np.float32).tobytes()
        return numbers + struct.pack("<I", record.flags)

    return [bits(record) for record in left] == [bits(record) for record in right]
