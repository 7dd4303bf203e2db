r"""MeZO-SVRG: the slope now against the slope at an anchor, along one direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgezo_runtime.late import Scalar
from edgezo_runtime.methods.base import Probe, Slope
from edgezo_runtime.methods.directions import MOST_STEPS, Everywhere
from edgezo_runtime.methods.estimators import StepSize
from edgezo_runtime.methods.options import Number, Whole
from edgezo_runtime.methods.walk import Walk
from edgezo_runtime.sweep import State


class MezoSvrg(Everywhere):
    r"""Variance reduction with a true copy of the weights as the anchor.

    Every q steps the weights become the anchor :math:`\bar\theta`, and that step's slope
    :math:`\bar g` along :math:`\bar z` is kept:

    .. math:: \theta \leftarrow (\theta - \eta a\, \bar g \bar z)(1 - \eta \lambda)

    Each other step measures along one direction z at both places:

    .. math::
        \theta \leftarrow \Bigl(\theta - \eta \bigl((g_\theta - g_{\bar\theta}) z + \bar g \bar z
            \bigr)\Bigr)(1 - \eta \lambda)

    A step sees one batch, so :math:`\bar g` is that of the anchor's batch. Only the anchor is
    stored; its slope is in the records and its direction comes from the seed.

    Settings:
        eps: perturbation scale, in units of the weights.
        interval: q, steps before the anchor is moved.
        anchor_rate: a, the learning rate of the anchor's own steps, as a multiple.

    References:
        Gautam et al., "Variance-reduced Zeroth-Order Methods for Fine-Tuning Language Models",
        ICML 2024.
    """

    name = "mezo-svrg"
    paper = "https://arxiv.org/abs/2404.08080"
    full_lr = 5e-6

    eps = StepSize(1e-3)
    interval = Whole(2, 2, MOST_STEPS)
    anchor_rate = Number(1.0, above=0)

    @property
    def forwards(self) -> int:
        return 4

    @property
    def scalars(self) -> int:
        return 2

    @property
    def memory(self) -> int:
        return self.interval

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        return {"anchor": (np.float32, self.arena.size)}

    def measure(self, walk: Walk) -> list[Slope]:
        direction = self.direction(walk.number)
        if self._anchor_of(walk.number) == walk.number:
            self._remember()
            slope, _ = walk.known(self._slope(walk), 0.0)
            return [Slope(direction, slope, self.eps)]
        here = self._slope(walk)
        self.move(direction, self.eps)
        self._exchange()
        there = self._slope(walk)
        self.move(direction, self.eps)
        self._exchange()
        now, then = walk.known(here, there)
        return [Slope(direction, now - then, 0.0)]

    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        (slope,) = slopes
        length, ways = walk.lr * slope.value, []
        anchor = self._anchor_of(walk.number)
        if anchor == walk.number:
            length = length * self.anchor_rate
        else:
            kept = next((r for number, r in self.past if number == anchor), None)
            if kept is not None:
                ways = [(self.direction(anchor), -walk.lr * float(kept.scalars[0]), 0.0)]
        self.descend(walk, [*ways, (slope.direction, slope.back - length, slope.back)])

    def rate(self, probe: Probe) -> float:
        return 0.5 / probe.curvature  # a step is the sum of two estimates

    def _anchor_of(self, number: int) -> int:
        return number - (number - 1) % self.interval

    def _slope(self, walk: Walk) -> Scalar:
        """Returns the slope where the weights are; they are left at its far end."""
        direction = self.direction(walk.number)
        self.move(direction, self.eps)
        higher = walk.loss()
        self.move(direction, -2 * self.eps)
        return (higher - walk.loss()) / (2 * self.eps)

    def _remember(self) -> None:
        def copy(xp: Any, weights: Any, state: State) -> Any:
            return weights, {"anchor": weights}

        self.arena.update(copy, state=self.state)

    def _exchange(self) -> None:
        """Puts the anchor in the weights' place, and the weights in its."""

        def exchange(xp: Any, weights: Any, state: State) -> Any:
            return state["anchor"], {"anchor": weights}

        self.arena.update(exchange, state=self.state)
