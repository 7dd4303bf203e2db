"""Diagonal second derivatives: HiZOO scales directions with them, HELENE updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgezo_runtime.methods.base import Probe, Slope
from edgezo_runtime.methods.directions import MOST_STEPS, Everywhere
from edgezo_runtime.methods.estimators import StepSize, TwoPoint
from edgezo_runtime.methods.options import Number, Whole
from edgezo_runtime.methods.rules import LARGEST_SQUARE, Stateful
from edgezo_runtime.methods.walk import Walk
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.power import power
from edgezo_runtime.sweep import Rule, State


class Hizoo(Everywhere, Stateful):
    r"""MeZO along directions scaled by an estimate D of the second derivatives.

    .. math::
        g &= \frac{L(\theta + \epsilon D^{-1/2} z) - L(\theta - \epsilon D^{-1/2} z)}{2 \epsilon} \\
        c &= \frac{|L(\theta + \epsilon D^{-1/2} z) + L(\theta - \epsilon D^{-1/2} z)
            - 2 L(\theta)|}{2 \epsilon^2} \\
        \theta &\leftarrow (\theta - \eta g D^{-1/2} z)(1 - \eta \lambda), \quad
        D \leftarrow (1 - \alpha) D + \alpha c D z^2

    D begins with ones.

    Settings:
        eps: perturbation scale, in units of the weights.
        alpha: how much of D is new in a step.

    References:
        Zhao et al., "Second-Order Fine-Tuning without Pain for LLMs: A Hessian Informed
        Zeroth-Order Optimizer", ICLR 2025.
    """

    name = "hizoo"
    paper = "https://arxiv.org/abs/2402.15173"
    most = LARGEST_SQUARE

    eps = StepSize(1e-3)
    alpha = Number(1e-8, least=0, most=1)

    @property
    def forwards(self) -> int:
        return 3

    @property
    def scalars(self) -> int:
        return 2

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        return {"hessian": (np.float32, self.arena.size)}

    def prepare(self, number: int) -> None:
        if number == 1:
            self.state["hessian"][...] = 1

    def move(self, direction: AnyDirection, coefficient: float) -> None:
        length = np.float32(coefficient)

        def rule(xp: Any, weights: Any, state: State, z: Any) -> Any:
            return weights + length * (z / xp.sqrt(state["hessian"])), {}

        self.arena.update(rule, (direction,), state=self.state)

    def measure(self, walk: Walk) -> list[Slope]:
        direction = self.direction(walk.number)
        here = walk.loss()
        self.move(direction, self.eps)
        higher = walk.loss()
        self.move(direction, -2 * self.eps)
        lower = walk.loss()
        bend = abs(higher + lower - 2 * here) / (2 * self.eps * self.eps)
        slope, self._bend = walk.known((higher - lower) / (2 * self.eps), bend)
        return [Slope(direction, slope, self.eps)]

    def rule(self, walk: Walk, slopes: Sequence[Slope]) -> Rule:
        length, new = walk.rounded(walk.lr * slopes[0].value, self.alpha * self._bend)
        kept = np.float32(1 - self.alpha)

        def rule(xp: Any, weights: Any, state: State, z: Any) -> Any:
            before = state["hessian"]
            after = kept * before + new * (before * (z * z))
            return weights - length * (z / xp.sqrt(before)), {"hessian": after}

        return rule

    def rate(self, probe: Probe) -> float:
        return 1 / probe.curvature


class Helene(Everywhere, TwoPoint, Stateful):
    r"""Annealed momentum over clipped diagonal second derivatives.

    .. math::
        \alpha_t &= \beta_1 + (1 - \beta_1)(1 - 1/T)^t, \quad
            m \leftarrow \beta_1 m + \alpha_t g z \\
        h &\leftarrow \beta_2 h + (1 - \beta_2)(g z)^2 \quad \text{every k steps} \\
        \theta &\leftarrow \Bigl(\theta - \eta \frac{m}{\gamma \max(h, \ell) + \delta}\Bigr)
            (1 - \eta \lambda)

    Settings:
        beta1: of the momentum.
        beta2: of the second derivatives.
        anneal: T, in steps.
        interval: k, steps between estimates of the second derivatives.
        gamma: scales them.
        floor: l, the smallest one that counts.
        delta: keeps the quotient finite.

    References:
        Zhao et al., "HELENE: Hessian Layer-wise Clipping and Gradient Annealing for Accelerating
        Fine-Tuning LLM with Zeroth-Order Optimization", EMNLP 2025.
    """

    name = "helene"
    paper = "https://arxiv.org/abs/2411.10696"
    full_lr = 1e-4
    most = LARGEST_SQUARE

    beta1 = Number(0.9, least=0, below=1)
    beta2 = Number(0.99, least=0, below=1)
    anneal = Whole(1000, 1, MOST_STEPS)
    interval = Whole(1, 1, MOST_STEPS)
    gamma = Number(1.0, above=0)
    floor = Number(1.0, above=0)
    delta = Number(1e-8, above=0)

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        return {name: (np.float32, self.arena.size) for name in ("momentum", "hessian")}

    def rule(self, walk: Walk, slopes: Sequence[Slope]) -> Rule:
        annealed = self.beta1 + (1 - self.beta1) * power(1 - 1 / self.anneal, walk.number)
        g, lr, share = walk.rounded(slopes[0].value, walk.lr, annealed)
        beta1, beta2 = np.float32(self.beta1), np.float32(self.beta2)
        new = np.float32(1 - self.beta2)
        gamma, floor, delta = (np.float32(x) for x in (self.gamma, self.floor, self.delta))
        due = (walk.number - 1) % self.interval == 0

        def rule(xp: Any, weights: Any, state: State, z: Any) -> Any:
            gradient = g * z
            changed = {"momentum": beta1 * state["momentum"] + share * gradient}
            if due:
                changed["hessian"] = beta2 * state["hessian"] + new * (gradient * gradient)
            scale = gamma * xp.maximum({**state, **changed}["hessian"], floor) + delta
            return weights - lr * (changed["momentum"] / scale), changed

        return rule

    def rate(self, probe: Probe) -> float:
        scale = self.gamma * max(probe.slope * probe.slope, self.floor)
        return (1 - self.beta1) * scale / probe.curvature
