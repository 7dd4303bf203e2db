r"""QZO: MeZO over quantisation scales, with its projected gradient clipped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods.mezo import Mezo


class Qzo(Mezo):
    r"""MeZO whose slope is clipped, for the scales of quantised weights.

    .. math::
        g &= \mathrm{clip}\Bigl(\frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon},
            -c, c\Bigr) \\
        \theta &\leftarrow (\theta - \eta g z)(1 - \eta \lambda)

    The integers stay; a scale below 1e-7 counts as 1e-7 in the graph, so that none turns the sign
    of its weights. Tune with `--tune scales`. Scales are about a hundredth of what weights are
    multiplied by, so `eps` is smaller than MeZO's.

    Args:
        arena: the trained scales.
        seed: names all directions of the run.
        eps: perturbation scale, in units of the scales.
        weight_decay: decoupled from the gradient, times the learning rate.
        clip: c, the largest slope that is believed.
        distribution: of z, one of `noise.DISTRIBUTIONS`.

    Raises:
        InputError: a setting is out of range, or the scales are 16-bit floats (see `Mezo`).

    References:
        Shang et al., "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization", 2025.
    """

    name = "qzo"
    paper = "https://arxiv.org/abs/2505.13430"

    def __init__(
        self,
        arena: Arena,
        seed: int,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        clip: float = 100.0,
        distribution: str = "binomial",
    ) -> None:
        super().__init__(arena, seed, eps, weight_decay, distribution)
        if not (math.isfinite(clip) and clip > 0):
            raise InputError(f"clip is {clip}; use a number above 0, such as 100")
        self.clip = clip

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"clip": self.clip}

    def _slope(self, higher: float, lower: float) -> np.float32:
        slope = super()._slope(higher, lower)
        return np.clip(slope, np.float32(-self.clip), np.float32(self.clip))
