"""An NVIDIA card for models that do not fit on it: the weights stay in the host's memory.

They are pinned there, so that the card fetches them by itself. Forward passes run on it, stage by
stage, in a `StreamedSession`; whatever else is done with the weights, the host does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgezo_runtime.devices.cpu import CpuDevice
from edgezo_runtime.devices.cuda import CudaDevice
from edgezo_runtime.devices.offload_sweep import PendingSweeper
from edgezo_runtime.dtypes import Dtype
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.sweep import Placed


class OffloadDevice(CpuDevice):
    """The host's memory, and a card.

    Args:
        card: where forward passes run.

    Attributes:
        card: likewise.
    """

    name = "cuda-offload"
    lean = True
    streams = True

    def __init__(self, card: CudaDevice) -> None:
        super().__init__(card.threads)
        self.card = card

    def zeros(self, size: int, dtype: np.dtype) -> np.ndarray:
        array = self._pinned(size * dtype.itemsize).view(dtype)
        array.fill(0)
        return array

    def put(self, array: np.ndarray) -> np.ndarray:
        placed = self._pinned(array.nbytes).view(array.dtype).reshape(array.shape)
        placed[...] = array
        return placed

    def sweeper(
        self, placed: Sequence[Placed], buffers: Mapping[Dtype, np.ndarray]
    ) -> PendingSweeper:
        return PendingSweeper(super().sweeper(placed, buffers))

    def _pinned(self, size: int) -> np.ndarray:
        """Allocates without CuPy's pool, which would keep what is freed.

        Raises:
            EdgezoError: the host's memory is too small.
        """
        cuda = self.card.xp.cuda
        try:
            memory = cuda.PinnedMemoryPointer(cuda.PinnedMemory(max(size, 1)), 0)
        except cuda.runtime.CUDARuntimeError as error:
            raise EdgezoError(
                f"the host has no {size >> 20} MiB more that the card could read ({error}): free "
                "memory, or use a smaller model"
            ) from error
        return np.frombuffer(memory, np.uint8)[:size]
