"""The journal: what is read from it was written to it, or it is cut or refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.journal import (
    NAME,
    SKIPPED,
    JournalWriter,
    Record,
    consecutive_skips,
    encode_header,
    encode_record,
    read,
)

HEADER: dict[str, Any] = {"schema": 1, "scalars": 1, "seed": 2**63 + 1, "task": "classify · ü"}
FLOAT = st.floats(width=32, allow_nan=False).map(np.float32)
RECORD = st.builds(lambda g, lr, flags: Record((g,), lr, flags), FLOAT, FLOAT, st.integers(0, 1))
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


@FILES
@given(st.lists(RECORD, max_size=20))
def test_round_trip(tmp_path: Path, kept: list[Record]) -> None:
    data = write(tmp_path / NAME, kept)
    assert data == own_bytes(HEADER, kept)
    assert len(data) == len(encode_header(HEADER)) + 16 * len(kept)
    found = read(tmp_path / NAME)
    assert found.header == HEADER and found.torn == 0 and same(found.records, kept)
    assert all(type(number) is np.float32 for r in found.records for number in (*r.scalars, r.lr))


@pytest.mark.parametrize("count", [0, 2, 5])
def test_methods_with_more_scalars(tmp_path: Path, count: int) -> None:
    numbers = tuple(np.float32(i / 3) for i in range(count))
    kept = [Record(numbers, np.float32(i), SKIPPED * (i % 2)) for i in range(4)]
    header = HEADER | {"scalars": count}
    data = write(tmp_path / NAME, kept, header)
    assert len(data) == len(encode_header(header)) + (4 * count + 12) * 4
    assert same(read(tmp_path / NAME).records, kept)


def test_extreme_numbers_keep_their_bits(tmp_path: Path) -> None:
    numbers = [0.0, -0.0, 1e-45, -1e-45, 3.4e38, np.inf, -np.inf]
    kept = [Record((np.float32(n),), np.float32(n), 2**32 - 1) for n in numbers]
    write(tmp_path / NAME, kept)
    assert same(read(tmp_path / NAME).records, kept)


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


@pytest.mark.parametrize("tail", [b"\0" * 16, b"\0" * 4096, b"\xff" * 33, b"garbage!" * 100])
def test_what_a_crash_leaves_behind_the_end_is_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / NAME
    data = write(path, records(3))
    path.write_bytes(data + tail)
    assert read(path).torn == len(tail)
    writer = JournalWriter(path)
    writer.append(records(4)[3])
    writer.close()
    assert path.read_bytes() == own_bytes(HEADER, records(4))


def accepted(path: Path, kept: list[Record]) -> int:
    """Returns how many records are read; those are the first ones written, whatever happened."""
    try:
        found = read(path)
    except InputError:
        return -1
    assert found.header == HEADER
    assert same(found.records, kept[: len(found.records)])
    return len(found.records)


def test_every_bit_flip_is_cut_or_refused(tmp_path: Path) -> None:
    path, kept = tmp_path / NAME, records(3)
    data = write(path, kept)
    start = len(encode_header(HEADER))
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        last = at // 8 >= start + 32
        assert accepted(path, kept) == (2 if last else -1)


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


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(own_bytes(HEADER | {"schema": 2}, []))
    with pytest.raises(InputError, match="schema 2, this edgezo reads 1"):
        read(tmp_path / NAME)


def split(data: bytes) -> tuple[bytes, list[bytes]]:
    start = len(encode_header(HEADER))
    return data[:start], [data[at : at + 16] for at in range(start, len(data), 16)]


@pytest.mark.parametrize("change", ["swap", "repeat", "drop", "foreign", "reorder all"])
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
    else:
        parts.reverse()
    path.write_bytes(front + b"".join(parts))
    if change in ("swap", "repeat", "foreign"):
        with pytest.raises(InputError, match=r"damaged at step [23], before intact steps"):
            read(path)
    else:  # nothing after the change is intact: it looks like a torn tail
        assert accepted(path, kept) == (2 if change == "drop" else 0)


def test_appending_the_last_record_again_is_cut(tmp_path: Path) -> None:
    path, kept = tmp_path / NAME, records(3)
    data = write(path, kept)
    path.write_bytes(data + data[-16:])
    assert accepted(path, kept) == 3


def test_a_header_of_another_writer_is_continued(tmp_path: Path) -> None:
    """Other engines may order the header's keys in their own way."""
    path = tmp_path / NAME
    text = json.dumps(dict(reversed(HEADER.items())), indent=3).encode()
    front = b"edgezo\x00\x01" + struct.pack("<I", len(text)) + text
    front += struct.pack("<I", zlib.crc32(front))
    path.write_bytes(front)
    writer = JournalWriter(path)
    for record in records(3):
        writer.append(record)
    writer.close()
    assert path.read_bytes().startswith(front)
    assert same(read(path).records, records(3))


def test_records_reach_the_file_at_once(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / NAME, HEADER)
    for count, record in enumerate(records(3), start=1):
        writer.append(record)
        assert same(read(tmp_path / NAME).records, records(count))
    writer.close()
    writer.close()


SECOND = """
import sys
from pathlib import Path
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import JournalWriter
try:
    JournalWriter(Path(sys.argv[1]))
except InputError as error:
    print(error)
"""


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / NAME
    writer = JournalWriter(path, HEADER)
    writer.append(records(1)[0])
    command = [sys.executable, "-c", SECOND, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("another process is writing") and printed.count("\n") == 1
    with pytest.raises(InputError, match="another process is writing"):
        JournalWriter(path)
    writer.append(records(2)[1])
    writer.close()
    assert same(read(path).records, records(2))
    JournalWriter(path).close()


def test_a_journal_is_never_overwritten(tmp_path: Path) -> None:
    data = write(tmp_path / NAME, records(2))
    with pytest.raises(InputError, match="already holds a run"):
        JournalWriter(tmp_path / NAME, HEADER | {"seed": 1})
    assert (tmp_path / NAME).read_bytes() == data


def test_a_missing_journal_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the journal"):
        read(tmp_path / NAME)
    with pytest.raises(InputError, match="cannot read the journal"):
        JournalWriter(tmp_path / NAME)
    with pytest.raises(EdgezoError, match="cannot write"):
        JournalWriter(tmp_path / "none" / NAME, HEADER)


FULL = """
import sys
from pathlib import Path
import numpy as np
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.journal import JournalWriter, Record
path, header = Path(sys.argv[1]), {"schema": 1, "scalars": 1}
writer = JournalWriter(path, header)
for i in range(100):
    try:
        writer.append(Record((np.float32(i),), np.float32(1)))
    except EdgezoError as error:
        print(error.exit_status, error)
        break
print(len(writer.records), path.stat().st_size)
try:
    writer.append(Record((np.float32(-1),), np.float32(1)))
except EdgezoError:
    print("still full")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.append(Record((np.float32(77),), np.float32(1)))
writer.close()
"""


def test_a_full_disk_keeps_the_earlier_records(
    tmp_path: Path, run_limited: Callable[..., str]
) -> None:
    """No room for the last record but for 7 bytes of it; then there is room again."""
    path = tmp_path / NAME
    start = len(encode_header({"schema": 1, "scalars": 1}))
    limit = start + 16 * 9 + 7
    script = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit + 100}))\n" + FULL
    printed = run_limited(script, limit + 100, path).splitlines()
    assert printed[0].startswith(f"1 cannot write {path}: ")
    assert printed[1:] == [f"9 {start + 144}", "still full"]
    found = read(path)
    assert [float(r.scalars[0]) for r in found.records] == [*range(9), 77] and found.torn == 0


def test_an_interrupted_append_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the write and the bookkeeping: the step counts as not taken."""
    path = tmp_path / NAME
    writer = JournalWriter(path, HEADER)
    writer.append(records(1)[0])

    def interrupt() -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("edgezo_runtime.journal.time.monotonic", interrupt)
        writer.append(Record((np.float32(666),), np.float32(1)))
    assert same(writer.records, records(1))
    for record in records(3)[1:]:
        writer.append(record)
    writer.close()
    assert path.read_bytes() == own_bytes(HEADER, records(3))


def test_consecutive_skips() -> None:
    taken, skipped = (Record((np.float32(0),), np.float32(1), flags) for flags in (0, SKIPPED))
    assert consecutive_skips([]) == consecutive_skips([skipped, taken]) == 0
    assert consecutive_skips([skipped, taken, skipped, skipped]) == 2
    assert skipped.skipped and not taken.skipped


def test_a_record_of_another_step_has_other_bytes() -> None:
    record = records(1)[0]
    variants = {encode_record(record, step, crc) for step in (1, 2, 2**33) for crc in (0, 1)}
    assert len(variants) == 6
