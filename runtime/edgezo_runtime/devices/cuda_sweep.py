"""Sweeps on an NVIDIA card: one kernel launch over each buffer, with the bits of the CPU's."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, noise
from edgezo_runtime.errors import InputError
from edgezo_runtime.noise import BLOCK_SIZE, EVERYWHERE, AnyDirection, Direction, Purpose
from edgezo_runtime.philox import split64
from edgezo_runtime.sweep import Descent, Placed, Rule, Sweeper, Term, update_with

_THREADS = 256  # of a CUDA block, as sweep.cu says
_CHUNK_BYTES = 8192  # that a CUDA block sweeps
UPDATED = 1 << 20  # elements that an update takes at once
_MARGIN = 64  # bytes that a kernel may read past a window's end
CHUNK = np.dtype([("weight", "<u8"), ("noise", "<u8"), ("count", "<u4"), ("decays", "<u4")])
_TERM = np.dtype(
    [
        ("key", "<u4", 2),
        ("step", "<u4", 2),
        ("sample", "<u4"),
        ("coefficient", "<f4"),
        ("decay", "<f4"),
        ("unit", "<f4"),
        ("pool", "<u8"),
        ("slope", "<u8"),
        ("skipped", "<u8"),
        ("back", "<f8"),
        ("rate", "<f8"),
    ]
)
_TERMS = np.dtype([("term", _TERM, Sweeper.most_terms)])


class CudaSweeper(Sweeper):
    """Sweeps over device memory.

    Args:
        placed: the trained weights.
        buffers: the memory they lie in, by dtype.
        stream: that the kernels are queued on.
    """

    def __init__(
        self, placed: Sequence[Placed], buffers: Mapping[dtypes.Dtype, Any], stream: Any
    ) -> None:
        self._stream = stream
        self._placed = placed
        self._swept: list[tuple[Any, Chunks]] = []
        with stream:
            for dtype, buffer in buffers.items():
                own = [one for one in placed if one.parameter.dtype == dtype.name]
                start, size = buffer.data.ptr, dtype.storage.itemsize
                firsts = [(one.weights.data.ptr - start) // size for one in own]
                self._swept.append((buffer, Chunks.of(dtype, zip(own, firsts, strict=True))))

    def descends(self, directions: Sequence[AnyDirection]) -> bool:
        return all(map(_plain, directions))

    def sweep(self, terms: Sequence[Term]) -> None:
        for plain, run in itertools.groupby(terms, lambda term: _plain(term.direction)):
            if plain:
                launch(self._stream, list(run), self._swept)
                continue
            for term in run:
                self.update(_adding(term.coefficient), (term.direction,), term.decay)

    def update(self, rule: Rule, directions: Sequence[AnyDirection], decay: np.float32) -> None:
        with self._stream:
            update_with(_cupy(), self._placed, rule, directions, decay, UPDATED)


@dataclass(frozen=True)
class Chunks:
    """The chunks of one buffer's weights, on the card.

    Attributes:
        dtype: of the buffer.
        table: their bytes.
        count: of them.
    """

    dtype: dtypes.Dtype
    table: Any
    count: int

    @classmethod
    def of(cls, dtype: dtypes.Dtype, weights: Iterable[tuple[Placed, int]]) -> Chunks:
        """Returns those of `weights`, each with the place of its first element in the buffer."""
        rows = (row for one, first in weights for row in chunks_of(one, first, dtype))
        table = np.array(list(rows), CHUNK)
        return cls(dtype, _cupy().asarray(table.view(np.uint8)), len(table))


def launch(stream: Any, terms: Sequence[Term], swept: Iterable[tuple[Any, Chunks]]) -> None:
    """Queues a sweep, of at most `Sweeper.most_terms`, over buffers and their chunks."""
    packed = np.zeros(1, _TERMS)  # one value: CuPy passes no others by value
    for row, term in zip(packed["term"][0], terms, strict=False):
        pack(row, term)
    with stream:
        for buffer, chunks in swept:
            kernel = _module().get_function(f"{chunks.dtype.name}_{len(terms)}")
            kernel((chunks.count,), (_THREADS,), (buffer, chunks.table, packed))


def _plain(direction: AnyDirection) -> bool:
    """Whether the kernels know how to draw a direction."""
    return isinstance(direction, Direction) and direction.support == EVERYWHERE


def _adding(coefficient: np.float32) -> Rule:
    return lambda xp, index, weights, z: weights + np.float32(coefficient) * z


def chunks_of(one: Placed, first: int, dtype: dtypes.Dtype) -> Iterator[tuple[int, int, int, bool]]:
    """Yields the chunks of a parameter: first element, noise index, count, decays.

    None crosses a block of the noise.
    """
    size = _CHUNK_BYTES // dtype.storage.itemsize
    at = 0
    while at < one.parameter.size:
        index = one.offset + at
        stop = min(one.parameter.size, at + size, at + BLOCK_SIZE - index % BLOCK_SIZE)
        yield first + at, index, stop - at, one.decays
        at = stop


def pack(row: Any, term: Term) -> None:
    """Fills a row with what the kernel needs of `term`."""
    direction = term.direction
    assert isinstance(direction, Direction)
    counts, unit = _pool(direction.distribution)
    row["key"] = split64(direction.seed)
    row["step"] = split64(direction.step)
    row["sample"] = int(Purpose.DIRECTION) << 24 | direction.sample
    row["coefficient"], row["decay"] = term.coefficient, term.decay
    row["pool"], row["unit"] = counts.data.ptr, unit
    if isinstance(term, Descent):
        row["slope"], row["skipped"] = term.slope.address, term.slope.skipped
        row["back"], row["rate"] = term.back, term.rate


@functools.cache
def _pool(distribution: str) -> tuple[Any, np.float32]:
    """Returns the counts of a pool, followed by its beginning because it is circular."""
    if distribution == "gaussian":
        raise InputError("gaussian noise is drawn by NumPy alone: use binomial, or device cpu")
    counts, unit = noise.counts(distribution)
    return _cupy().asarray(np.concatenate([counts, counts[: BLOCK_SIZE + _MARGIN]])), unit


def _cupy() -> Any:
    return importlib.import_module("cupy")  # not a dependency of the CPU's installation


@functools.cache
def _module() -> Any:
    """Returns the compiled kernels."""
    source = resources.files("edgezo_runtime.devices").joinpath("sweep.cu").read_text("utf-8")
    return _cupy().RawModule(code=source, options=("--std=c++17", "--fmad=false"))
