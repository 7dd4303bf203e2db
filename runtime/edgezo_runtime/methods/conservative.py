"""Conservative SGD: a step that is kept only where it helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgezo_runtime.arena import Term
from edgezo_runtime.journal import ACCEPTED, REVERSED
from edgezo_runtime.methods.base import Probe, Slope
from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import TwoPoint
from edgezo_runtime.methods.walk import Walk


class ZoSgdCons(Everywhere, TwoPoint):
    r"""SGD that looks at where a step would lead, forth and back, and takes the best.

    .. math::
        \theta \leftarrow \operatorname*{arg\,min}_{\theta' \in
            \{\theta,\ \theta - \eta g z,\ \theta + \eta g z\}} L(\theta')

    Weight decay applies where the weights moved. The record's flags hold the choice.

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "zo-sgd-cons"
    paper = "https://arxiv.org/abs/2402.11592"

    @property
    def forwards(self) -> int:
        return 5

    @property
    def late(self) -> bool:
        return False  # the losses decide where it goes

    def measure(self, walk: Walk) -> list[Slope]:
        self._here = walk.loss()
        return super().measure(walk)

    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        (slope,) = slopes
        length = walk.lr * slope.value
        self.move(slope.direction, slope.back - length)
        down = walk.loss()
        self.move(slope.direction, 2 * length)
        up = walk.loss()
        best = min((loss for loss in (self._here, down, up) if loss == loss), default=self._here)
        choice = walk.choice(0 if best == self._here else ACCEPTED if best == down else REVERSED)
        back = {0: -length, ACCEPTED: -2 * length, REVERSED: 0.0}[choice]
        decay = self.decay(walk) if choice else np.float32(1)
        self.arena.defer(Term(slope.direction, np.float32(back), decay))

    def rate(self, probe: Probe) -> float:
        return 1 / probe.curvature
