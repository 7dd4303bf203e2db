"""A batch in parts: one after the other they need the memory of one, and add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.batch import ArrayBatch, BaseBatch, Batch, Forward
from edgezo_runtime.errors import EdgezoError

#: Takes a weight's name and its gradient.
Taker = Callable[[str, Any], None]


@dataclass(frozen=True)
class PartedBatch(BaseBatch):
    r"""Micro-batches whose losses add up to the mean loss of all their rows.

    .. math:: L = \sum_i \frac{u_i}{\sum_j u_j} L_i

    Attributes:
        parts: at least one.
        shares: of each part's loss in the whole's, :math:`u` the rows or tokens of a part.
    """

    parts: tuple[BaseBatch, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, parts: Sequence[Batch | ArrayBatch]) -> PartedBatch:
        """Puts batches together."""
        units = [part.objective.units(len(part.targets)) for part in parts]
        return cls(tuple(parts), tuple(count / sum(units) for count in units))

    def feeds(self) -> dict[str, np.ndarray]:
        """Raises EdgezoError: there is nothing that one forward pass could take."""
        raise EdgezoError("a batch in parts has no inputs of its own: run its parts")

    def passes(self) -> Sequence[BaseBatch]:
        """Returns its parts."""
        return self.parts

    def loss(self, model: Forward) -> float:
        """Returns the mean loss over all rows, at the model's present weights."""
        return sum(share * part.loss(model) for share, part in self._each())

    def descend(self, run: Callable[[BaseBatch, Taker], float], take: Taker) -> float:
        """Gives `take` the gradients of the mean loss over all rows, and returns that loss.

        The gradients of all parts are added up before the first is handed over: until then nothing
        may change a weight. That holds one gradient of each weight in memory.

        Args:
            run: gives the gradients of a part to what it is given, and returns the part's loss.
            take: called once for each weight; not at all if the loss is not finite.
        """
        sums: dict[str, Any] = {}
        loss = 0.0
        for share, part in self._each():
            factor = np.float32(share)

            def add(name: str, gradient: Any, factor: np.float32 = factor) -> None:
                gradient *= factor
                if name in sums:
                    sums[name] += gradient
                else:
                    sums[name] = gradient

            loss += share * run(part, add)
            if not math.isfinite(loss):
                return loss
        for name in list(sums):
            take(name, sums.pop(name))
        return loss

    def derivative(self, run: Callable[[BaseBatch], tuple[float, float]]) -> tuple[float, float]:
        """Returns the mean loss over all rows and its derivative; `run` returns a part's."""
        each = [(share, *run(part)) for share, part in self._each()]
        return sum(s * loss for s, loss, _ in each), sum(s * slope for s, _, slope in each)

    def _each(self) -> list[tuple[float, BaseBatch]]:
        return list(zip(self.shares, self.parts, strict=True))
