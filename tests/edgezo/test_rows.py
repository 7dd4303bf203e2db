"""The reader of JSONL data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgezo.data import read_rows, rows_from
from edgezo.data.rows import label_value
from edgezo_runtime.errors import InputError

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
EXTRA = st.one_of(st.none(), st.booleans(), st.integers(), WORDS, st.lists(st.integers()))
ROWS = {
    "classify": st.fixed_dictionaries(
        {"text": WORDS, "label": st.one_of(st.integers(), WORDS)}, optional={"note": EXTRA}
    ),
    "generate": st.fixed_dictionaries(
        {"prompt": WORDS, "completion": WORDS}, optional={"note": EXTRA}
    ),
    "text": st.fixed_dictionaries({"text": WORDS}, optional={"note": EXTRA}),
}


def write(folder: Path, content: bytes | str | list[Any]) -> Path:
    path = folder / "data.jsonl"
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("kind", ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ascii=st.booleans(), newline=st.sampled_from(["\n", "\r\n", "\n\n \n"]))
def test_valid_rows_come_back(
    tmp_path: Path, kind: str, data: st.DataObject, ascii: bool, newline: str
) -> None:
    items = data.draw(st.lists(ROWS[kind], min_size=1, max_size=5))
    text = newline.join(json.dumps(item, ensure_ascii=ascii) for item in items)
    path = write(tmp_path, text)
    rows = read_rows(path)
    assert (list(rows), rows.kind, rows.path) == (items, kind, path)
    assert rows.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    step = newline.count("\n")
    assert rows.lines == tuple(range(1, step * len(items) + 1, step))
    assert list(rows_from(items)) == items


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    _read_or_refuse(write(tmp_path, content))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["text", "label", "prompt", "completion", "label_text", "x"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(JSON, max_size=4), damage=st.integers(0, 400), byte=st.integers(0, 255))
def test_any_json_is_read_or_refused(
    tmp_path: Path, lines: list[Any], damage: int, byte: int
) -> None:
    content = bytearray("\n".join(json.dumps(line) for line in lines).encode())
    if damage < len(content):
        content[damage] = byte
    _read_or_refuse(write(tmp_path, bytes(content)))


def _read_or_refuse(path: Path) -> None:
    try:
        rows = read_rows(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        str(error).encode()
    else:
        assert len(rows) > 0 and len(rows.lines) == len(rows)
        json.dumps(list(rows), ensure_ascii=False).encode()


GOOD = '{"text": "a", "label": 0}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (b"\xef\xbb\xbf", "has no rows"),
        (GOOD.encode() + b'{"text": "\xff"}', "line 2 is not UTF-8"),
        (GOOD.encode("utf-16"), "line 1 is not UTF-8"),
        (GOOD + "{", "line 2 is not JSON"),
        (GOOD + "[1]", "line 2 is a list; write one JSON object"),
        (GOOD + "null", "line 2 is null"),
        (GOOD + GOOD.strip() + GOOD, "line 2 is not JSON"),
        (GOOD + '{"text": "b", "lable": 0}', 'line 2 has no column "label" .*"lable".*line 1 has'),
        (GOOD + '{"label": 0}', 'line 2 has no column "text"'),
        (GOOD + '{"text": 3, "label": 0}', 'line 2: column "text" is a number'),
        (GOOD + '{"text": null, "label": 0}', 'line 2: column "text" is null'),
        (GOOD + '{"text": " ", "label": 0}', 'line 2: column "text" is empty'),
        (GOOD + '{"text": "b", "label": 0.5}', 'line 2: column "label" is a number'),
        (GOOD + '{"text": "b", "label": true}', 'line 2: column "label" is true or false'),
        (GOOD + '{"text": "b", "label": ""}', 'line 2: column "label" is empty'),
        (GOOD + '{"text": "b", "label": 0, "label_text": 1}', '"label_text" is a number'),
        (GOOD + '{"text": "b", "label": NaN}', "line 2: NaN is not JSON"),
        (GOOD + '{"text": "b", "label": -Infinity}', "line 2: -Infinity is not JSON"),
        (GOOD + '{"text": "b", "label": 1, "label": 0}', 'line 2: column "label" occurs twice'),
        (GOOD + '{"text": "b", "label": ' + "9" * 5000 + "}", "line 2 has a number of too many"),
        (GOOD + "[" * 200_000, "line 2 is nested too deeply"),
        (GOOD + '{"text": "\\ud800", "label": 0}', "line 2 has half of a surrogate pair"),
        (GOOD + '{"\\udc00": 1}', "line 2 has half of a surrogate pair"),
        ('{"messages": []}\n{"text": "a"}', 'line 2 has no column "messages"'),
        ('{"prompt": "a"}', 'line 1 has columns "prompt"; edgezo reads'),
        ("{}", "line 1 has columns none; edgezo reads"),
        ('{"prompt": "a", "completion": ""}', 'line 1: column "completion" is empty'),
    ],
)
def test_bad_data_is_named(tmp_path: Path, content: bytes | str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        read_rows(path)
    assert str(path) in str(error.value)


def test_large_numbers_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    number = 10**400
    rows = read_rows(write(tmp_path, b'\xef\xbb\xbf{"text": "a", "label": %d}' % number))
    assert label_value(rows[0], "here") == str(number)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path)


def test_rows_in_memory_are_checked_alike() -> None:
    rows = rows_from([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert (rows.path, rows.place(1)) == (None, "row 2 of the data")
    assert rows.sha256 == rows_from(list(rows)).sha256
    for bad, message in [
        ([], "has no rows"),
        ([{"text": "a", "label": 0}, {"text": "a"}], 'row 2 of the data has no column "label"'),
        ([{"text": "a", "label": np.float32(1)}], "row 1 of the data cannot be written"),
        ([{"text": "\ud800"}], "row 1 of the data is not UTF-8"),
        ([{"text": float("nan")}], "row 1 of the data cannot be written"),
    ]:
        with pytest.raises(InputError, match=message):
            rows_from(bad)


def test_arrays_are_no_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones(3))
    with pytest.raises(InputError, match=r"d\.npz holds arrays, but text is read here: .*JSONL"):
        read_rows(tmp_path / "d.npz")
