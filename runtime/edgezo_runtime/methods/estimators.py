"""Estimators: how a step measures the slope of the loss along its directions."""

from __future__ import annotations

import functools
import math
import operator
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from edgezo_runtime.arena import Term
from edgezo_runtime.journal import Record
from edgezo_runtime.late import Scalar
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
        return super().memory + (_REMEMBERED if self.median_clip else 0)

    def measure(self, walk: Walk) -> list[Slope]:
        direction, reach = self.direction(walk.number), reach_of(self, walk.number)
        # By way of the middle: what the weights were is nearest to them from here, unless they
        # went past a power of two. From the other end they would come back rounded twice.
        down = [-reach, -reach] if self.narrow else [-2 * reach]
        moves = [[along(direction, reach)], [along(direction, way) for way in down]]
        higher, lower = self.losses(walk, moves)
        (slope,) = walk.known(clipped((higher - lower) / (2 * reach), self.believed))
        return [Slope(direction, clipped(slope, self.usual(self.past)), reach)]

    @property
    def believed(self) -> float:
        """The largest slope that is believed."""
        return math.inf

    def usual(self, past: Sequence[tuple[int, Record]]) -> float:
        """Returns the largest slope that the update of the step after `past` takes."""
        if not self.median_clip:
            return math.inf
        seen = [abs(float(r.scalars[0])) for _, r in past[-_REMEMBERED:] if not r.skipped]
        most = self.median_clip * statistics.median_high(seen) if len(seen) >= _ENOUGH else 0
        return most or math.inf  # where most slopes are 0, any other is no outlier


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
        here, there = self.losses(walk, [[], [along(direction, reach)]])
        (slope,) = walk.known((there - here) / reach)
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
        losses, span = self.losses(walk, moves), 2 * self.eps
        pairs = zip(losses[::2], losses[1::2], strict=True)
        values = walk.known(*((higher - lower) / span for higher, lower in pairs))
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

    def compared(self, here: Scalar, losses: list[Scalar]) -> list[Scalar]:
        """Returns the slopes of the `losses`; `here` is that at the weights, or 0."""
        raise NotImplementedError


def total(values: Iterable[Scalar]) -> Scalar:
    """Returns the sum, added up in order: that of Python rounds otherwise from 3.12 on."""
    return functools.reduce(operator.add, values)


def clipped(slope: Any, most: float) -> Any:
    """Returns a slope, or what is nearest to it of what is believed."""
    return slope if math.isinf(most) else np.minimum(np.maximum(slope, -most), most)
