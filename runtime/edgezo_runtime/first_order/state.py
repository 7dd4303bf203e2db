"""An optimizer's state, in memory or on disk."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice, Device
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.files import cannot_write
from edgezo_runtime.safetensors_file import release


class State:
    """Flat float32 arrays, one for each slot, that hold something for each parameter; zero first.

    Args:
        parameters: the trained ones.
        lengths: for each slot, how much it holds of each parameter, in their order.
        disk: whether it lies in a file without a name, of which what is in use is in memory.
        device: whose memory that is; one thread of the CPU if None.

    Attributes:
        arrays: by slot, as snapshots hold them: the device's, or those of the file.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        lengths: Mapping[str, Sequence[int]],
        disk: bool,
        device: Device | None = None,
    ) -> None:
        self._device = device or CpuDevice(1)
        self.arrays: dict[str, Any] = {}
        self._on_disk: set[str] = set()
        self._places: dict[tuple[str, str], slice] = {}
        for slot, sizes in lengths.items():
            start = 0
            for parameter, size in zip(parameters, sizes, strict=True):
                self._places[slot, parameter.name] = slice(start, start + size)
                start += size
            if disk and start:
                self.arrays[slot] = _on_disk(start)
                self._on_disk.add(slot)
            else:
                self.arrays[slot] = self._device.zeros(start, np.dtype(np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(array.nbytes for array in self.arrays.values())

    def nbytes_of(self, name: str) -> int:
        """Bytes of what all slots hold of the parameter `name`."""
        places = (self._places[slot, name] for slot in self.arrays)
        return sum(4 * (place.stop - place.start) for place in places)

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[dict[str, Any]]:
        """Lends what each slot holds of the parameter `name`: flat, to be changed in place."""
        kept = {slot: array[self._places[slot, name]] for slot, array in self.arrays.items()}
        kept |= {slot: kept[slot].view(np.ndarray) for slot in self._on_disk}
        lent = {s: self._device.put(a) if s in self._on_disk else a for s, a in kept.items()}
        yield lent
        for slot, array in lent.items():
            if array is not kept[slot]:  # a copy in the device's memory
                kept[slot][...] = self._device.host(array)

    def idle(self) -> None:
        """Lets what lies on disk leave the memory."""
        for slot in self._on_disk:
            release(self.arrays[slot])


def matrix_shape(parameter: Parameter) -> tuple[int, int] | None:
    """Returns rows and columns of what a matrix's state is factored into; None for vectors."""
    if len(parameter.shape) < 2:
        return None
    return math.prod(parameter.shape[:-1]), parameter.shape[-1]


def _on_disk(size: int) -> np.ndarray:
    """Returns zeros in a file without a name, all of whose room is taken at once.

    Raises:
        EdgezoError: the disk has no room; met later, by a page, it would end the process.
    """
    try:
        with tempfile.TemporaryFile(prefix="edgezo-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, 4 * size)
            else:
                file.truncate(4 * size)
            return np.memmap(file, np.float32, "r+", shape=(size,))
    except OSError as error:
        raise EdgezoError(
            f"the optimizer's state takes {4 * size / 1e6:,.1f} MB of the folder for temporary "
            f"files: {cannot_write(Path(tempfile.gettempdir()), error)} (TMPDIR)"
        ) from error
