"""Reading and writing safetensors without a second copy of the weights.

The `safetensors` library maps the file and copies each tensor out of the map, so that both count
towards the peak memory, and it serialises from byte strings. edgezo reads straight into the arena
and writes straight from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import CHUNK_BYTES, atomic_writer

_MAX_HEADER_BYTES = 100 << 20
_MAX_DIMENSIONS = 32


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file; `start` and `stop` are byte offsets in the file."""

    name: str
    dtype: dtypes.Dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Returns the tensors of the file at `path`, by name, in the order of their bytes.

    Raises:
        InputError: the file is missing or truncated, or its header does not describe it.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise InputError(f"{path} is not a safetensors file: its header is cut or too long")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file: its header is not JSON") from error
    try:
        entries = _entries(header, data_start=8 + length)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} has a damaged safetensors header: {error}") from error
    end = 8 + length
    for entry in entries:
        if entry.start != end:
            raise InputError(f"{path} has a damaged safetensors header at tensor {entry.name!r}")
        end = entry.stop
    if end != size:
        raise InputError(f"{path} holds {size} bytes but its header describes {end}: it is cut")
    return {entry.name: entry for entry in entries}


def _entries(header: Mapping[str, object], data_start: int) -> list[TensorEntry]:
    entries = []
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(fields, dict):
            raise ValueError(f"tensor {name!r} is not described")
        dtype = dtypes.from_safetensors(fields["dtype"])
        shape = tuple(fields["shape"])
        start, stop = fields["data_offsets"]
        if len(shape) > _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {len(shape)} dimensions")
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, stop)):
            raise ValueError(f"tensor {name!r} has a negative or fractional size")
        if stop - start != math.prod(shape) * dtype.storage.itemsize:
            raise ValueError(f"tensor {name!r} has offsets that disagree with its shape")
        entries.append(TensorEntry(name, dtype, shape, data_start + start, data_start + stop))
    return sorted(entries, key=lambda entry: (entry.start, entry.stop))


def read_into(path: Path, destinations: Mapping[str, np.ndarray]) -> str:
    """Fills `destinations` from the file at `path` in one pass and returns the file's SHA-256.

    Args:
        path: a safetensors file.
        destinations: C-contiguous arrays by tensor name, in the tensors' storage dtype and shape.
            Tensors without a destination are read for the checksum only.

    Raises:
        InputError: a tensor is missing, or differs in dtype or shape from its destination.
    """
    entries = read_header(path)
    for name, array in destinations.items():
        check_destination(path, entries, name, array)
    digest = hashlib.sha256()
    scratch = memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        first = next(iter(entries.values())).start if entries else path.stat().st_size
        digest.update(file.read(first))
        for entry in entries.values():
            target = destinations.get(entry.name)
            remaining = entry.stop - entry.start
            view = None if target is None else target.reshape(-1).view(np.uint8).data
            while remaining:
                chunk = scratch if view is None else view[len(view) - remaining :]
                count = file.readinto(chunk[: min(remaining, CHUNK_BYTES)])
                if not count:
                    raise InputError(f"{path} was cut while it was read")
                digest.update(chunk[:count])
                remaining -= count
                _idle(target)
    return digest.hexdigest()


def check_destination(
    path: Path, entries: Mapping[str, TensorEntry], name: str, array: Any
) -> TensorEntry:
    """Returns the entry that `array` is filled from; raises InputError where it does not fit."""
    entry = entries.get(name)
    if entry is None:
        raise InputError(f"{path} has no tensor {name!r}")
    if entry.shape != array.shape or entry.dtype.storage != array.dtype:
        raise InputError(
            f"tensor {name!r} of {path} is {entry.dtype.name} {list(entry.shape)}, "
            f"not {array.dtype} {list(array.shape)} as the manifest says"
        )
    return entry


def map_tensor(path: Path, entry: TensorEntry, own: bool = False) -> np.ndarray:
    """Returns the tensor as a read-only memory map, for weights that stay frozen.

    With `own` pages that are written to are the process's own: the file stays as it is.
    """
    mode = "c" if own else "r"
    return np.memmap(path, entry.dtype.storage, mode=mode, offset=entry.start, shape=entry.shape)


def release(mapped: np.ndarray) -> None:
    """Gives the memory of a mapped tensor back; what is read again comes from the file again."""
    file = getattr(mapped, "_mmap", None)
    # Elsewhere, as on Windows, the system takes it when it needs room.
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def _idle(array: np.ndarray | None) -> None:
    """Lets what lies in a file to be changed leave the memory, or piece by piece all would come."""
    if isinstance(array, np.memmap) and array.mode == "r+":
        release(array)


def write(
    path: Path,
    tensors: Iterable[tuple[str, dtypes.Dtype, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Writes `tensors`, in their order, to `path` atomically and returns the file's SHA-256.

    The bytes depend on nothing but the arguments. Arrays are C-contiguous, in storage dtype, and
    never copied.
    """
    arrays = {name: (dtype, array) for name, dtype, array in tensors}
    entries = [(name, dtype, array.shape) for name, (dtype, array) in arrays.items()]
    return write_each(path, entries, lambda name: arrays[name][1], metadata)


def digest(tensors: Iterable[tuple[str, dtypes.Dtype, np.ndarray]]) -> str:
    """Returns the SHA-256 of the file that `write` makes of `tensors`, without writing it."""
    arrays = {name: (dtype, array) for name, dtype, array in tensors}
    entries = [(name, dtype, array.shape) for name, (dtype, array) in arrays.items()]
    found = hashlib.sha256()
    for chunk in _chunks(entries, lambda name: arrays[name][1], None):
        found.update(chunk)
    return found.hexdigest()


def write_each(
    path: Path,
    entries: Iterable[tuple[str, dtypes.Dtype, tuple[int, ...]]],
    tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Writes a file as `write` does, with only one tensor in memory at a time.

    Args:
        path: the file to write.
        entries: name, dtype and shape of each tensor.
        tensor: returns the C-contiguous array of a name, in storage dtype; called once for each
            entry, in their order.
        metadata: the header's `__metadata__`.
    """
    digest = hashlib.sha256()
    with atomic_writer(path) as file:
        for chunk in _chunks(list(entries), tensor, metadata):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _chunks(
    entries: Sequence[tuple[str, dtypes.Dtype, tuple[int, ...]]],
    tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None,
) -> Iterator[bytes | memoryview]:
    """Yields the bytes of a file, in order."""
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for name, dtype, shape in entries:
        size = math.prod(shape) * dtype.storage.itemsize
        header[name] = {
            "dtype": dtype.safetensors,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    for name, dtype, shape in entries:
        array = tensor(name)
        if array.shape != shape or array.dtype != dtype.storage:
            raise ValueError(f"{name!r} is {array.dtype} {array.shape}, not {dtype} {shape}")
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
            _idle(array)
        del array, data  # so that the next tensor is made with this one gone
