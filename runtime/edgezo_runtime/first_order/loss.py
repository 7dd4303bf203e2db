"""What a method sees of a batch: its loss, and the gradients of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.first_order.draws import NO_RUN, Draws
from edgezo_runtime.first_order.session import Taker
from edgezo_runtime.first_order.tangents import FORWARDS
from edgezo_runtime.late import LateNumber
from edgezo_runtime.model import Model
from edgezo_runtime.noise import AnyDirection


class BatchLoss:
    """The mean loss of one batch at the model's present weights.

    Args:
        model: is asked.
        batch: its loss is wanted.
        exact: its gradients are; None: those of `batch`.

    Attributes:
        forwards: passes that it was asked for so far.
    """

    def __init__(self, model: Model, batch: BaseBatch, exact: BaseBatch | None = None) -> None:
        self._model, self._batch = model, batch
        self._exact = batch if exact is None else exact
        self.forwards = 0

    def __call__(self) -> float:
        """Returns the loss, in nats."""
        self.forwards += 1
        return self._model.loss(self._batch)

    def later(self) -> Callable[[], float]:
        """Starts a forward pass at the present weights; returns what waits for the loss."""
        self.forwards += 1
        return self._model.later(self._batch)

    def stay(self) -> LateNumber | None:
        """Starts a forward pass whose loss stays on the device; None where the host computes it."""
        late = self._model.stay(self._batch)
        self.forwards += late is not None
        return late

    def descend(
        self, names: Sequence[str], take: Taker, keep: float = 0, draws: Draws = NO_RUN
    ) -> float:
        """Gives `take` the gradient by each of the weights `names`, and returns its loss."""
        self.forwards += 1
        return self._model.descend(self._exact, names, take, keep, draws)

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        """Returns the loss, in nats, and its derivative along a direction."""
        self.forwards += FORWARDS
        return self._model.derivative(self._batch, direction)

    def gradients(self, names: Sequence[str]) -> dict[str, Any]:
        """Returns the gradients by the weights `names`, all at once, on the model's device."""
        found: dict[str, Any] = {}
        self.descend(names, found.__setitem__)
        return found
