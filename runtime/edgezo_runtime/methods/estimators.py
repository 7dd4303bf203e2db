"""Estimators: how a step measures the slope of the loss along its directions."""

from __future__ import annotations

import math
import statistics
from typing import ClassVar, SupportsFloat

from edgezo_runtime.arena import Term
from edgezo_runtime.methods.base import Method, Slope, along
from edgezo_runtime.methods.options import Number, Whole
from edgezo_runtime.methods.walk import Walk

# What eps may be, so that it and twice it are normal float32 numbers; nobody asks for the ends.
SMALLEST_EPS = 2.0**-126
LARGEST_EPS = 2.0**127
MOST_SAMPLES = 256
_GOLDEN = 0.6180339887498949  # multiples of it spread evenly over a circle
_REMEMBERED = 64  # slopes whose median clips the next one
_ENOUGH = 8


class StepSize(Number):
    """The setting `eps`; its default is for all weights, whose stride is 1."""

    def __init__(self, default: float) -> None:
        super().__init__(default, above=0, least=SMALLEST_EPS, most=LARGEST_EPS)

    def usual(self, stride: float) -> float:
        return self.default * stride


def reach_of(method: TwoPoint | OneSided, number: int) -> float:
    r"""Returns how far step `number` goes along its direction: eps, or near it in float16.

    .. math:: \epsilon_t = \epsilon\,(0.9 + 0.2\,\{0.618\, t\})

    The noise has few values, so that with one eps it would hang on their fractions alone which
    weights a small update moves.
    """
    if not method.narrow:
        return method.eps
    return method.eps * (0.9 + 0.2 * (number * _GOLDEN % 1.0))


class TwoPoint(Method):
    r"""One direction, seen from both sides.

    .. math:: g = \frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon}

    With `median_clip` c > 0, the update takes g no larger than c times the median of the last 64
    :math:`|g|`; that holds off the few batches that would undo many steps. The record keeps g.

    Settings:
        eps: perturbation scale, in units of the weights.
        median_clip: c, or 0 for none.
    """

    eps = StepSize(1e-3)
    median_clip = Number(0.0, least=0)

    @property
    def forwards(self) -> int:
        return 2

    @property
    def scalars(self) -> int:
        return 1

    @property
    def memory(self) -> int:
        return max(super().memory, _REMEMBERED if self.median_clip else 0)

    def measure(self, walk: Walk) -> list[Slope]:
        direction, reach = self.direction(walk.number), reach_of(self, walk.number)
        # By way of the middle: what the weights were is nearest to them from here, unless they
        # went past a power of two. From the other end they would come back rounded twice.
        down = [-reach, -reach] if self.narrow else [-2 * reach]
        moves = [[along(direction, reach)], [along(direction, way) for way in down]]
        (slope,) = self.slopes(walk, moves, [(0, 1)], 2 * reach, self.believed)
        return [Slope(direction, self._clipped(slope), reach)]

    @property
    def believed(self) -> float:
        """The largest slope that is believed."""
        return math.inf

    @property
    def late(self) -> bool:
        return super().late and not self.median_clip

    def _clipped(self, measured: SupportsFloat) -> SupportsFloat:
        if not self.median_clip:
            return measured
        slope = float(measured)
        seen = [
            abs(float(r.scalars[0])) for _, r in list(self.past)[-_REMEMBERED:] if not r.skipped
        ]
        if len(seen) < _ENOUGH:
            return slope
        most = self.median_clip * statistics.median_high(seen)
        return min(max(slope, -most), most)


class OneSided(Method):
    r"""One direction, seen from the weights and from one side.

    .. math:: g = \frac{L(\theta + \epsilon z) - L(\theta)}{\epsilon}

    Settings:
        eps: perturbation scale, in units of the weights.
    """

    eps = StepSize(1e-3)

    @property
    def forwards(self) -> int:
        return 2

    @property
    def scalars(self) -> int:
        return 1

    def measure(self, walk: Walk) -> list[Slope]:
        direction, reach = self.direction(walk.number), reach_of(self, walk.number)
        (slope,) = self.slopes(walk, [[], [along(direction, reach)]], [(1, 0)], reach)
        return [Slope(direction, slope, -reach)]


class Samples(Method):
    """Several directions a step; an update takes the mean of what they give.

    Settings:
        eps: perturbation scale, in units of the weights.
        samples: n, how many.
    """

    eps = StepSize(1e-3)
    samples = Whole(8, 2, MOST_SAMPLES)

    @property
    def scalars(self) -> int:
        return self.samples

    @property
    def estimates(self) -> int:
        return self.samples


class TwoPointSamples(Samples):
    r"""Several directions, each seen from both sides.

    .. math::
        g_i = \frac{L(\theta + \epsilon z_i) - L(\theta - \epsilon z_i)}{2 \epsilon},
        \quad i = 1 \dots n
    """

    samples = Whole(4, 2, MOST_SAMPLES)

    @property
    def forwards(self) -> int:
        return 2 * self.samples

    def measure(self, walk: Walk) -> list[Slope]:
        directions = [self.direction(walk.number, i) for i in range(self.samples)]
        moves: list[list[Term]] = []
        for i, direction in enumerate(directions):
            back = [along(directions[i - 1], self.eps)] if i else []
            moves += [[*back, along(direction, self.eps)], [along(direction, -2 * self.eps)]]
        pairs = [(2 * i, 2 * i + 1) for i in range(self.samples)]
        values = self.slopes(walk, moves, pairs, 2 * self.eps)
        backs = [0.0] * (self.samples - 1) + [self.eps]
        return [Slope(*each) for each in zip(directions, values, backs, strict=True)]


class OneSidedSamples(Samples):
    """Several directions, each seen from one side; what the losses are compared with is open.

    Attributes:
        centred: whether the loss at the weights is measured, too.
    """

    centred: ClassVar[bool] = False

    def measure(self, walk: Walk) -> list[Slope]:
        directions = [self.direction(walk.number, i) for i in range(self.samples)]
        moves: list[list[Term]] = [[]] if self.centred else []
        for i, direction in enumerate(directions):
            back = [along(directions[i - 1], -self.eps)] if i else []
            moves.append([*back, along(direction, self.eps)])
        losses = self.losses(walk, moves)
        here = losses.pop(0) if self.centred else 0.0
        values = walk.known(*self.compared(here, losses))
        backs = [-0.0] * (self.samples - 1) + [-self.eps]
        return [Slope(*each) for each in zip(directions, values, backs, strict=True)]

    def compared(self, here: float, losses: list[float]) -> list[float]:
        """Returns the slopes of the `losses`; `here` is that at the weights, or 0."""
        raise NotImplementedError
