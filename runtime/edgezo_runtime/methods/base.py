"""What every tuning method is: a step that asks for losses, and a replay that does not."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import Record
from edgezo_runtime.noise import DISTRIBUTIONS

# What eps may be, so that it and twice it are normal float32 numbers.
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max) / 2


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

    def __init__(self, arena: Arena, seed: int) -> None:
        self.arena = arena
        self.seed = seed

    @property
    @abc.abstractmethod
    def forwards(self) -> int: ...

    @property
    @abc.abstractmethod
    def scalars(self) -> int: ...

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


def check_scale(eps: float, weight_decay: float, distribution: str) -> None:
    """Raises InputError where a setting that most methods have is out of range."""
    if not (math.isfinite(eps) and _SMALLEST <= eps <= _LARGEST):
        raise InputError(f"eps is {eps}; use a number above 0, such as 1e-3")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight decay is {weight_decay}; use 0 or a number above it")
    if distribution not in DISTRIBUTIONS:
        raise InputError(
            f"distribution is {distribution!r}; use one of " + ", ".join(DISTRIBUTIONS)
        )


def check_float32(arena: Arena) -> None:
    """Raises InputError if 16-bit weights would be perturbed in place."""
    for parameter in arena.parameters:
        if parameter.dtype != dtypes.FLOAT32.name:
            raise InputError(
                f"{parameter.name} is {parameter.dtype}: perturbing 16-bit weights in place "
                "adds up rounding errors; export the model as float32 to tune it"
            )
