"""An optimizer's state, in memory or on disk."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from edgezo_runtime.bundle import Parameter

_PAGE = mmap.ALLOCATIONGRANULARITY


class State:
    """Flat float32 arrays, one for each slot, that hold something for each parameter; zero first.

    Args:
        parameters: the trained ones.
        lengths: for each slot, how much it holds of each parameter, in their order.
        disk: whether it lies in a file without a name, of which what is in use is in memory.

    Attributes:
        arrays: by slot, as snapshots hold them.
    """

    def __init__(
        self, parameters: Sequence[Parameter], lengths: Mapping[str, Sequence[int]], disk: bool
    ) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._places: dict[tuple[str, str], slice] = {}
        for slot, sizes in lengths.items():
            start = 0
            for parameter, size in zip(parameters, sizes, strict=True):
                self._places[slot, parameter.name] = slice(start, start + size)
                start += size
            if disk and start:
                with tempfile.TemporaryFile(prefix="edgezo-") as file:
                    file.truncate(4 * start)
                    self._maps[slot] = mmap.mmap(file.fileno(), 4 * start)
                self.arrays[slot] = np.frombuffer(self._maps[slot], np.float32)
            else:
                self.arrays[slot] = np.zeros(start, np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(array.nbytes for array in self.arrays.values())

    def nbytes_of(self, name: str) -> int:
        """Bytes of what all slots hold of the parameter `name`."""
        places = (self._places[slot, name] for slot in self.arrays)
        return sum(4 * (place.stop - place.start) for place in places)

    def of(self, slot: str, name: str) -> np.ndarray:
        """Returns what `slot` holds of the parameter `name`: flat, to be changed in place."""
        return self.arrays[slot][self._places[slot, name]]

    def idle(self) -> None:
        """Lets what lies on disk leave the memory."""
        if hasattr(mmap, "MADV_DONTNEED"):  # elsewhere the system takes it when it needs room
            for file in self._maps.values():
                file.madvise(mmap.MADV_DONTNEED)


def matrix_shape(parameter: Parameter) -> tuple[int, int] | None:
    """Returns rows and columns of what a matrix's state is factored into; None for vectors."""
    if len(parameter.shape) < 2:
        return None
    return math.prod(parameter.shape[:-1]), parameter.shape[-1]
