r"""Evolution strategies: several one-sided samples a step, each other's baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.methods.base import Estimate, Method, check_float32, check_scale
from edgezo_runtime.noise import Direction

MOST_SAMPLES = 256


class EvolutionStrategies(Method):
    r"""n directions for n forward passes on one batch.

    .. math::
        l_i &= L(\theta + \epsilon z_i), \quad i = 1 \dots n \\
        g_i &= \frac{1}{\epsilon} \Bigl(l_i - \frac{1}{n - 1} \sum_{j \neq i} l_j\Bigr) \\
        \theta &\leftarrow \Bigl(\theta - \frac{\eta}{n} \sum_i g_i z_i\Bigr)(1 - \eta \lambda)

    The mean of the other samples is a baseline that costs no forward pass and takes out what all of
    them share, curvature included. A two-point estimate spends two passes on one direction; this
    one sees nearly twice as many for the same passes, at the price of a bias of order
    :math:`\epsilon^2`.

    Args:
        arena: the trained weights.
        seed: names all directions of the run.
        eps: perturbation scale, in units of the weights.
        weight_decay: decoupled from the gradient, times the learning rate; matrices only.
        samples: n, from 2 on.
        distribution: of z, one of `noise.DISTRIBUTIONS`.

    Raises:
        InputError: a setting is out of range, or the weights are 16-bit floats (see `Mezo`).

    References:
        Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning",
        2017; Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019.
    """

    name = "es"
    paper = "https://arxiv.org/abs/1703.03864"

    def __init__(
        self,
        arena: Arena,
        seed: int,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        samples: int = 8,
        distribution: str = "binomial",
    ) -> None:
        super().__init__(arena, seed)
        if not 2 <= samples <= MOST_SAMPLES:
            raise InputError(f"samples is {samples}; use a whole number from 2 to {MOST_SAMPLES}")
        check_scale(eps, weight_decay, distribution)
        check_float32(arena)
        self.eps = eps
        self.weight_decay = weight_decay
        self.samples = samples
        self.distribution = distribution

    @property
    def forwards(self) -> int:
        return self.samples

    @property
    def scalars(self) -> int:
        return self.samples

    def settings(self) -> dict[str, Any]:
        return {
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "samples": self.samples,
            "distribution": self.distribution,
        }

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        losses = np.empty(self.samples)
        for sample in range(self.samples):
            self.arena.add(*self._moves(number, sample))
            losses[sample] = loss()
        with np.errstate(over="ignore", invalid="ignore"):
            baselines = (losses.sum() - losses) / (self.samples - 1)
            slopes = ((losses - baselines) / self.eps).astype(np.float32)
        record = Record(tuple(slopes), lr)
        if not np.isfinite([term.coefficient for term in self._updates(number, record)]).all():
            record = Record((np.float32(0),) * self.samples, lr, SKIPPED)
        self.arena.defer(*self._updates(number, record))
        return Estimate(float(losses.mean()), record)

    def replay(self, number: int, record: Record) -> None:
        moves = [self._moves(number, sample) for sample in range(self.samples)]
        self.arena.add(*(term for pair in moves for term in pair), *self._updates(number, record))

    def _direction(self, number: int, sample: int) -> Direction:
        return Direction(self.seed, number, sample, self.distribution)

    def _moves(self, number: int, sample: int) -> tuple[Term, ...]:
        """Returns the way from the last sample's weights to those of `sample`."""
        forth = Term(self._direction(number, sample), np.float32(self.eps))
        if sample == 0:
            return (forth,)
        return Term(self._direction(number, sample - 1), np.float32(-self.eps)), forth

    def _updates(self, number: int, record: Record) -> tuple[Term, ...]:
        """Returns the update along each direction; the last one's sample is also taken back."""
        last = self.samples - 1
        if record.skipped:
            return (Term(self._direction(number, last), np.float32(-self.eps)),)
        rate = float(record.lr) / self.samples
        decay = np.float32(1 - float(record.lr) * self.weight_decay)
        terms = []
        for sample, slope in enumerate(record.scalars):
            taken_back = self.eps if sample == last else 0.0
            with np.errstate(over="ignore"):
                coefficient = np.float32(-taken_back - rate * float(slope))
            direction = self._direction(number, sample)
            terms.append(Term(direction, coefficient, decay if sample == last else np.float32(1)))
        return tuple(terms)
