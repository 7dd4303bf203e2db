"""What methods share that step by a zeroth-order estimate and by true gradients at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgezo_runtime.arena import Term
from edgezo_runtime.first_order import rules
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.methods.base import Estimate
from edgezo_runtime.methods.estimators import StepSize
from edgezo_runtime.methods.first_order import FirstOrder, as_loss
from edgezo_runtime.methods.options import Number
from edgezo_runtime.noise import Direction
from edgezo_runtime.sweep import ONE


class Mixed(FirstOrder):
    r"""Goes down a true gradient and along a direction whose slope it estimates, in place.

    .. math:: g_0 = \frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon}

    Settings:
        eps: perturbation scale, in units of the weights.
        zo_weight: alpha, what the estimate's update is multiplied by.
    """

    rule = rules.Sgd
    keep_products = Number(0.0, least=0, most=1)

    family = "hybrid"
    eps = StepSize(1e-3)
    zo_weight = Number(1e-3, least=0, most=1)

    @property
    def forwards(self) -> int:
        return 3

    @property
    def scalars(self) -> int:
        return 2

    @property
    def exact_weight(self) -> float:
        """What the gradient is multiplied by."""
        return 1.0

    def direction(self, number: int) -> Direction:
        """Returns the direction of step `number`'s estimate."""
        return Direction(self.seed, number)

    def decay(self, lr: float) -> np.float32:
        """Returns what the estimate's matrices are multiplied by after the update."""
        return ONE

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        """Takes a step with the estimate on one batch of `loss` and the gradient on its other."""
        self.changed = False
        given, direction = as_loss(loss), self.direction(number)
        slope, value = self._slope(given, direction)
        if not math.isfinite(slope):
            return Estimate(value, Record((np.float32(0), np.float32(0)), lr, SKIPPED))
        exact = self.descend(number, given, lr, self.exact_weight)
        if exact.record.skipped:
            return Estimate(exact.loss, Record((np.float32(0), np.float32(0)), lr, SKIPPED))
        self.changed = True
        length = np.float32(-float(lr) * self.zo_weight * slope)
        self.arena.add(Term(direction, length, self.decay(float(lr))))
        return Estimate(
            (value + exact.loss) / 2, Record((np.float32(slope), *exact.record.scalars), lr)
        )

    def _slope(self, loss: Callable[[], float], direction: Direction) -> tuple[float, float]:
        """Returns the projected gradient along `direction`, and the mean of both losses."""
        self.changed = True  # until they are back; within a sweep nobody knows how
        losses, way = [], np.float32(0)
        for move in (self.eps, -2 * self.eps):
            self.arena.add(Term(direction, np.float32(move)))
            way += np.float32(move)
            try:
                losses.append(loss())
            except BaseException:
                self._go_back(direction, way)
                raise
        self._go_back(direction, way)
        higher, lower = losses
        return (higher - lower) / (2 * self.eps), (higher + lower) / 2

    def _go_back(self, direction: Direction, way: np.float32) -> None:
        self.arena.add(Term(direction, -way))
        self.changed = False
