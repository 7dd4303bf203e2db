"""What every tuning method is: a step that asks for losses, and a replay that does not."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.journal import Record


@dataclass(frozen=True)
class Estimate:
    """What a step found out.

    Attributes:
        loss: the loss near the weights before the update, in nats.
        record: what the update was computed from; a replay gets nothing else.
    """

    loss: float
    record: Record


class Method(abc.ABC):
    """A tuning method over one arena.

    An update depends on the seed, the step's number, the record and the method's own state, and on
    nothing else.

    Attributes:
        name: as `--method` takes it.
        paper: where it comes from.
        forwards: forward passes per step.
        scalars: numbers that a record holds besides the learning rate.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    forwards: ClassVar[int]
    scalars: ClassVar[int]

    def __init__(self, arena: Arena, seed: int) -> None:
        self.arena = arena
        self.seed = seed

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns the settings that, with the seed, make this method again."""

    @abc.abstractmethod
    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        """Estimates the gradient with calls of `loss` and updates the arena.

        Args:
            number: the step's number, from 1.
            loss: returns the loss of this step's batch at the arena's present weights.
            lr: this step's learning rate.
        """

    @abc.abstractmethod
    def replay(self, number: int, record: Record) -> None:
        """Changes the arena as step `number` did when it made `record`, to the last bit."""
