"""safetensors files: understood by their own library, and never half written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tensor_files import FILES, NUMPY_DTYPES, write

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.memory import resident_bytes

SHAPE = st.lists(st.integers(0, 7), max_size=4).map(tuple)
NAME = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
TENSORS = st.dictionaries(NAME, st.tuples(SHAPE, st.sampled_from(sorted(NUMPY_DTYPES))), max_size=6)


def make(described: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {
        name: np.asarray(generator.standard_normal(shape) * 50).astype(np.dtype(dtype))
        for name, (shape, dtype) in described.items()
    }


@FILES
@given(TENSORS)
def test_the_library_reads_ours(tmp_path: Path, described: dict) -> None:
    path = tmp_path / "ours.safetensors"
    arrays = make(described)
    digest = write(path, arrays)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@FILES
@given(TENSORS)
def test_ours_reads_the_librarys(tmp_path: Path, described: dict) -> None:
    path = tmp_path / "theirs.safetensors"
    arrays = make(described)
    save_file(arrays, path, metadata={"made": "by the library"})
    entries = safetensors_file.read_header(path)
    assert entries.keys() == arrays.keys()
    data = path.read_bytes()
    for name, entry in entries.items():
        assert (entry.name, entry.shape) == (name, arrays[name].shape)
        assert entry.dtype.name == str(arrays[name].dtype)
        assert data[entry.start : entry.stop] == arrays[name].tobytes()
    filled = {name: np.zeros_like(array) for name, array in arrays.items()}
    assert safetensors_file.read_into(path, filled) == hashlib.sha256(data).hexdigest()
    for name, array in arrays.items():
        assert np.array_equal(filled[name], array)


def test_bfloat16_is_kept_as_bits(tmp_path: Path) -> None:
    bits = np.arange(30, dtype=np.uint16).reshape(5, 6) * 2111
    safetensors_file.write(tmp_path / "a", [("w", dtypes.BFLOAT16, bits)])
    with safe_open(tmp_path / "a", "numpy") as file:
        assert file.get_slice("w").get_dtype() == "BF16"
    filled = np.zeros((5, 6), np.uint16)
    safetensors_file.read_into(tmp_path / "a", {"w": filled})
    assert np.array_equal(filled, bits)


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32), "a": np.ones((2, 3), np.float16)}
    assert write(tmp_path / "one", arrays) == write(tmp_path / "two", arrays)
    first = (tmp_path / "one").read_bytes()
    assert first == (tmp_path / "two").read_bytes()
    assert int.from_bytes(first[:8], "little") % 8 == 0
    header = json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])
    assert [name for name in header if name != "__metadata__"] == ["b", "a"]
    write(tmp_path / "three", arrays, metadata={"step": "4"})
    with safe_open(tmp_path / "three", "numpy") as file:
        assert file.metadata() == {"step": "4"}


def test_write_each_asks_for_one_tensor_at_a_time(tmp_path: Path) -> None:
    arrays = {name: np.full((3, 2), i, np.float32) for i, name in enumerate("cab")}
    asked: list[str] = []

    def give(name: str) -> np.ndarray:
        asked.append(name)
        return arrays[name]

    entries = [(name, dtypes.FLOAT32, (3, 2)) for name in arrays]
    digest = safetensors_file.write_each(tmp_path / "each", entries, give)
    assert asked == list(arrays)
    assert digest == write(tmp_path / "whole", arrays)


def test_a_large_tensor_takes_several_chunks(tmp_path: Path) -> None:
    array = np.arange((9 << 20) // 4 + 3, dtype=np.float32)
    small = np.arange(5, dtype=np.int64)
    digest = write(tmp_path / "large", {"w": array, "n": small})
    assert digest == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()
    filled, rest = np.zeros_like(array), np.zeros_like(small)
    assert safetensors_file.read_into(tmp_path / "large", {"w": filled}) == digest
    assert safetensors_file.read_into(tmp_path / "large", {"n": rest}) == digest
    assert np.array_equal(filled, array) and np.array_equal(rest, small)


def test_writing_and_reading_copy_no_tensor(tmp_path: Path) -> None:
    array = np.zeros(40 << 18, np.float32)  # 40 MiB
    tracemalloc.start()
    write(tmp_path / "w", {"w": array})
    safetensors_file.read_into(tmp_path / "w", {"w": array})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_the_memory_of_a_mapped_tensor_is_given_back(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("elsewhere only the peak is known")
    array = np.arange(32 << 20, dtype=np.uint8)  # 32 MiB
    write(tmp_path / "w", {"w": array})
    mapped = safetensors_file.map_tensor(
        tmp_path / "w", safetensors_file.read_header(tmp_path / "w")["w"]
    )
    assert np.array_equal(mapped, array)
    held = resident_bytes()
    safetensors_file.release(mapped)
    assert resident_bytes() < held - (24 << 20)
    assert np.array_equal(mapped, array)
    safetensors_file.release(array)  # no map: it stays as it is


def test_a_mapped_tensor_is_read_only(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    write(tmp_path / "w", {"first": np.ones(3, np.int8), "w": array})
    entry = safetensors_file.read_header(tmp_path / "w")["w"]
    mapped = safetensors_file.map_tensor(tmp_path / "w", entry)
    assert np.array_equal(mapped, array) and not mapped.flags.writeable


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_small_shapes_can_be_mapped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    write(tmp_path / "w", {"w": array})
    entry = safetensors_file.read_header(tmp_path / "w")["w"]
    assert np.array_equal(safetensors_file.map_tensor(tmp_path / "w", entry), array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), np.float32), r"float32 \[2, 3\], not float32 \[3, 2\]"),
        (np.zeros((2, 3), np.float16), r"float32 \[2, 3\], not float16 \[2, 3\]"),
    ],
)
def test_a_destination_must_fit(tmp_path: Path, array: np.ndarray, message: str) -> None:
    write(tmp_path / "w", {"w": np.ones((2, 3), np.float32)})
    with pytest.raises(InputError, match=message):
        safetensors_file.read_into(tmp_path / "w", {"w": array})
    with pytest.raises(InputError, match="no tensor 'missing'"):
        safetensors_file.read_into(tmp_path / "w", {"missing": array})
    assert not array.any()


def test_a_failure_in_the_middle_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write(path, {"w": np.ones(5, np.float32)})
    before = path.read_bytes()

    def fail(name: str) -> np.ndarray:
        if name == "b":
            raise KeyboardInterrupt
        return np.zeros(5, np.float32)

    entries = [(name, dtypes.FLOAT32, (5,)) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        safetensors_file.write_each(path, entries, fail)
    with pytest.raises(ValueError, match="not"):
        safetensors_file.write_each(path, entries, lambda name: np.zeros(4, np.float32))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


FILL = """
import sys
from pathlib import Path
import numpy as np
from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.errors import EdgezoError
path = Path(sys.argv[1])
try:
    safetensors_file.write(path, [("w", dtypes.FLOAT32, np.ones(1 << 20, np.float32))])
except EdgezoError as error:
    print(error.exit_status, error)
"""


def test_a_file_size_limit_keeps_the_old_file(
    tmp_path: Path, run_limited: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "model.safetensors"
    write(path, {"w": np.ones(5, np.float32)})
    before = path.read_bytes()
    printed = run_limited(FILL, 1 << 20, path)
    assert printed.startswith(f"1 cannot write {path}: ") and printed.count("\n") == 1
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """On a file system of 1 MiB, mounted where only the child process sees it."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare here")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "fill.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n"
        "path.write_bytes(b'old')\n" + FILL + "print(path.read_bytes(), len(list("
        "path.parent.iterdir())))\n"
    )
    mount = (
        f"mount -t tmpfs -o size=1m none '{disk}' || exit 77; exec '{sys.executable}' '{script}'"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} '{disk}/w.safetensors'"],
        capture_output=True,
        text=True,
    )
    if done.returncode in (1, 77):
        pytest.skip("no file system may be mounted here")
    assert done.returncode == 0, done.stderr
    sentence, kept = done.stdout.splitlines()
    assert sentence.startswith(f"1 cannot write {disk / 'w.safetensors'}: No space left on device")
    assert kept == "b'old' 1"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(EdgezoError, match=r"cannot write .*Permission denied"):
        write(folder / "w", {"w": np.ones(3, np.float32)})


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgezoError, match="cannot write"):
        write(tmp_path / "none" / "w", {"w": np.ones(3, np.float32)})
