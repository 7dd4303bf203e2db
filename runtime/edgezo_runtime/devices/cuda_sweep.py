"""Sweeps on an NVIDIA card: one kernel launch over each buffer, with the bits of the CPU's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.devices import cuda_rule
from edgezo_runtime.devices.cuda_chunks import Chunks
from edgezo_runtime.devices.cuda_kernels import THREADS, cupy, kernel
from edgezo_runtime.devices.cuda_noise import DIRECTION, Draws, plain
from edgezo_runtime.late import LateSingle
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.sweep import Descent, Placed, Rule, State, Sweeper, Term, update_with

UPDATED = 1 << 20  # elements that whole-array operations take at once
_COUNTING = 512  # CUDA blocks that count at once
#: `Term` of sweep.cu.
TERM = np.dtype(
    [
        ("direction", DIRECTION),
        ("coefficient", "<f4"),
        ("decay", "<f4"),
        ("late", "<u8"),
        ("skipped", "<u8"),
        ("taken", "<f4"),
    ],
    align=True,
)


class CudaSweeper(Sweeper):
    """Sweeps over device memory.

    Args:
        placed: the trained weights.
        buffers: the memory they lie in, by dtype.
        stream: that the kernels are queued on.
    """

    descends = True
    most_directions = cuda_rule.MOST_DIRECTIONS

    def __init__(
        self, placed: Sequence[Placed], buffers: Mapping[dtypes.Dtype, Any], stream: Any
    ) -> None:
        self._stream = stream
        self._placed = placed
        self._swept: list[tuple[Any, Chunks]] = []
        self._draws = Draws()
        with stream:
            self._offsets = cupy().asarray(np.array([one.offset for one in placed], np.uint64))
            for dtype, buffer in buffers.items():
                own = [one for one in placed if one.parameter.dtype == dtype.name]
                start, size = buffer.data.ptr, dtype.storage.itemsize
                firsts = [(one.weights.data.ptr - start) // size for one in own]
                self._swept.append((buffer, Chunks.of(dtype, zip(own, firsts, strict=True))))

    def sweep(self, terms: Sequence[Term]) -> None:
        launch(self._stream, terms, self._swept, self._draws)

    def update(
        self, rule: Rule, directions: Sequence[AnyDirection], decay: np.float32, state: State
    ) -> None:
        with self._stream:
            if len(directions) > self.most_directions:
                update_with(cupy(), self._placed, rule, directions, decay, state, UPDATED)
                return
            cuda_rule.launch(rule, directions, decay, state, self._swept, self._draws)

    def count(self, place: int, upper: int | None = None) -> np.ndarray:
        one, xp = self._placed[place], cupy()
        numbers = np.uint64(one.parameter.size), np.uint32(upper is None), np.uint32(upper or 0)
        given = (("DTYPE", dtypes.named(one.parameter.dtype).onnx), ("PLAIN", 1))
        with self._stream:
            counts = xp.zeros(1 << 16, np.uint32)
            count = kernel("count.cu", "count", given)
            count((_COUNTING,), (THREADS,), (one.weights, *numbers, counts))
            return xp.asnumpy(counts, stream=self._stream).astype(np.int64)

    def mask(self, limits: Any, out: Any, above: bool) -> None:
        tensors, above_them = np.uint32(len(self._placed)), np.uint32(above)
        with self._stream:
            for buffer, chunks in self._swept:
                mask = kernel("mask.cu", "mask", (("DTYPE", chunks.dtype.onnx), ("PLAIN", 1)))
                arguments = (self._offsets, tensors, limits, out, above_them)
                mask((chunks.count,), (THREADS,), (buffer, chunks.table, *arguments))


def launch(
    stream: Any, terms: Sequence[Term], swept: Iterable[tuple[Any, Chunks]], draws: Draws
) -> None:
    """Queues a sweep, of at most `Sweeper.most_terms`, over buffers and their chunks."""
    packed = np.zeros(1, np.dtype([("term", TERM, (len(terms),))]))
    rows = packed["term"][0]  # of one value: CuPy passes no others by value
    with stream:
        kept = [_pack(rows[i : i + 1], term, draws) for i, term in enumerate(terms)]
        unmasked = all(plain(term.direction) for term in terms)
        for buffer, chunks in swept:
            given = (("DTYPE", chunks.dtype.onnx), ("TERMS", len(terms)), ("PLAIN", int(unmasked)))
            sweep = kernel("sweep.cu", "sweep", given)
            sweep((chunks.count,), (THREADS,), (buffer, chunks.table, packed))
        # What is freed now, nothing queued later can overwrite before the kernels are done.
        del kept


def _pack(row: np.ndarray, term: Term, draws: Draws) -> list[Any]:
    """Fills a row, (1,) of `TERM`; returns what it points to."""
    kept = draws.pack(row["direction"], term.direction)
    row["coefficient"], row["decay"] = term.coefficient, term.decay
    if isinstance(term, Descent):
        row["skipped"] = term.skipped.data.ptr
        if isinstance(term.taken, LateSingle):
            row["late"] = term.taken.number.data.ptr
        else:
            row["taken"] = term.taken
    return kept
