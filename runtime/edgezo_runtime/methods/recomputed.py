"""Momentum and Adam without state: their moments come from the last records, each time anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgezo_runtime.late import Scalar
from edgezo_runtime.methods.base import Probe, Slope
from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import TwoPoint, clipped
from edgezo_runtime.methods.options import Number, Whole
from edgezo_runtime.methods.rules import LARGEST_SQUARE
from edgezo_runtime.methods.walk import Walk
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.power import power
from edgezo_runtime.sweep import State


class _Recomputed(TwoPoint):
    """A rule over the last steps' estimates, whose directions are drawn again.

    Settings:
        window: h, how many of the last estimates it takes, this step's included.
    """

    window = Whole(10, 1, 256)

    @property
    def memory(self) -> int:
        return super().memory + self.window - 1

    def earlier(self, number: int) -> list[tuple[int, AnyDirection, float]]:
        """Returns age, direction and slope of each earlier estimate that was not skipped."""
        past = self.past
        return [
            (number - step, self.direction(step), float(clipped(slope, self.usual(past[:place]))))
            for place, (step, record) in enumerate(past)
            if number - step < self.window and not record.skipped
            for slope in map(float, record.scalars)
        ]


class MezoMomentum(Everywhere, _Recomputed):
    r"""Momentum recomputed from the last h steps' seeds and slopes.

    .. math::
        \theta_t = \Bigl(\theta_{t-1} - \eta \sum_{k=0}^{h-1} \beta^k g_{t-k} z_{t-k}\Bigr)
            (1 - \eta \lambda)

    Each of the h directions is one addition to the weights; nothing is stored.

    Settings:
        beta: how much of the momentum stays.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023,
        appendix B.
    """

    name = "mezo-momentum"
    paper = "https://arxiv.org/abs/2305.17333"
    full_lr = 1e-6

    beta = Number(0.9, least=0, below=1)

    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        (now,) = slopes
        earlier = [
            (direction, -walk.lr * (power(self.beta, age) * slope), 0.0)
            for age, direction, slope in self.earlier(walk.number)
        ]
        last = now.direction, now.back - walk.lr * now.value, now.back
        self.descend(walk, [*earlier, last])

    def rate(self, probe: Probe) -> float:
        return (1 - self.beta) / ((1 - power(self.beta, self.window)) * probe.curvature)


class MezoAdam(Everywhere, _Recomputed):
    r"""Adam whose moments are recomputed from the last h steps' seeds and slopes.

    .. math::
        m &= \frac{\sum_k \beta_1^k g_{t-k} z_{t-k}}{\sum_k \beta_1^k}, \quad
        v = \frac{\sum_k \beta_2^k (g_{t-k} z_{t-k})^2}{\sum_k \beta_2^k},
        \quad k = 0 \dots h - 1 \\
        \theta &\leftarrow \Bigl(\theta - \eta \frac{m}{\sqrt{v} + \delta}\Bigr)(1 - \eta \lambda)

    Settings:
        beta1: of the first moment.
        beta2: of the second moment.
        delta: keeps the quotient finite.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023,
        appendix B; Cai, Chen and Zhu, "AdaMeZO", 2026.
    """

    name = "mezo-adam"
    paper = "https://arxiv.org/abs/2605.00650"
    full_lr = 5e-5
    most = LARGEST_SQUARE

    beta1 = Number(0.9, least=0, below=1)
    beta2 = Number(0.999, least=0, below=1)
    delta = Number(1e-8, above=0)

    @property
    def late(self) -> bool:
        return self.window <= self.arena.sweeper.most_directions

    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        self.restore(slopes)
        (now,) = slopes
        seen: list[tuple[int, AnyDirection, Scalar]] = [(0, now.direction, now.value)]
        seen += self.earlier(walk.number)
        shares1, shares2 = (
            _shares([power(beta, age) for age, *_ in seen]) for beta in (self.beta1, self.beta2)
        )
        gs = walk.rounded(*(slope for *_, slope in seen))
        lr, delta = np.float32(walk.lr), np.float32(self.delta)

        def rule(xp: Any, weights: Any, state: State, *zs: Any) -> Any:
            first = second = np.float32(0)
            for share1, share2, g, z in zip(shares1, shares2, gs, zs, strict=True):
                gradient = g * z
                first = first + share1 * gradient
                second = second + share2 * (gradient * gradient)
            return weights - lr * (first / (xp.sqrt(second) + delta)), {}

        directions = tuple(direction for _, direction, _ in seen)
        self.arena.update(rule, directions, self.decay(walk))

    def rate(self, probe: Probe) -> float:
        return probe.slope / probe.curvature


def _shares(weights: list[float]) -> list[np.float32]:
    whole = sum(weights)
    return [np.float32(weight / whole) for weight in weights]
