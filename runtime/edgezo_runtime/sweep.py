"""What a sweep is, whichever device runs it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.bundle import Parameter
from edgezo_runtime.noise import Direction

ONE = np.float32(1)


@dataclass(frozen=True)
class Term:
    """One addition of a sweep: ``w <- (w + coefficient * z) * decay``.

    Attributes:
        direction: names z.
        coefficient: rounded to float32.
        decay: multiplies the weights that decay (matrices), after the addition.
    """

    direction: Direction
    coefficient: np.float32
    decay: np.float32 = ONE


@dataclass(frozen=True)
class Placed:
    """A parameter and where it lies.

    Attributes:
        parameter: name, shape and dtype.
        weights: its elements, flat, on the arena's device.
        offset: of its first element in the noise's index space.
    """

    parameter: Parameter
    weights: Any
    offset: int

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices only."""
        return len(self.parameter.shape) >= 2


class Sweeper(abc.ABC):
    """Changes the weights of one arena where they lie."""

    most_terms = 4  # that one pass over the memory takes

    @abc.abstractmethod
    def sweep(self, terms: Sequence[Term]) -> None:
        """Adds each of `terms`, at most `most_terms`, rounding to the storage dtype between."""
