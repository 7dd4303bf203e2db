r"""A learning rate for a new task, from a few looks at its loss.

Along the directions that a method would take, on the first batches, the loss is seen at the weights
and at both ends of a perturbation. Two things bound a step of plain SGD, :math:`\eta g z`:

.. math:: \frac{1}{\eta} = \max\Bigl(\overline{|z^T H z|},\ \frac{2 g_{rms}}{\epsilon}\Bigr)

The second derivative along random directions, whose mean is the trace of the Hessian: on a
quadratic, the loss falls fastest at its inverse, and rises from twice that on. And the perturbation
itself, over which the slope was measured: a step goes half as far. The first bounds small models,
the second language models, whose loss bends little and either way along random directions. Each
update rule turns both into its own rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.methods.base import Method, Probe

PROBES = 8  # batches, with three forward passes each
_EPS = 1e-3  # for methods that perturb nothing


@dataclass(frozen=True)
class Found:
    """A learning rate, and what it was found from; see `Probe`."""

    lr: float
    slope: float
    curvature: float


def find_rate(method: Method, losses: Sequence[Callable[[], float]]) -> Found:
    """Finds a learning rate for `method`; it changes the method's state and the weights.

    Args:
        method: before its first step; make it and load the weights again afterwards.
        losses: each returns the loss of another batch at the arena's present weights.

    Raises:
        EdgezoError: the loss is not finite near the weights, or is the same everywhere.
    """
    eps = float(method.settings().get("eps", _EPS * method.stride))
    slopes, bends = [], []
    method.prepare(1)
    for number, loss in enumerate(losses, start=1):
        direction = method.direction(number)
        found = []
        for move in (0.0, eps, -2 * eps):
            if move:
                method.move(direction, move)
            method.arena.add()
            found.append(loss())
        method.move(direction, eps)
        here, higher, lower = found
        slopes.append((higher - lower) / (2 * eps))
        bends.append(abs(higher + lower - 2 * here) / (eps * eps))
    method.arena.add()
    slope = float(np.sqrt(np.mean(np.square(slopes))))
    curvature = max(float(np.mean(bends)), 2 * slope / eps)
    if not (math.isfinite(curvature) and slope > 0):
        raise EdgezoError(
            f"no learning rate was found: within eps {eps:g} of the weights the loss is not finite "
            "or does not change; give another --eps, or --lr"
        )
    return Found(float(np.float32(method.rate(Probe(slope, curvature)))), slope, curvature)
