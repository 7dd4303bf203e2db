"""The ZO-LLM benchmark's hybrid: true gradients for the upper layers, estimates for the rest."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.layers import layers_of, ranges_of
from edgezo_runtime.methods.mixed import Mixed
from edgezo_runtime.methods.options import Number
from edgezo_runtime.noise import Direction, Support


class Hybrid(Mixed):
    r"""The gradient by the upper weights u, and a two-point estimate along the lower weights l.

    .. math::
        g_0 &= \frac{L(u, l + \epsilon z) - L(u, l - \epsilon z)}{2 \epsilon} \\
        u &\leftarrow u - \eta \nabla_u L(u, l), \quad
        l \leftarrow l - \eta \alpha g_0 z

    The backward pass ends at the lowest layer of the upper part: it takes the time and the memory
    of that part alone. What follows the layers belongs to the upper part; what comes before them,
    embeddings that are also the output's among it, to the lower one.

    Settings:
        eps: perturbation scale, in units of the weights.
        zo_weight: alpha: an estimate's steps have to be shorter than a gradient's.
        upper: the share of the layers, from the last one down, that make the upper part.

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "hybrid"
    paper = "https://arxiv.org/abs/2402.11592"

    upper = Number(0.25, above=0, most=1)

    def __init__(self, arena: Arena, seed: int, /, **settings: Any) -> None:
        super().__init__(arena, seed, **settings)
        parameters = arena.parameters
        layers, _ = layers_of(parameters)
        start = min(layers[-math.ceil(Fraction(str(self.upper)) * len(layers))])
        if start == 0:
            raise InputError(
                "hybrid finds no weight below its upper layers among those that are tuned: tune "
                "more of them, or use ip-sgd"
            )
        self._upper = tuple(p.name for p in parameters[start:])
        offsets = list(arena.noise_offsets.values())
        self._lower = Support(ranges_of(range(start), offsets, arena.size))

    def names(self, number: int) -> tuple[str, ...]:
        return self._upper

    def direction(self, number: int) -> Direction:
        return Direction(self.seed, number, support=self._lower)

    def decay(self, lr: float) -> np.float32:
        return np.float32(1 - lr * self.weight_decay)
