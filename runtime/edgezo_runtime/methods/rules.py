"""Update rules: what a step does with the slopes that it measured.

In floating point all of them are float32, operation by operation, so that every device gets the
same bits; powers are repeated multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgezo_runtime.late import Scalar
from edgezo_runtime.methods.base import Method, Probe, Slope
from edgezo_runtime.methods.options import Number
from edgezo_runtime.methods.walk import Walk
from edgezo_runtime.power import power
from edgezo_runtime.sweep import Rule, State

LARGEST_SQUARE = 1e18  # slopes below it, times z, have squares in float32


class Sgd(Method):
    r"""Gradient descent, fused with the way back.

    .. math:: \theta \leftarrow \Bigl(\theta - \frac{\eta}{n} \sum_i g_i z_i\Bigr)(1 - \eta \lambda)
    """

    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        rate = walk.lr / len(slopes)
        self.descend(
            walk, [(s.direction, s.back - rate * self.length(s.value), s.back) for s in slopes]
        )

    @property
    def updates_at_once(self) -> bool:
        return self.estimates == 1

    def length(self, slope: Scalar) -> Scalar:
        """Returns how far an update goes for a slope, times the rate."""
        return slope

    def rate(self, probe: Probe) -> float:
        return self.estimates / probe.curvature


class FixedLength(Sgd):
    r"""A step of fixed length down the slope.

    .. math:: \theta \leftarrow (\theta - \eta\, \mathrm{sign}(g) z)(1 - \eta \lambda)
    """

    def length(self, slope: Scalar) -> Scalar:
        return np.sign(slope)

    def rate(self, probe: Probe) -> float:
        return probe.slope / probe.curvature


class Stateful(Method):
    """A rule that goes through the weights element by element."""

    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        self.restore(slopes)
        directions = tuple(slope.direction for slope in slopes)
        self.arena.update(self.rule(walk, slopes), directions, self.decay(walk), self.state)

    def rule(self, walk: Walk, slopes: Sequence[Slope]) -> Rule:
        """Returns the new weights' formula; see `Arena.update`."""
        raise NotImplementedError


class Sign(Stateful):
    r"""Every weight moves by the learning rate.

    .. math:: \theta \leftarrow (\theta - \eta\, \mathrm{sign}(g z))(1 - \eta \lambda)
    """

    def rule(self, walk: Walk, slopes: Sequence[Slope]) -> Rule:
        (slope,) = slopes
        (length,) = walk.rounded(walk.lr * np.sign(slope.value))

        def rule(xp: Any, weights: Any, state: State, z: Any) -> Any:
            return weights - length * xp.sign(z), {}

        return rule

    def rate(self, probe: Probe) -> float:
        return probe.slope / probe.curvature


class Momentum(Stateful):
    r"""Heavy ball.

    .. math::
        v &\leftarrow \beta v + g z \\
        \theta &\leftarrow (\theta - \eta v)(1 - \eta \lambda)

    Settings:
        beta: how much of the momentum stays.
    """

    beta = Number(0.9, least=0, below=1)

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        return {"momentum": (np.float32, self.arena.size)}

    def rule(self, walk: Walk, slopes: Sequence[Slope]) -> Rule:
        (slope,) = slopes
        beta, g, lr = walk.rounded(self.beta, slope.value, walk.lr)

        def rule(xp: Any, weights: Any, state: State, z: Any) -> Any:
            momentum = beta * state["momentum"] + g * z
            return weights - lr * momentum, {"momentum": momentum}

        return rule

    def rate(self, probe: Probe) -> float:
        return (1 - self.beta) / probe.curvature


class Adam(Stateful):
    r"""Adam on the estimate :math:`\hat g = g z`, t being the step's number.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) \hat g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) \hat g^2 \\
        \theta &\leftarrow \Bigl(\theta - \eta \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t)} + \delta}\Bigr)(1 - \eta \lambda)

    Settings:
        beta1: of the first moment.
        beta2: of the second moment.
        delta: keeps the quotient finite.
    """

    most = LARGEST_SQUARE
    beta1 = Number(0.9, least=0, below=1)
    beta2 = Number(0.999, least=0, below=1)
    delta = Number(1e-8, above=0)

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        return {name: (np.float32, self.arena.size) for name in ("first", "second")}

    def rule(self, walk: Walk, slopes: Sequence[Slope]) -> Rule:
        (slope,) = slopes
        g, lr, delta = walk.rounded(slope.value, walk.lr, self.delta)
        keep1, keep2 = np.float32(self.beta1), np.float32(self.beta2)
        take1, take2 = np.float32(1 - self.beta1), np.float32(1 - self.beta2)
        whole1 = np.float32(1 - power(self.beta1, walk.number))
        whole2 = np.float32(1 - power(self.beta2, walk.number))

        def rule(xp: Any, weights: Any, state: State, z: Any) -> Any:
            gradient = g * z
            first = keep1 * state["first"] + take1 * gradient
            second = keep2 * state["second"] + take2 * (gradient * gradient)
            size = xp.sqrt(second / whole2) + delta
            return weights - lr * ((first / whole1) / size), {"first": first, "second": second}

        return rule

    def rate(self, probe: Probe) -> float:
        return probe.slope / probe.curvature
