"""The way through one step: walked with losses when it is taken, without them when it is replayed.

A method describes a step once, as moves between losses. What it computes from losses it hands to
`Walk.known`, and goes on with what that returns; so the same code takes a step and replays it.
Where losses stay on the device, these numbers are `LateNumber`s.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.late import LateNumber, LateRecord, LateSingle, Scalar, Single
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.sweep import ONE, Descent


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

    def stay(self) -> LateNumber | None:
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

    def loss(self) -> Scalar:
        """Returns the loss at the arena's present weights; NaN in a replay."""
        return self.later()()

    @abc.abstractmethod
    def later(self, ahead: Sequence[Sequence[Term]] = ()) -> Callable[[], Scalar]:
        """Starts what `loss` needs; returns what waits for it, to be called once and in order.

        `ahead` is what will be added before each of the losses that follow, as far as it is known.
        """

    @abc.abstractmethod
    def slope(self, direction: AnyDirection) -> float:
        """Returns the derivative of the loss along a direction; NaN in a replay."""

    @abc.abstractmethod
    def known(self, *values: Scalar) -> tuple[Scalar, ...]:
        """Returns `values` as the record holds them, rounded to float32; zeros if skipped.

        Late ones are known to the device alone, and so is whether the step is skipped: it counts as
        one that is not, and the device leaves out what an update by `rounded` and `term` would do.
        """

    def rounded(self, *values: Scalar) -> Sequence[Single]:
        """Returns numbers of the update, each rounded to float32."""
        return [np.float32(value) for value in values]

    def term(
        self, direction: AnyDirection, taken: Single, back: float, decay: np.float32 = ONE
    ) -> Term:
        """Returns a term of the update.

        Args:
            direction: names z.
            taken: how far along z, of `rounded`.
            back: how far if the step is skipped, on the way to the weights before it.
            decay: multiplies the weights that decay, after the addition.
        """
        assert not isinstance(taken, LateSingle)
        return Term(direction, taken, decay)

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
        stay: whether losses shall stay on the device, where they can.
    """

    def __init__(
        self,
        arena: Arena,
        number: int,
        lr: np.float32,
        loss: Callable[[], float],
        most: float,
        stay: bool,
    ) -> None:
        super().__init__(number, float(lr))
        self.losses: list[float] = []
        self._arena, self._loss, self._most, self._stay = arena, loss, most, stay
        self._rate = lr
        self._scalars: tuple[np.float32, ...] = ()
        self._flags = 0
        self._stayed: list[LateNumber] = []
        self._late: LateRecord | None = None

    def later(self, ahead: Sequence[Sequence[Term]] = ()) -> Callable[[], Scalar]:
        self._arena.add()
        self._arena.foresee(ahead)
        late = _stay(self._loss) if self._stay else None
        if late is not None:
            self._stayed.append(late)
            return lambda: late
        wait = _start(self._loss)

        def read() -> float:
            self.losses.append(wait())
            return self.losses[-1]

        return read

    def slope(self, direction: AnyDirection) -> float:
        if not isinstance(self._loss, Differentiable):
            raise EdgezoError("this method needs true slopes: give it a BatchLoss")
        self._arena.settle()
        value, slope = self._loss.derivative(direction)
        self.losses.append(value)
        return slope

    def known(self, *values: Scalar) -> tuple[Scalar, ...]:
        if any(isinstance(value, LateNumber) for value in values):
            assert self._late is None  # whether a step is skipped, it finds out at once
            device = self._arena.device
            self._late = device.record(self._stayed, values, self._rate, self._most)
            return tuple(self._late.scalars)
        with np.errstate(over="ignore", invalid="ignore"):
            scalars = np.array(values, np.float64).astype(np.float32)
            moves = scalars * np.float32(self.lr)
        if not (np.isfinite(moves) & (np.abs(scalars) <= self._most)).all():
            self.skipped = True
            self._flags = SKIPPED
            scalars = np.zeros_like(scalars)
        self._scalars += tuple(scalars)
        return tuple(map(float, scalars))

    def rounded(self, *values: Scalar) -> Sequence[Single]:
        return super().rounded(*values) if self._late is None else self._late.rounded(values)

    def term(
        self, direction: AnyDirection, taken: Single, back: float, decay: np.float32 = ONE
    ) -> Term:
        if self._late is None:
            return super().term(direction, taken, back, decay)
        skipped = self._late.skipped
        return Descent(direction, np.float32(back), decay, taken=taken, skipped=skipped)

    def choice(self, flag: int) -> int:
        self._flags |= flag
        return flag

    @property
    def late(self) -> bool:
        """Whether only the device knows the record yet."""
        return self._late is not None

    def finish(self) -> None:
        """Waits for what only the device knows yet."""
        if self._late is not None:
            losses, self._scalars, self.skipped = self._late.wait()
            self.losses += losses
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

    def later(self, ahead: Sequence[Sequence[Term]] = ()) -> Callable[[], Scalar]:
        return lambda: float("nan")

    def slope(self, direction: AnyDirection) -> float:
        return float("nan")

    def known(self, *values: Scalar) -> tuple[Scalar, ...]:
        self.skipped = self._record.skipped
        scalars = self._record.scalars[self._next : self._next + len(values)]
        self._next += len(values)
        return tuple(map(float, scalars))

    def choice(self, flag: int) -> int:
        return self._record.flags & ~SKIPPED


def _stay(loss: Callable[[], float]) -> LateNumber | None:
    """Starts a loss that stays on the device, if it can."""
    return loss.stay() if isinstance(loss, Stayable) else None


def _start(loss: Callable[[], float]) -> Callable[[], float]:
    """Starts a loss that can be waited for, or computes it; returns what returns it."""
    if isinstance(loss, Startable):
        return loss.later()
    value = loss()
    return lambda: value
