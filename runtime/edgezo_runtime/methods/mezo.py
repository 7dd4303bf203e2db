r"""MeZO: stochastic gradient descent on a two-point estimate, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.methods.base import Estimate, Method, check_float32, check_scale
from edgezo_runtime.noise import Direction


class Mezo(Method):
    r"""Memory-efficient zeroth-order SGD.

    .. math::
        g &= \frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon} \\
        \theta &\leftarrow (\theta - \eta g z)(1 - \eta \lambda)

    The direction z is regenerated from the seed, never stored. Restoring the weights and updating
    them is one addition, :math:`(\epsilon - \eta g) z`, which small updates of 16-bit weights need
    to survive. Weight decay :math:`\lambda` applies to matrices only.

    Args:
        arena: the trained weights.
        seed: names all directions of the run.
        eps: perturbation scale, in units of the weights.
        weight_decay: decoupled from the gradient, times the learning rate.
        distribution: of z, one of `noise.DISTRIBUTIONS`.

    Raises:
        InputError: a setting is out of range, or the weights are 16-bit floats: the roundings of
            +eps and -2 eps then add up to several per cent of the weights' scale within 20,000
            steps.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023.
    """

    name = "mezo"
    paper = "https://arxiv.org/abs/2305.17333"

    def __init__(
        self,
        arena: Arena,
        seed: int,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        distribution: str = "binomial",
    ) -> None:
        super().__init__(arena, seed)
        check_scale(eps, weight_decay, distribution)
        check_float32(arena)
        self.eps = eps
        self.weight_decay = weight_decay
        self.distribution = distribution

    @property
    def forwards(self) -> int:
        return 2

    @property
    def scalars(self) -> int:
        return 1

    def settings(self) -> dict[str, Any]:
        return {
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "distribution": self.distribution,
        }

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        forth, back = self._perturbations(number)
        self.arena.add(forth)
        higher = loss()
        self.arena.add(back)
        lower = loss()
        with np.errstate(over="ignore", invalid="ignore"):
            projected_grad = self._slope(higher, lower)
        record = Record((projected_grad,), lr)
        if not (np.isfinite(projected_grad) and np.isfinite(self._coefficient(record))):
            record = Record((np.float32(0),), lr, SKIPPED)
        self.arena.defer(self._update(number, record))
        return Estimate((higher + lower) / 2, record)

    def _slope(self, higher: float, lower: float) -> np.float32:
        """Returns the projected gradient."""
        return np.float32((higher - lower) / (2 * self.eps))

    def replay(self, number: int, record: Record) -> None:
        self.arena.add(*self._perturbations(number), self._update(number, record))

    def _direction(self, number: int) -> Direction:
        return Direction(self.seed, number, 0, self.distribution)

    def _perturbations(self, number: int) -> tuple[Term, Term]:
        direction = self._direction(number)
        return (
            Term(direction, np.float32(self.eps)),
            Term(direction, np.float32(-2 * self.eps)),
        )

    def _update(self, number: int, record: Record) -> Term:
        direction = self._direction(number)
        if record.skipped:
            return Term(direction, np.float32(self.eps))
        decay = np.float32(1 - float(record.lr) * self.weight_decay)
        return Term(direction, self._coefficient(record), decay)

    def _coefficient(self, record: Record) -> np.float32:
        (projected_grad,) = record.scalars
        with np.errstate(over="ignore"):
            return np.float32(self.eps - float(record.lr) * float(projected_grad))
