"""The way through one step: walked with losses when it is taken, without them when it is replayed.

A method describes a step once, as moves between losses. What it computes from losses it hands to
`Walk.known`, and goes on with what that returns; so the same code takes a step and replays it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Protocol, SupportsFloat, runtime_checkable

import numpy as np

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.late import LateLoss, LateSlopes
from edgezo_runtime.noise import AnyDirection


@runtime_checkable
class Differentiable(Protocol):
    """A loss that has a derivative; see `edgezo_runtime.first_order.loss.BatchLoss`."""

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        """Returns the loss and its derivative along a direction."""
        ...


@runtime_checkable
class Startable(Protocol):
    """A loss that need not be waited for before the weights are changed again."""

    def later(self) -> Callable[[], float]:
        """Starts a forward pass at the present weights; returns what waits for the loss."""
        ...


@runtime_checkable
class Stayable(Protocol):
    """A loss that may stay where it is computed."""

    def stay(self) -> LateLoss | None:
        """Starts a forward pass at the present weights, whose loss stays on the device.

        Where the host computes it, nothing is started, and None returned.
        """
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

    def loss(self) -> float:
        """Returns the loss at the arena's present weights; NaN in a replay."""
        return self.later()()

    @abc.abstractmethod
    def later(
        self, ahead: Sequence[Sequence[Term]] = (), stay: bool = False
    ) -> Callable[[], float]:
        """Starts what `loss` needs; returns what waits for it, to be called once and in order.

        Args:
            ahead: what will be added before each of the losses that follow, as far as it is known.
            stay: whether the loss had better stay on the device, for `slopes`.
        """

    @abc.abstractmethod
    def slopes(
        self,
        waits: Sequence[Callable[[], float]],
        pairs: Sequence[tuple[int, int]],
        span: float,
        clip: float = math.inf,
    ) -> Sequence[SupportsFloat]:
        """Returns slopes, as `known` does, of all losses of the step.

        They are `LateSlope`s where all of the losses stayed on the device.

        Args:
            waits: what `later` returned.
            pairs: which loss rises above which, by their places, for each slope.
            span: how far they are apart.
            clip: the largest slope that is believed.
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
        self._stayed: list[LateLoss] = []
        self._late: LateSlopes | None = None

    def later(
        self, ahead: Sequence[Sequence[Term]] = (), stay: bool = False
    ) -> Callable[[], float]:
        self._arena.add()
        self._arena.foresee(ahead)
        late = _stay(self._loss) if stay else None
        if late is not None:
            self._stayed.append(late)
            return late
        wait = _start(self._loss)

        def read() -> float:
            self.losses.append(wait())
            return self.losses[-1]

        return read

    def slopes(
        self,
        waits: Sequence[Callable[[], float]],
        pairs: Sequence[tuple[int, int]],
        span: float,
        clip: float = math.inf,
    ) -> Sequence[SupportsFloat]:
        if len(self._stayed) == len(waits):
            device, most = self._arena.device, self._most
            self._late = device.slopes(self._stayed, pairs, span, clip, self._rate, most)
            return self._late.each
        losses = [wait() for wait in waits]
        found = ((losses[i] - losses[j]) / span for i, j in pairs)
        return self.known(*(min(max(slope, -clip), clip) for slope in found))

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
    def late(self) -> bool:
        """Whether only the device knows the slopes yet."""
        return self._late is not None

    def finish(self) -> None:
        """Waits for what only the device knows yet."""
        if self._late is not None:
            self.losses, self._scalars, self.skipped = self._late.wait()
            self._flags = SKIPPED if self.skipped else 0
            self._late = None

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

    def later(
        self, ahead: Sequence[Sequence[Term]] = (), stay: bool = False
    ) -> Callable[[], float]:
        return lambda: float("nan")

    def slopes(
        self,
        waits: Sequence[Callable[[], float]],
        pairs: Sequence[tuple[int, int]],
        span: float,
        clip: float = math.inf,
    ) -> Sequence[SupportsFloat]:
        return self.known(*(math.nan for _ in pairs))

    def slope(self, direction: AnyDirection) -> float:
        return float("nan")

    def known(self, *values: float) -> tuple[float, ...]:
        self.skipped = self._record.skipped
        scalars = self._record.scalars[self._next : self._next + len(values)]
        self._next += len(values)
        return tuple(map(float, scalars))

    def choice(self, flag: int) -> int:
        return self._record.flags & ~SKIPPED


def _stay(loss: Callable[[], float]) -> LateLoss | None:
    """Starts a loss that stays on the device, if it can."""
    return loss.stay() if isinstance(loss, Stayable) else None


def _start(loss: Callable[[], float]) -> Callable[[], float]:
    """Starts a loss that can be waited for, or computes it; returns what returns it."""
    if isinstance(loss, Startable):
        return loss.later()
    value = loss()
    return lambda: value
