"""Damaged journals: a torn tail is cut, anything else is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_files import FILES, HEADER, own_bytes, records, same, write

from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import NAME, JournalWriter, Record, encode_header, read


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    kept = records(6)
    data = write(tmp_path / NAME, kept)
    start = len(encode_header(HEADER))
    for length in range(start, len(data) + 1):
        (tmp_path / NAME).write_bytes(data[:length])
        whole, torn = divmod(length - start, 16)
        found = read(tmp_path / NAME)
        assert same(found.records, kept[:whole]) and found.torn == torn
    for length in range(start):
        (tmp_path / NAME).write_bytes(data[:length])
        with pytest.raises(InputError, match=r"not an edgezo journal|damaged header"):
            read(tmp_path / NAME)


def test_a_torn_tail_is_continued(tmp_path: Path) -> None:
    path = tmp_path / NAME
    kept = records(6)
    data = write(path, kept)
    start = len(encode_header(HEADER))
    for length in range(start, len(data), 5):
        path.write_bytes(data[:length])
        writer = JournalWriter(path)
        whole = (length - start) // 16
        assert writer.header == HEADER and same(writer.records, kept[:whole])
        for record in kept[whole:]:
            writer.append(record)
        writer.close()
        assert path.read_bytes() == data


@pytest.mark.parametrize("tail", [b"\0" * 16, b"\0" * 4096, b"\xff" * 15, b"torn" + b"\0" * 99])
def test_what_a_crash_leaves_behind_the_end_is_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / NAME
    data = write(path, records(3))
    path.write_bytes(data + tail)
    assert read(path).torn == len(tail)
    writer = JournalWriter(path)
    writer.append(records(4)[3])
    writer.close()
    assert path.read_bytes() == own_bytes(HEADER, records(4))


@pytest.mark.parametrize("tail", [b"\xff" * 16, b"\xff" * 33, b"\0" * 4096 + b"garbage!" * 100])
def test_what_no_crash_leaves_is_refused(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / NAME
    data = write(path, records(3)) + tail
    path.write_bytes(data)
    for reader in (read, JournalWriter):
        with pytest.raises(InputError, match="damaged at step 4, and not only torn at its end"):
            reader(path)
    assert path.read_bytes() == data


@FILES
@given(st.lists(st.integers(0, 6 * 16), min_size=2, max_size=2, unique=True).map(sorted))
def test_lost_bytes_are_refused_unless_they_reach_into_the_last_record(
    tmp_path: Path, lost: list[int]
) -> None:
    path, kept = tmp_path / NAME, records(6)
    front, parts = split(own_bytes(HEADER, kept))
    content = b"".join(parts)
    rest = content[: lost[0]] + content[lost[1] :]
    path.write_bytes(front + rest)
    whole = lost[0] // 16  # records that nothing was lost of
    torn = len(rest) - 16 * whole < 16
    assert accepted(path, kept) == (whole if torn else -1)
    if lost[1] <= 5 * 16:
        assert not torn  # whatever is lost before the last record


def accepted(path: Path, kept: list[Record]) -> int:
    """Returns how many records are read; those are the first ones written, whatever happened."""
    try:
        found = read(path)
    except InputError:
        return -1
    assert found.header == HEADER
    assert same(found.records, kept[: len(found.records)])
    return len(found.records)


def test_every_bit_flip_is_refused(tmp_path: Path) -> None:
    path, kept = tmp_path / NAME, records(3)
    data = write(path, kept)
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        assert accepted(path, kept) == -1


@FILES
@given(st.data())
def test_damage_is_cut_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path, kept = tmp_path / NAME, records(5)
    content = bytearray(own_bytes(HEADER, kept))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["change", "insert", "delete", "cut"]))
        if kind == "change":
            content[at] ^= data.draw(st.integers(1, 255))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        else:
            del content[at : at + 16 if kind == "delete" else None]
        if not content:
            break
    path.write_bytes(content)
    accepted(path, kept)


@FILES
@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes(tmp_path: Path, data: bytes, named: bool) -> None:
    path = tmp_path / NAME
    path.write_bytes(b"edgezo\x00\x01" * named + data)
    with pytest.raises(InputError):
        read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@FILES
@given(JSON | st.fixed_dictionaries({"schema": JSON | st.just(1), "scalars": JSON}), st.binary())
def test_headers_with_a_right_checksum(tmp_path: Path, header: Any, tail: bytes) -> None:
    text = json.dumps(header).encode()
    front = b"edgezo\x00\x01" + struct.pack("<I", len(text)) + text
    (tmp_path / NAME).write_bytes(front + struct.pack("<I", zlib.crc32(front)) + tail)
    try:
        found = read(tmp_path / NAME)
    except InputError:
        return
    assert found.header["schema"] == 1 and found.header["scalars"] >= 0


@pytest.mark.parametrize("text", [b"\xff\xfe", b"{", b"[" * 50_000])
def test_a_header_that_is_no_json(tmp_path: Path, text: bytes) -> None:
    front = b"edgezo\x00\x01" + struct.pack("<I", len(text)) + text
    (tmp_path / NAME).write_bytes(front + struct.pack("<I", zlib.crc32(front)))
    with pytest.raises(InputError, match="damaged header"):
        read(tmp_path / NAME)


def split(data: bytes) -> tuple[bytes, list[bytes]]:
    start = len(encode_header(HEADER))
    return data[:start], [data[at : at + 16] for at in range(start, len(data), 16)]


@pytest.mark.parametrize("change", ["swap", "repeat", "drop", "foreign", "again", "reorder all"])
def test_records_out_of_place_are_refused(tmp_path: Path, change: str) -> None:
    path, kept = tmp_path / NAME, records(6)
    front, parts = split(write(path, kept))
    _, foreign = split(own_bytes(HEADER | {"seed": 2**63 + 2}, kept))
    if change == "swap":
        parts[1], parts[2] = parts[2], parts[1]
    elif change == "repeat":
        parts[2] = parts[1]
    elif change == "drop":
        del parts[2]
    elif change == "foreign":
        parts[2] = foreign[2]
    elif change == "again":
        parts.append(parts[-1])
    else:
        parts.reverse()
    path.write_bytes(front + b"".join(parts))
    step = {"swap": 2, "reorder all": 1, "again": 7}.get(change, 3)
    with pytest.raises(InputError, match=f"damaged at step {step}, and not only torn at its end"):
        read(path)
