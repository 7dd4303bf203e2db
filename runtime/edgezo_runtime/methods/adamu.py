"""ZO-AdaMU: directions around the momentum of the directions before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgezo_runtime.methods.base import Probe, Slope
from edgezo_runtime.methods.directions import MOST_STEPS, Everywhere
from edgezo_runtime.methods.estimators import StepSize
from edgezo_runtime.methods.options import Number, Whole
from edgezo_runtime.methods.walk import Walk
from edgezo_runtime.sweep import State


class ZoAdaMu(Everywhere):
    r"""Perturbations that mix a fresh direction with one around the momentum M.

    .. math::
        \dot z &= \sqrt{\alpha}\, z_1, \quad \ddot z = M + \sqrt{1 - \alpha}\, z_2, \quad
        m = \alpha \dot z + (1 - \alpha) \ddot z \\
        g &= \frac{L(\theta + \epsilon m) - L(\theta - \epsilon m)}{2 \epsilon}, \quad
        v = \alpha \dot z^2 + (1 - \alpha) \ddot z^2 \\
        \theta &\leftarrow \Bigl(\theta - \eta \frac{g m}{\sqrt{v + \delta}}\Bigr)
            (1 - \eta \lambda), \quad M \leftarrow \mathrm{sign}(g)\, m

    :math:`\alpha` is 1 for `warmup` steps, falls evenly to `least` in `anneal` more, and stays.

    Settings:
        eps: perturbation scale, in units of the weights.
        warmup: steps that do not look back.
        anneal: steps in which alpha falls.
        least: alpha in the end.
        delta: keeps the quotient finite.

    References:
        Jiang et al., "ZO-AdaMU Optimizer: Adapting Perturbation by the Momentum and Uncertainty in
        Zeroth-order Optimization", AAAI 2024.
    """

    name = "zo-adamu"
    paper = "https://arxiv.org/abs/2312.15184"

    eps = StepSize(1e-3)
    warmup = Whole(1000, 0, MOST_STEPS)
    anneal = Whole(10000, 1, MOST_STEPS)
    least = Number(0.5, least=0, most=1)
    delta = Number(1e-8, above=0)

    @property
    def forwards(self) -> int:
        return 2

    @property
    def scalars(self) -> int:
        return 1

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        return {"momentum": (np.float32, self.arena.size)}

    def measure(self, walk: Walk) -> list[Slope]:
        self._shift(walk.number, self.eps)
        higher = walk.loss()
        self._shift(walk.number, -2 * self.eps)
        lower = walk.loss()
        (slope,) = walk.known((higher - lower) / (2 * self.eps))
        self._shift(walk.number, self.eps)
        return [Slope(self.direction(walk.number), slope, 0.0)]

    def _mixed(self, number: int) -> Any:
        """Returns what gives both parts of the perturbation, and their sum."""
        alpha = self._alpha(number)
        fresh, spread = np.float32(math.sqrt(alpha)), np.float32(math.sqrt(1 - alpha))
        new, old = np.float32(alpha), np.float32(1 - alpha)

        def mixed(state: State, first: Any, second: Any) -> tuple[Any, Any, Any]:
            one, other = fresh * first, state["momentum"] + spread * second
            return one, other, new * one + old * other

        return mixed, new, old

    def _alpha(self, number: int) -> float:
        done = min(max((number - 1 - self.warmup) / self.anneal, 0.0), 1.0)
        return 1 - done * (1 - self.least)

    def _shift(self, number: int, coefficient: float) -> None:
        length = np.float32(coefficient)
        mixed, _, _ = self._mixed(number)

        def rule(xp: Any, weights: Any, state: State, first: Any, second: Any) -> Any:
            return weights + length * mixed(state, first, second)[2], {}

        self.arena.update(rule, self._pair(number), state=self.state)

    def _pair(self, number: int) -> tuple[Any, Any]:
        return self.direction(number, 0), self.direction(number, 1)

    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        slope = slopes[0].value
        length, sign = walk.rounded(walk.lr * slope, np.sign(slope))
        delta = np.float32(self.delta)
        mixed, new, old = self._mixed(walk.number)

        def rule(xp: Any, weights: Any, state: State, first: Any, second: Any) -> Any:
            one, other, both = mixed(state, first, second)
            size = xp.sqrt(new * (one * one) + old * (other * other) + delta)
            return weights - length * (both / size), {"momentum": sign * both}

        self.arena.update(rule, self._pair(walk.number), self.decay(walk), self.state)

    def rate(self, probe: Probe) -> float:
        return 1 / probe.curvature
