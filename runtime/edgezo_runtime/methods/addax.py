"""Addax: zeroth-order estimates on long sequences, true gradients on short ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order import rules
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.methods.base import Estimate, check_scale
from edgezo_runtime.methods.first_order import FirstOrder, as_loss
from edgezo_runtime.noise import Direction


class Addax(FirstOrder):
    r"""Mixes a two-point estimate on one batch with the gradient on another, in place.

    .. math::
        g_0 &= \frac{L(\theta + \epsilon z; B_0) - L(\theta - \epsilon z; B_0)}{2 \epsilon} \\
        \theta &\leftarrow \theta - \eta (\alpha g_0 z + (1 - \alpha) \nabla L(\theta; B_1))

    The long sequences, whose activations would take the most memory, are in :math:`B_0`; the short
    ones are in :math:`B_1`.

    Args:
        arena: the trained weights.
        seed: names all directions of the run.
        weight_decay: decoupled, times the learning rate, for matrices.
        eps: perturbation scale, in units of the weights.
        zo_weight: alpha.

    Raises:
        InputError: a setting is out of range, or the weights are 16-bit floats.

    References:
        Li et al., "Addax: Utilizing Zeroth-Order Gradients to Improve Memory Efficiency and
        Performance of SGD for Fine-Tuning Language Models", ICLR 2025.
    """

    name = "addax"
    paper = "https://arxiv.org/abs/2410.06441"
    rule = rules.Sgd
    keeps = False

    def __init__(
        self,
        arena: Arena,
        seed: int,
        weight_decay: float = 0.0,
        eps: float = 1e-3,
        zo_weight: float = 1e-3,
    ) -> None:
        super().__init__(arena, seed, weight_decay)
        check_scale(eps, weight_decay, "binomial")
        if not 0 <= zo_weight <= 1:
            raise InputError(f"zo weight is {zo_weight}; use a number from 0 to 1, such as 1e-3")
        self.eps, self.zo_weight = eps, zo_weight

    @property
    def forwards(self) -> int:
        return 3

    @property
    def scalars(self) -> int:
        return 2

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "eps": self.eps, "zo_weight": self.zo_weight}

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
