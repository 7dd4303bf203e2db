"""The way through one step: walked with losses when it is taken, without them when it is replayed.

A method describes a step once, as moves between losses. What it computes from losses it hands to
`Walk.known`, and goes on with what that returns; so the same code takes a step and replays it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.noise import AnyDirection


@runtime_checkable
class Differentiable(Protocol):
    """A loss that has a derivative; see `edgezo_runtime.first_order.loss.BatchLoss`."""

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        """Returns the loss and its derivative along a direction."""
        ...


class Walk(abc.ABC):
    """One step in progress.

    Attributes:
        number: the step's number, from 1.
        lr: its learning rate, a float32 number.
        skipped: whether something was not finite, so that the step only restores the weights.
    """

    def __init__(self, number: int, lr: float) -> None:
        self.number = number
        self.lr = lr
        self.skipped = False

    @abc.abstractmethod
    def loss(self, ahead: Sequence[Sequence[Term]] = ()) -> float:
        """Returns the loss at the arena's present weights; NaN in a replay.

        `ahead` is what will be added before each of the losses that follow, as far as it is known.
        """

    @abc.abstractmethod
    def slope(self, direction: AnyDirection) -> float:
        """Returns the derivative of the loss along a direction; NaN in a replay."""

    @abc.abstractmethod
    def known(self, *values: float) -> tuple[float, ...]:
        """Returns `values` as the record holds them, rounded to float32; zeros if skipped."""

    @abc.abstractmethod
    def choice(self, flag: int) -> int:
        """Returns the flag as the record holds it."""


class Measured(Walk):
    """A step that is taken.

    Args:
        arena: the weights.
        number: of the step.
        lr: its learning rate.
        loss: returns the loss of the step's batch at the arena's present weights.
        most: the largest scalar that the method can use.
    """

    def __init__(
        self, arena: Arena, number: int, lr: np.float32, loss: Callable[[], float], most: float
    ) -> None:
        super().__init__(number, float(lr))
        self.losses: list[float] = []
        self._arena, self._loss, self._most = arena, loss, most
        self._rate = lr
        self._scalars: tuple[np.float32, ...] = ()
        self._flags = 0

    def loss(self, ahead: Sequence[Sequence[Term]] = ()) -> float:
        self._arena.add()
        self._arena.foresee(ahead)
        self.losses.append(self._loss())
        return self.losses[-1]

    def slope(self, direction: AnyDirection) -> float:
        if not isinstance(self._loss, Differentiable):
            raise EdgezoError("this method needs true slopes: give it a BatchLoss")
        self._arena.settle()
        value, slope = self._loss.derivative(direction)
        self.losses.append(value)
        return slope

    def known(self, *values: float) -> tuple[float, ...]:
        with np.errstate(over="ignore", invalid="ignore"):
            scalars = np.array(values, np.float64).astype(np.float32)
            moves = scalars * np.float32(self.lr)
        if not (np.isfinite(moves) & (np.abs(scalars) <= self._most)).all():
            self.skipped = True
            self._flags = SKIPPED
            scalars = np.zeros_like(scalars)
        self._scalars += tuple(scalars)
        return tuple(map(float, scalars))

    def choice(self, flag: int) -> int:
        self._flags |= flag
        return flag

    @property
    def record(self) -> Record:
        """What the step was computed from."""
        return Record(self._scalars, self._rate, self._flags)


class Replayed(Walk):
    """A step that is repeated from its record."""

    def __init__(self, number: int, record: Record) -> None:
        super().__init__(number, float(record.lr))
        self._record = record
        self._next = 0

    def loss(self, ahead: Sequence[Sequence[Term]] = ()) -> float:
        return float("nan")

    def slope(self, direction: AnyDirection) -> float:
        return float("nan")

    def known(self, *values: float) -> tuple[float, ...]:
        self.skipped = self._record.skipped
        scalars = self._record.scalars[self._next : self._next + len(values)]
        self._next += len(values)
        return tuple(map(float, scalars))

    def choice(self, flag: int) -> int:
        return self._record.flags & ~SKIPPED
