"""What a device has computed, or is about to, and the host need not wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class LateLoss(Protocol):
    """The mean loss of a forward pass."""

    def __call__(self) -> float:
        """Waits for the loss, in nats."""
        ...


@dataclass(frozen=True)
class LateSlope:
    """A slope of the loss.

    Attributes:
        address: where the device keeps it, float64 with the value of a float32.
        skipped: where the device keeps whether its step is skipped: float64, 0 if it is not.
        wait: waits for the slope; 0 if its step is skipped.
    """

    address: int
    skipped: int
    wait: Callable[[], float]

    def __float__(self) -> float:
        return self.wait()


class Found(NamedTuple):
    """What a step found out: its losses, its slopes, and whether one of them was not finite."""

    losses: list[float]
    slopes: tuple[np.float32, ...]
    skipped: bool


class LateSlopes(Protocol):
    """The slopes of one step."""

    @property
    def each(self) -> Sequence[LateSlope]:
        """The slopes, in their order."""
        ...

    def wait(self) -> Found:
        """Waits for all; the slopes are 0 if the step is skipped."""
        ...
