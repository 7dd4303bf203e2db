"""Learning-rate schedules. The rate of each step is recorded, so a replay never computes one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgezo_runtime.errors import InputError

_FACTORS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
NAMES = tuple(_FACTORS)


def learning_rate(lr: float, schedule: str, step: int, steps: int | None) -> np.float32:
    r"""Returns the learning rate of `step`, rounded to float32.

    With :math:`p = (step - 1) / steps`: constant :math:`lr`, linear :math:`lr (1 - p)`, cosine
    :math:`lr (1 + \cos \pi p) / 2`.

    Args:
        lr: the rate of the first step.
        schedule: one of `NAMES`.
        step: counts from 1; from the last of `steps` on the rate stays where it ended.
        steps: the run's length; only the constant schedule does without.

    Raises:
        InputError: unknown schedule, or a decaying one without a length.
    """
    if schedule not in _FACTORS:
        raise InputError(f"schedule is {schedule!r}; use one of " + ", ".join(NAMES))
    if schedule == "constant":
        return np.float32(lr)
    if steps is None or steps < 1:
        raise InputError(f"the {schedule} schedule needs the number of steps")
    return np.float32(lr * _FACTORS[schedule]((min(step, steps) - 1) / steps))
