"""The journal: what is read from it was written to it, or it is cut or refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_files import FILES, HEADER, own_bytes, records, same, write

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

FLOAT = st.floats(width=32, allow_nan=False).map(np.float32)
RECORD = st.builds(lambda g, lr, flags: Record((g,), lr, flags), FLOAT, FLOAT, st.integers(0, 1))


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


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(own_bytes(HEADER | {"schema": 2}, []))
    with pytest.raises(InputError, match="schema 2, this edgezo reads 1"):
        read(tmp_path / NAME)


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
