"""The frozen lower layers' outputs, computed once for each row and kept in a file.

    header: JSON; index: (4, rows) uint64; values: of one row behind another; SHA-256 of all before

The index holds the halves of each row's key in ascending order, where in the values it begins, and
its length. Rows are computed in the order in which they are given, before the first step: a file
that is made again has the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import CHUNK_BYTES, atomic_writer
from edgezo_runtime.layout import Layout

#: Of the values in the file.
PRECISIONS = ("float32", "float16")
_MAGIC = b"edgezo prefix 1\n"
_DIGEST_BYTES = 32


class PrefixCache:
    """Finds the values of batches whose rows are all in the file.

    The values stay on the disk; the index, 32 bytes a row, is in memory.

    Args:
        file: of the cache, which it closes.
        layout: of its rows.
        index: (4, rows) uint64.
        start: of the values in the file.
        precision: of the values.
    """

    def __init__(
        self, file: io.FileIO, layout: Layout, index: np.ndarray, start: int, precision: str
    ) -> None:
        self._file, self._layout, self._start = file, layout, start
        self._highs, self._lows, self._starts, self._lengths = index
        self._dtype = np.dtype(precision)

    def find(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what crosses the cut in a batch, by name; nothing if a row is not in the file."""
        found = [self._find(key) for key in self._layout.keys(feeds)]
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            return {}
        return self._layout.give([self._read(row) for row in rows], feeds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _find(self, key: bytes) -> int | None:
        high, low = _halves(key)
        row = int(np.searchsorted(self._highs, np.uint64(high)))
        while row < len(self._highs) and self._highs[row] == high:
            if self._lows[row] == low:
                return row
            row += 1
        return None

    def _read(self, row: int) -> np.ndarray:
        piece = np.empty(self._layout.size(int(self._lengths[row])), self._dtype)
        self._file.seek(self._start + int(self._starts[row]) * self._dtype.itemsize)
        if self._file.readinto(piece.data) != piece.nbytes:
            raise EdgezoError(f"{self._file.name} was cut while it was in use: resume the run")
        return piece


def open_cache(
    path: Path,
    layout: Layout,
    precision: str,
    identity: Mapping[str, Any],
    batches: Callable[[], Iterable[BaseBatch]],
    compute: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]],
    tell: Callable[[int], None],
) -> PrefixCache:
    """Opens the cache at `path`; it is written if it is not there, not whole, or of something else.

    Args:
        path: the file.
        layout: of the rows.
        precision: one of `PRECISIONS`.
        identity: what else decides the values: weights, graph, machine.
        batches: gives the same batches whenever it is called; their rows are kept.
        compute: runs the prefix on a batch's feeds.
        tell: called with the file's bytes before it is written.

    Raises:
        InputError: a value does not fit into `precision`, or does not fall into rows.
        EdgezoError: the disk is full.
    """
    index, fresh = _plan(layout, batches)
    order = np.lexsort((index[1], index[0]))
    known = {**identity, "values": [value.name for value in layout.values], "precision": precision}
    known["rows"] = index.shape[1]
    header = json.dumps(known, sort_keys=True).encode()
    index = np.ascontiguousarray(index[:, order])
    front = b"".join([_MAGIC, len(header).to_bytes(8, "little"), header, index.tobytes()])
    if not _is_whole(path, front):
        sizes = [layout.size(int(length)) for length in index[3]]
        size = len(front) + sum(sizes) * np.dtype(precision).itemsize + _DIGEST_BYTES
        tell(size)
        _write(path, front, size, layout, precision, zip(batches(), fresh, strict=True), compute)
    file = open(path, "rb", buffering=0)  # noqa: SIM115 (the cache closes it)
    return PrefixCache(file, layout, index, len(front), precision)


def _plan(
    layout: Layout, batches: Callable[[], Iterable[BaseBatch]]
) -> tuple[np.ndarray, list[list[int]]]:
    """Returns the index in the order of the rows, and which rows of each batch are new."""
    seen: set[bytes] = set()
    entries: list[tuple[int, int, int, int]] = []
    fresh: list[list[int]] = []
    start = 0
    for batch in batches():
        feeds = batch.feeds()
        lengths = layout.lengths(feeds)
        fresh.append([])
        for row, key in enumerate(layout.keys(feeds)):
            if key not in seen:
                seen.add(key)
                fresh[-1].append(row)
                entries.append((*_halves(key), start, int(lengths[row])))
                start += layout.size(int(lengths[row]))
    return np.array(entries, np.uint64).reshape(-1, 4).T, fresh


def _write(
    path: Path,
    front: bytes,
    size: int,
    layout: Layout,
    precision: str,
    batches: Iterable[tuple[BaseBatch, list[int]]],
    compute: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]],
) -> None:
    digest = hashlib.sha256(front)
    with atomic_writer(path) as file:
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {size / 1e6:.0f} MB")
        file.write(front)
        for batch, rows in batches:
            if not rows:
                continue
            feeds = batch.feeds()
            pieces = layout.take(compute(feeds), feeds)
            for row in rows:
                with np.errstate(over="ignore"):
                    piece = pieces[row].astype(precision)
                if np.isfinite(pieces[row]).all() and not np.isfinite(piece).all():
                    raise InputError(
                        f"an output of the frozen layers is {np.abs(pieces[row]).max():.3g}, which "
                        f"{precision} cannot hold: use --prefix-cache {PRECISIONS[0]}"
                    )
                file.write(piece.data)
                digest.update(piece.data)
        file.write(digest.digest())


def _is_whole(path: Path, front: bytes) -> bool:
    """Whether the file begins with `front` and ends with the digest of all before."""
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES - len(front)
            if left < 0 or file.read(len(front)) != front:
                return False
            digest = hashlib.sha256(front)
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    return False
                digest.update(chunk)
                left -= len(chunk)
            return file.read(_DIGEST_BYTES) == digest.digest()
    except OSError:
        return False


def _halves(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
