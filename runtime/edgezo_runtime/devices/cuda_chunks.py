"""The chunks of weights that kernels go through, one CUDA block each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.devices.cuda_kernels import cupy
from edgezo_runtime.dtypes import Dtype
from edgezo_runtime.noise import BLOCK_SIZE
from edgezo_runtime.sweep import Placed

_BYTES = 16384  # of a chunk
#: `Chunk` of noise.cuh.
CHUNK = np.dtype([("weight", "<u8"), ("noise", "<u8"), ("count", "<u4"), ("decays", "<u4")])


@dataclass(frozen=True)
class Chunks:
    """The chunks of one buffer's weights, on the card.

    Attributes:
        dtype: of the buffer.
        table: their bytes.
        count: of them.
    """

    dtype: Dtype
    table: Any
    count: int

    @classmethod
    def of(cls, dtype: Dtype, weights: Iterable[tuple[Placed, int]]) -> Chunks:
        """Returns those of `weights`, each with the place of its first element in the buffer."""
        rows = (row for one, first in weights for row in _chunks(one, first, dtype))
        table = np.array(list(rows), CHUNK)
        return cls(dtype, cupy().asarray(table.view(np.uint8)), len(table))


def _chunks(one: Placed, first: int, dtype: Dtype) -> Iterator[tuple[int, int, int, bool]]:
    """Yields the chunks of a parameter: first element, noise index, count, decays.

    None crosses a block of the noise.
    """
    size = _BYTES // dtype.storage.itemsize
    at = 0
    while at < one.parameter.size:
        index = one.offset + at
        stop = min(one.parameter.size, at + size, at + BLOCK_SIZE - index % BLOCK_SIZE)
        yield first + at, index, stop - at, one.decays
        at = stop
