"""What a tuning step found out."""

from __future__ import annotations

import numpy as np

from edgezo_runtime.methods import Estimate, Taken
from edgezo_runtime.tuning import Tuning


class Step:
    """One step taken.

    On a card the next step may be taken before this one is done: who asks what it found waits.

    Attributes:
        number: counts from 1.
        lr: the learning rate as used.
        forwards: forward passes over the batch that it took.
    """

    def __init__(self, tuning: Tuning, taken: Taken, lr: np.float32, forwards: int) -> None:
        self._tuning = tuning
        self._taken = taken
        self.number = tuning.steps
        # A method may take another one, as one whose rate holds for a cycle of steps does.
        self.lr = float(lr if taken.late else taken.wait().record.lr)
        self.forwards = forwards

    @property
    def late(self) -> bool:
        """Whether whoever asks for more has to wait."""
        return self._taken.late

    @property
    def loss(self) -> float:
        """The batch's mean loss near the weights before the update, in nats."""
        return self._found.loss

    @property
    def projected_grad(self) -> float:
        """The slope of the loss along the step's direction.

        The root mean square of the slopes where a step has several; the gradient's norm where it is
        a true one.
        """
        slopes = self._found.record.scalars[: self._tuning.method.estimates]
        if len(slopes) == 1:
            return float(slopes[0])
        return float(np.sqrt(np.mean(np.square(slopes, dtype=np.float64))))

    @property
    def skipped(self) -> bool:
        """Whether the slope was not finite, so that nothing was updated."""
        return self._found.record.skipped

    @property
    def _found(self) -> Estimate:
        return self._tuning.found(self._taken)
