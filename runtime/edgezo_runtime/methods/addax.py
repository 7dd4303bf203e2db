"""Addax: zeroth-order estimates on long sequences, true gradients on short ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgezo_runtime.arena import Term
from edgezo_runtime.first_order import rules
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.methods.base import Estimate
from edgezo_runtime.methods.first_order import FirstOrder, as_loss
from edgezo_runtime.methods.options import Number
from edgezo_runtime.noise import Direction


class Addax(FirstOrder):
    r"""Mixes a two-point estimate on one batch with the gradient on another, in place.

    .. math::
        g_0 &= \frac{L(\theta + \epsilon z; B_0) - L(\theta - \epsilon z; B_0)}{2 \epsilon} \\
        \theta &\leftarrow \theta - \eta (\alpha g_0 z + (1 - \alpha) \nabla L(\theta; B_1))

    The long sequences, whose activations would take the most memory, are in :math:`B_0`; the short
    ones are in :math:`B_1`.

    Settings:
        eps: perturbation scale, in units of the weights.
        zo_weight: alpha.

    References:
        Li et al., "Addax: Utilizing Zeroth-Order Gradients to Improve Memory Efficiency and
        Performance of SGD for Fine-Tuning Language Models", ICLR 2025.
    """

    name = "addax"
    paper = "https://arxiv.org/abs/2410.06441"
    rule = rules.Sgd
    keeps = False

    family = "hybrid"
    eps = Number(1e-3, above=0)
    zo_weight = Number(1e-3, least=0, most=1)

    @property
    def forwards(self) -> int:
        return 3

    @property
    def scalars(self) -> int:
        return 2

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        """Takes a step; `loss` is that of the long batch, and its gradients are the short one's."""
        given, direction = as_loss(loss), Direction(self.seed, number)
        slope, value = self._slope(given, direction)
        if not math.isfinite(slope):
            return Estimate(value, Record((np.float32(0), np.float32(0)), lr, SKIPPED))
        exact = self.descend(number, given, lr, 1 - self.zo_weight)
        if exact.record.skipped:
            return Estimate(exact.loss, Record((np.float32(0), np.float32(0)), lr, SKIPPED))
        self.changed = True
        self.arena.add(Term(direction, np.float32(-float(lr) * self.zo_weight * slope)))
        return Estimate(
            (value + exact.loss) / 2, Record((np.float32(slope), *exact.record.scalars), lr)
        )

    def _slope(self, loss: Callable[[], float], direction: Direction) -> tuple[float, float]:
        """Returns the projected gradient along `direction`, and the mean of both losses."""
        self.changed = True
        self.arena.add(Term(direction, np.float32(self.eps)))
        higher = loss()
        self.arena.add(Term(direction, np.float32(-2 * self.eps)))
        lower = loss()
        self.arena.add(Term(direction, np.float32(self.eps)))
        return (higher - lower) / (2 * self.eps), (higher + lower) / 2


class AddaxWa(Addax):
    """Addax without assignment: both batches are drawn from all rows, whatever their length."""

    name = "addax-wa"
