"""The weights of one stage: where they lie on the host, and where in a buffer on the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from edgezo_runtime import dtypes
from edgezo_runtime.arena import ALIGNMENT, Arena
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices.base import Binder
from edgezo_runtime.devices.cuda import CudaDevice
from edgezo_runtime.devices.cuda_chunks import Chunks
from edgezo_runtime.devices.cuda_noise import Draws
from edgezo_runtime.devices.cuda_sweep import launch
from edgezo_runtime.devices.lane import Copied
from edgezo_runtime.sweep import Placed, Sweeper, Term

_APART = 256  # bytes; where a copy begins in a buffer is a multiple


class StageWeights:
    """The weights of one stage.

    Args:
        arena: of those that are trained.
        parameters: of the stage, in manifest order.
        arrays: every weight by name, in pinned memory.
        last: names of those that no later stage reads: from here they are written back.

    Attributes:
        copied: what is fetched for the stage.
        size: bytes of a buffer that it takes, a multiple of every dtype's.
    """

    def __init__(
        self,
        arena: Arena,
        parameters: Sequence[Parameter],
        arrays: Mapping[str, Any],
        last: Set[str],
    ) -> None:
        self._parameters = parameters
        self._arena = arena
        self._offsets: dict[str, int] = {}
        self.copied: list[Copied] = []
        self.size = 0
        before = None  # dtype and way back of the one before, if that is trained
        for parameter in parameters:
            array = arrays[parameter.name]
            address = array.__array_interface__["data"][0]
            trained = parameter.name in arena.views
            back = trained and parameter.name in last
            kind = (parameter.dtype, back) if trained else None
            start, begin = address, -(-self.size // _APART) * _APART
            if kind is not None and kind == before:
                # Neighbours in the arena are copied as one, with the padding between them.
                run = self.copied[-1]
                if 0 <= address - run.address - run.size < ALIGNMENT * array.itemsize:
                    start, begin = run.address, run.offset
                    self.copied.pop()
            self._offsets[parameter.name] = begin + address - start
            self.size = self._offsets[parameter.name] + array.nbytes
            self.copied.append(Copied(start, begin, self.size - begin, back))
            before = kind
        self.size = max(-(-self.size // _APART), 1) * _APART

    def place(self, card: CudaDevice, buffer: Any) -> None:
        """Says into which buffer of the card the weights will be fetched."""
        self._stream, self._draws = card.stream, Draws()
        self.binders: dict[str, Binder] = {}
        placed: dict[dtypes.Dtype, list[tuple[Placed, int]]] = {}
        for parameter in self._parameters:
            dtype, start = dtypes.named(parameter.dtype), self._offsets[parameter.name]
            size = dtype.storage.itemsize
            own = buffer[start : start + parameter.size * size].view(dtype.storage)
            self.binders[parameter.name] = card.binder(own.reshape(parameter.shape), dtype)
            if parameter.name in self._arena.views and parameter.size:
                one = Placed(parameter, own, self._arena.noise_offsets[parameter.name])
                placed.setdefault(dtype, []).append((one, start // size))
        with card.stream:
            self._swept = [
                (buffer.view(dtype.storage), Chunks.of(dtype, ones))
                for dtype, ones in placed.items()
            ]

    def add(self, terms: Sequence[Term]) -> None:
        """Queues the addition of `terms` to the trained ones, in the buffer."""
        most = Sweeper.most_terms
        for start in range(0, len(terms), most):
            launch(self._stream, terms[start : start + most], self._swept, self._draws)
