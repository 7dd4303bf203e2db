"""Estimators: how a step measures the slope of the loss along its directions."""

from __future__ import annotations

import statistics

from edgezo_runtime.methods.base import Method, Slope
from edgezo_runtime.methods.options import Number, Whole
from edgezo_runtime.methods.walk import Walk

# What eps may be, so that it and twice it are normal float32 numbers; nobody asks for the ends.
SMALLEST_EPS = 2.0**-126
LARGEST_EPS = 2.0**127
MOST_SAMPLES = 256
_GOLDEN = 0.6180339887498949  # multiples of it spread evenly over a circle
_REMEMBERED = 64  # slopes whose median clips the next one
_ENOUGH = 8


def step_size(default: float) -> Number:
    """Returns the setting `eps` with its default."""
    return Number(default, above=0, least=SMALLEST_EPS, most=LARGEST_EPS)


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

    eps = step_size(1e-3)
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
        self.move(direction, reach)
        higher = walk.loss()
        if self.narrow:
            # By way of the middle: what the weights were is nearest to them from here, unless they
            # went past a power of two. From the other end they would come back rounded twice.
            self.move(direction, -reach)
            self.move(direction, -reach)
        else:
            self.move(direction, -2 * reach)
        lower = walk.loss()
        (slope,) = walk.known(self.slope(higher, lower, reach))
        return [Slope(direction, self._clipped(slope), reach)]

    def slope(self, higher: float, lower: float, reach: float) -> float:
        """Returns the projected gradient of the losses at both ends, `reach` from the middle."""
        return (higher - lower) / (2 * reach)

    def _clipped(self, slope: float) -> float:
        if not self.median_clip:
            return slope
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

    eps = step_size(1e-3)

    @property
    def forwards(self) -> int:
        return 2

    @property
    def scalars(self) -> int:
        return 1

    def measure(self, walk: Walk) -> list[Slope]:
        direction, reach = self.direction(walk.number), reach_of(self, walk.number)
        here = walk.loss()
        self.move(direction, reach)
        there = walk.loss()
        (slope,) = walk.known((there - here) / reach)
        return [Slope(direction, slope, -reach)]


class Samples(Method):
    """Several directions a step; an update takes the mean of what they give.

    Settings:
        eps: perturbation scale, in units of the weights.
        samples: n, how many.
    """

    eps = step_size(1e-3)
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
        found = []
        for i, direction in enumerate(directions):
            if i:
                self.move(directions[i - 1], self.eps)
            self.move(direction, self.eps)
            higher = walk.loss()
            self.move(direction, -2 * self.eps)
            found.append((higher - walk.loss()) / (2 * self.eps))
        values = walk.known(*found)
        backs = [0.0] * (self.samples - 1) + [self.eps]
        return [Slope(*each) for each in zip(directions, values, backs, strict=True)]


class OneSidedSamples(Samples):
    """Several directions, each seen from one side; what the losses are compared with is open."""

    def measure(self, walk: Walk) -> list[Slope]:
        directions = [self.direction(walk.number, i) for i in range(self.samples)]
        here = self.baseline(walk)
        losses = []
        for i, direction in enumerate(directions):
            if i:
                self.move(directions[i - 1], -self.eps)
            self.move(direction, self.eps)
            losses.append(walk.loss())
        values = walk.known(*self.compared(here, losses))
        backs = [-0.0] * (self.samples - 1) + [-self.eps]
        return [Slope(*each) for each in zip(directions, values, backs, strict=True)]

    def baseline(self, walk: Walk) -> float:
        """Returns the loss at the weights, where the method wants it."""
        return 0.0

    def compared(self, here: float, losses: list[float]) -> list[float]:
        """Returns the slopes of the `losses`."""
        raise NotImplementedError
