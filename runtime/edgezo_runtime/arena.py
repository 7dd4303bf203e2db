"""The arena: all trained weights in one flat, aligned buffer per dtype, swept as one.

Each parameter is a view of its dtype's buffer, and ONNX Runtime reads that same memory. Each also
has a *noise offset*, the next multiple of 64 elements in manifest order whatever the dtype, so that
a float32 and a float16 copy of one model are moved along the same direction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice, Device
from edgezo_runtime.errors import InputError
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.sweep import ONE, Placed, Rule, State
from edgezo_runtime.sweep import Term as Term

Result = TypeVar("Result")
ALIGNMENT = 64  # elements between noise offsets


class Arena:
    """The trained weights of a model, and the sweeps over them.

    Args:
        parameters: the trained parameters, in manifest order.
        device: whose memory the weights lie in; one thread of the CPU if None.

    Attributes:
        sweeper: changes the weights.

    Raises:
        InputError: a parameter's dtype cannot be trained, or there is none.
    """

    def __init__(self, parameters: Sequence[Parameter], device: Device | None = None) -> None:
        if not parameters:
            raise InputError("no parameter is trained; choose some with --tune")
        self.device = device = device or CpuDevice(1)
        self.parameters = tuple(parameters)
        self.noise_offsets: dict[str, int] = {}
        self.views: dict[str, Any] = {}
        self.size = 0  # of the index space, in elements
        lengths = dict.fromkeys(dtypes.TRAINABLE, 0)
        starts = {}
        for parameter in self.parameters:
            dtype = dtypes.named(parameter.dtype)
            if dtype not in lengths:
                raise InputError(f"{parameter.name} is {dtype.name}: only float weights are tuned")
            self.noise_offsets[parameter.name] = self.size
            starts[parameter.name] = lengths[dtype]
            padded = -(-parameter.size // ALIGNMENT) * ALIGNMENT
            self.size += padded
            lengths[dtype] += padded
        self.buffers = {d: device.zeros(n, d.storage) for d, n in lengths.items() if n}
        for parameter in self.parameters:
            buffer = self.buffers[dtypes.named(parameter.dtype)]
            start = starts[parameter.name]
            flat = buffer[start : start + parameter.size]
            self.views[parameter.name] = flat.reshape(parameter.shape)
        placed = [
            Placed(p, self.views[p.name].reshape(-1), self.noise_offsets[p.name])
            for p in self.parameters
        ]
        self.sweeper = device.sweeper(placed, self.buffers)
        self._deferred: tuple[Term, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the layout: names, shapes, dtypes and noise offsets."""
        layout = [(p.name, p.shape, p.dtype, self.noise_offsets[p.name]) for p in self.parameters]
        return hashlib.sha256(json.dumps(layout).encode()).hexdigest()

    def defer(self, *terms: Term) -> None:
        """Adds `terms` when the weights are next needed, so that they can share that sweep."""
        self._deferred += terms

    def settle(self) -> None:
        """Adds what was deferred; whoever reads the weights calls this first."""
        self.add()
        self.sweeper.finish()

    def foresee(self, groups: Sequence[Sequence[Term]]) -> None:
        """Says what will be added before each of the losses that follow the next one.

        Where weights have to be fetched for a loss, those of the same batch are computed with it.
        """
        self.sweeper.foresee(groups)

    def forget(self) -> None:
        """Drops what was deferred: the weights are about to be overwritten."""
        self._deferred = ()
        self.sweeper.forget()

    def add(self, *terms: Term) -> None:
        """Sweeps once over all weights, adding what was deferred and then each of `terms`.

        Several terms in one sweep give the same bits as one sweep each; they only save passes over
        the memory. A forward pass sees the sum; the memory itself may follow later (`settle`).
        """
        terms, self._deferred = self._deferred + terms, ()
        most = self.sweeper.most_terms
        for start in range(0, len(terms), most):
            self.sweeper.sweep(terms[start : start + most])

    def update(
        self,
        rule: Rule,
        directions: Sequence[AnyDirection] = (),
        decay: np.float32 = ONE,
        state: State | None = None,
    ) -> None:
        """Replaces each weight by what ``rule(xp, weights, state, *zs)`` returns, times `decay`.

        Args:
            rule: gets the array module, weights (n,), the state at the same places (n,) by name,
                and the elements (n,) of each direction, none of them to be written to; returns new
                weights, and by name what changes of the state. It looks at each element alone, in
                float32, and takes numbers, ``+ - * /``, comparisons and sqrt, sign, abs, maximum,
                minimum and where of `xp`: every device gets the same bits, and may hand it symbols
                instead of arrays.
            directions: where the first one's support has ranges, only those are gone through.
            decay: multiplies the weights that decay (matrices).
            state: arrays of the index space, float32, by name.
        """
        self.settle()
        self.sweeper.update(rule, directions, np.float32(decay), state or {})

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Returns what `work` makes of each of `items`, in their order; threads share them."""
        return self.sweeper.each(work, items)

    def nonfinite(self) -> str | None:
        """Returns the name of a parameter that holds NaN or infinity, or None."""
        for parameter in self.parameters:
            flat = self.views[parameter.name].reshape(-1)
            if not dtypes.finite(self.device.xp, flat, dtypes.named(parameter.dtype)):
                return parameter.name
        return None
