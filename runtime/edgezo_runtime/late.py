"""What a device has computed, or is about to, and the host need not wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

CELL = "cell"


class LateNumber(NDArrayOperatorsMixin):
    """A number that only a device knows yet, float64.

    What arithmetic makes of it, ``+ - * /`` and NumPy's functions, is another one: operations are
    written down, and the device does them, rounded as the host's are, when a record or an update
    needs them. So a method says once what it computes, whoever computes it; but it takes no branch.

    Args:
        operation: the name of NumPy's function, or `CELL`.
        operands: its numbers; of a cell, the device's array that holds the number, (1,) float64.
    """

    def __init__(self, operation: str, *operands: Any) -> None:
        self.operation = operation
        self.operands = operands

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any
    ) -> LateNumber:
        if method != "__call__" or settings:
            return NotImplemented
        return LateNumber(ufunc.__name__, *inputs)

    def __bool__(self) -> NoReturn:
        raise TypeError("only the device knows this number yet: no branch can be taken on it")

    def __float__(self) -> NoReturn:
        raise TypeError("only the device knows this number yet")


@dataclass(frozen=True, eq=False)
class LateSingle:
    """A number of an update that only a device knows yet; sweeps and rules take it as it is.

    Attributes:
        number: the device's array that holds it, (1,) float64 with the value of a float32.
        skipped: the device's array of whether its step is skipped: (1,) float64, 0 if it is not.
            If it is, the number means nothing, and an update by it changes nothing.
    """

    number: Any
    skipped: Any

    __array_ufunc__ = None  # NumPy's numbers do nothing with it


Scalar = float | LateNumber
Single = np.float32 | LateSingle


class Found(NamedTuple):
    """What a step found out: its losses, its record's scalars, and whether one was not finite."""

    losses: list[float]
    scalars: tuple[np.float32, ...]
    skipped: bool


class LateRecord(Protocol):
    """What the record of a step will hold."""

    @property
    def scalars(self) -> Sequence[LateNumber]:
        """The scalars, rounded to float32."""
        ...

    @property
    def skipped(self) -> Any:
        """The device's array of whether the step is skipped: (1,) float64, 0 if it is not."""
        ...

    def rounded(self, values: Sequence[Scalar]) -> Sequence[Single]:
        """Returns numbers of the step's update, each rounded to float32."""
        ...

    def wait(self) -> Found:
        """Waits for all; the scalars are 0 if the step is skipped."""
        ...
