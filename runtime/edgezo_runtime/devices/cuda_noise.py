"""What the kernels need of directions, on a card."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from edgezo_runtime import noise
from edgezo_runtime.devices.cuda_kernels import cupy
from edgezo_runtime.errors import InputError
from edgezo_runtime.lowrank import Factors, LowRank
from edgezo_runtime.masks import RandomMask, StoredMask, pool_of_bits
from edgezo_runtime.noise import BLOCK_SIZE, AnyDirection, Direction, Purpose
from edgezo_runtime.philox import split64

_MARGIN = 64  # bytes that a kernel may read past a window's end
_KEPT = 2  # directions whose tables are kept: the last step's and this one's
_NAME = np.dtype([("key", "<u4", (2,)), ("step", "<u4", (2,)), ("sample", "<u4")])
#: `Direction` and `Matrix` of noise.cuh.
DIRECTION = np.dtype(
    [
        ("name", _NAME),
        ("unit", "<f4"),
        ("pool", "<u8"),
        ("ranges", "<u8"),
        ("mask", "<u8"),
        ("matrices", "<u8"),
        ("range_count", "<u4"),
        ("matrix_count", "<u4"),
        ("masked", _NAME),
        ("packed", "<u4"),
    ]
)
MATRIX = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u8"),
        ("left", "<u8"),
        ("right", "<u8"),
        ("rank", "<u4"),
        ("columns", "<u4"),
    ]
)


def plain(direction: AnyDirection) -> bool:
    """Whether a direction is windows of the pool and nothing else, wherever it moves weights."""
    return isinstance(direction, Direction) and direction.support.mask is None


class Draws:
    """What the card needs of the directions of a run; it is made once for each.

    Its arrays are made and used on the stream that is current.
    """

    def __init__(self) -> None:
        keep = functools.lru_cache(_KEPT)
        self._ranges, self._bits, self._matrices = map(keep, (_ranges, _bits, _matrices))

    def pack(self, row: np.ndarray, direction: AnyDirection) -> list[Any]:
        """Fills a row, (1,) of `DIRECTION`; returns what it points to, to be kept until a launch.

        Raises:
            InputError: the noise is gaussian.
        """
        pooled = direction.plain if isinstance(direction, LowRank) else direction
        assert isinstance(pooled, Direction)
        _pack_name(row["name"], pooled.seed, Purpose.DIRECTION, pooled.step, pooled.sample)
        counts, unit = _pool(pooled.distribution)
        row["pool"], row["unit"] = counts.data.ptr, unit
        ranges, mask = pooled.support.ranges, pooled.support.mask
        kept = [counts]
        if ranges is not None:
            kept.append(self._ranges(ranges))
            row["ranges"], row["range_count"] = kept[-1].data.ptr, len(ranges)
        if isinstance(mask, RandomMask):
            _pack_name(row["masked"], mask.seed, Purpose.MASK, mask.step)
            kept.append(self._bits(mask.density))
            row["mask"] = kept[-1].data.ptr
        elif isinstance(mask, StoredMask):
            kept.append(mask.bits)
            row["mask"], row["packed"] = mask.bits.data.ptr, 1
        if isinstance(direction, LowRank):
            table, factors = self._matrices(direction)
            kept += [table, factors]
            row["matrices"], row["matrix_count"] = table.data.ptr, len(direction.matrices)
        return kept


def _pack_name(row: np.ndarray, seed: int, purpose: Purpose, step: int, sample: int = 0) -> None:
    row["key"], row["step"] = split64(seed), split64(step)
    row["sample"] = int(purpose) << 24 | sample


def _ranges(ranges: tuple[tuple[int, int], ...]) -> Any:
    return cupy().asarray(np.array(ranges or ((0, 0),), np.uint64).reshape(-1))


def _bits(density: float) -> Any:
    return _circular(pool_of_bits(density).view(np.uint8))


def _matrices(direction: LowRank) -> tuple[Any, Factors]:
    """Returns the table of a direction's matrices, and what it points to."""
    factors = direction.factors(cupy())
    left, right = factors.left.data.ptr, factors.right.data.ptr
    rows = [
        (m.offset, m.size, left + 4 * place.left, right + 4 * place.right, place.rank, m.columns)
        for m, place in zip(direction.matrices, factors.places, strict=True)
    ]
    table = np.array(rows, MATRIX) if rows else np.zeros(1, MATRIX)
    return cupy().asarray(table.view(np.uint8)), factors


@functools.cache
def _pool(distribution: str) -> tuple[Any, np.float32]:
    if distribution == "gaussian":
        raise InputError("gaussian noise is drawn by NumPy alone: use binomial, or device cpu")
    counts, unit = noise.counts(distribution)
    return _circular(counts), unit


def _circular(values: np.ndarray) -> Any:
    """Returns a pool of bytes on the card, followed by its beginning."""
    return cupy().asarray(np.concatenate([values, values[: BLOCK_SIZE + _MARGIN]]))
