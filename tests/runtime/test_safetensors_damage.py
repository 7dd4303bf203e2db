"""safetensors files that are damaged or hostile: refused, without a crash or much memory."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensor_files import FILES, write

from edgezo_runtime import safetensors_file
from edgezo_runtime.errors import InputError


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x01" * 7,
    "no header": bytes(8),
    "header longer than the file": (2**63).to_bytes(8, "little") + b"{}",
    "header of 4 GiB": (2**32).to_bytes(8, "little") + b"{}" * 10,
    "not JSON": raw(b"{{{{"),
    "not UTF-8": raw(b'{"\xff\xfe": 1}'),
    "a list": raw([1, 2]),
    "a number": raw(b"12"),
    "null": raw(b"null"),
    "deep": raw(b"[" * 100_000),
    "a huge number": raw(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"),
    "tensor is no object": raw({"w": 3}),
    "no dtype": raw({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": raw({"w": tensor(dtype="F99")}, bytes(8)),
    "dtype is a list": raw({"w": tensor(dtype=["F32"])}, bytes(8)),
    "shape is text": raw({"w": tensor(shape="22")}, bytes(8)),
    "shape is a number": raw({"w": tensor(shape=2)}, bytes(8)),
    "shape is fractional": raw({"w": tensor(shape=[2.0])}, bytes(8)),
    "shape is negative": raw({"w": tensor(shape=[-1, -2])}, bytes(8)),
    "shape is true": raw({"w": tensor(shape=[True, 2])}, bytes(8)),
    "shape beyond 64 bits": raw({"w": tensor(shape=[2**64, 0], data_offsets=[0, 0])}),
    "a thousand dimensions": raw({"w": tensor(shape=[1] * 1000 + [2])}, bytes(8)),
    "shape does not fit": raw({"w": tensor(shape=[3])}, bytes(8)),
    "offsets backwards": raw({"w": tensor(data_offsets=[8, 0])}, bytes(8)),
    "offsets beyond the end": raw({"w": tensor(shape=[4], data_offsets=[0, 16])}, bytes(8)),
    "offsets start late": raw({"w": tensor(data_offsets=[4, 12])}, bytes(12)),
    "offsets of three": raw({"w": tensor(data_offsets=[0, 8, 9])}, bytes(8)),
    "offsets missing": raw({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "bytes left over": raw({"w": tensor()}, bytes(9)),
    "tensors overlap": raw({"v": tensor(), "w": tensor()}, bytes(8)),
    "a gap": raw({"v": tensor(), "w": tensor(data_offsets=[12, 20])}, bytes(20)),
    "a name twice": raw(
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        bytes(16),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        safetensors_file.read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value) or "dtype" in str(caught.value)
    assert peak < 1 << 20


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            safetensors_file.read_header(path)


def only_input_error(path: Path) -> None:
    """Reads as far as it goes; what it accepts must lie inside the file, without gaps."""
    try:
        entries = safetensors_file.read_header(path)
        arrays = {
            e.name: np.zeros(e.shape, e.dtype.storage)
            for e in entries.values()
            if e.stop - e.start < 1 << 20
        }
        digest = safetensors_file.read_into(path, arrays)
    except InputError:
        return
    data = path.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert sum(e.stop - e.start for e in entries.values()) <= len(data)
    for name, entry in entries.items():
        assert math.prod(entry.shape) * entry.dtype.storage.itemsize == entry.stop - entry.start
        assert arrays[name].tobytes() == data[entry.start : entry.stop]


@FILES
@given(st.binary(max_size=200))
def test_arbitrary_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(data)
    only_input_error(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    },
)


@FILES
@given(st.dictionaries(st.text(max_size=5), FIELDS | JSON, max_size=3), st.binary(max_size=40))
def test_arbitrary_headers(tmp_path: Path, header: dict, data: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(raw(header, data))
    only_input_error(path)


@FILES
@given(st.data())
def test_mutated_files(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mutated"
    write(path, {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    only_input_error(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    write(path, {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float16)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            safetensors_file.read_header(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(InputError, match="describes"):
        safetensors_file.read_header(path)


def test_every_bit_flip_changes_the_checksum_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    arrays = {"a": np.arange(4, dtype=np.float32)}
    digest = write(path, arrays)
    content = path.read_bytes()
    for at in range(8 * len(content)):
        changed = bytearray(content)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            found = safetensors_file.read_into(path, {"a": np.zeros(4, np.float32)})
        except InputError:
            continue
        assert found != digest
