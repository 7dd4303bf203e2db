r"""FZOO: a batch of one-sided samples whose spread sets the length of the step."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgezo_runtime.late import Scalar
from edgezo_runtime.methods.base import Probe
from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import OneSidedSamples, total
from edgezo_runtime.methods.options import Choice
from edgezo_runtime.methods.rules import Sgd
from edgezo_runtime.noise import DISTRIBUTIONS


class Fzoo(Everywhere, OneSidedSamples, Sgd):
    r"""Normalised SGD along random signs.

    .. math::
        l_i &= L(\theta + \epsilon u_i),\ u_i \in \{-1, 1\}^d, \quad
            \sigma^2 = \frac{1}{n - 1} \sum_i (l_i - \bar l)^2 \\
        \theta &\leftarrow \Bigl(\theta - \frac{\eta}{n} \sum_i \frac{l_i - L(\theta)}{\sigma}
            u_i\Bigr)(1 - \eta \lambda)

    Losses that are all the same move nothing.

    References:
        Dang et al., "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models
        towards Adam-Scale Speed", 2025.
    """

    name = "fzoo"
    paper = "https://arxiv.org/abs/2506.09034"
    full_lr = 1e-3

    centred = True
    distribution = Choice("rademacher", DISTRIBUTIONS)

    @property
    def forwards(self) -> int:
        return self.samples + 1

    def compared(self, here: Scalar, losses: list[Scalar]) -> list[Scalar]:
        with np.errstate(over="ignore", invalid="ignore"):
            mean = total(losses) / self.samples
            squares = total((loss - mean) * (loss - mean) for loss in losses)
            spread = np.sqrt(squares / (self.samples - 1))
            # Not by the spread: the mean of equal losses may be rounded to another number.
            apart: Any = total(abs(loss - losses[0]) for loss in losses)
            same = np.equal(apart, 0)
            return [(loss - here) / (spread + same) * (1 - same) for loss in losses]

    def rate(self, probe: Probe) -> float:
        return self.samples * probe.slope / probe.curvature
