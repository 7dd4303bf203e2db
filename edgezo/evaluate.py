"""Evaluation: accuracy and perplexity of a model on the examples of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgezo.data.batches import eval_batches
from edgezo.tasks.base import BaseExample, BaseTask
from edgezo_runtime.batch import Tally
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found.

    Attributes:
        examples: number of rows.
        loss: mean loss, per token (in nats) where tokens are predicted, else per row.
        accuracy: share of rows predicted right; None where no labels are chosen.
        perplexity: exp(loss) per token; None where no tokens are predicted.
        predictions: the label chosen for each example, in their order, (examples,) int64.
        answers: the metrics of generated answers, by name.
    """

    examples: int
    loss: float
    accuracy: float | None
    perplexity: float | None
    predictions: np.ndarray | None = None
    answers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, tally: Tally, predictions: np.ndarray | None = None) -> Metrics:
        """Returns the metrics of summed batches."""
        loss = tally.loss / tally.units
        if tally.correct is not None:
            accuracy = tally.correct / tally.examples
            return cls(tally.examples, loss, accuracy, None, predictions)
        perplexity = None
        if tally.tokens:
            perplexity = math.exp(loss) if loss < 700 else math.inf
        return cls(tally.examples, loss, None, perplexity)

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics that there are, by name."""
        fields = {
            "examples": self.examples,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "perplexity": self.perplexity,
            **self.answers,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Metrics:
        """Returns the metrics that `to_json` gave."""
        answers = dict(fields)
        examples, loss = answers.pop("examples"), answers.pop("loss")
        accuracy, perplexity = answers.pop("accuracy", None), answers.pop("perplexity", None)
        return cls(examples, loss, accuracy, perplexity, answers=answers)

    @property
    def rank(self) -> tuple[float, float]:
        """What says which of two evaluations is better: answers or accuracy, then the loss."""
        score = next(iter(self.answers.values()), self.accuracy or 0.0)
        return score, -math.inf if math.isnan(self.loss) else -self.loss

    def __str__(self) -> str:
        told = "".join(f", {name} {100 * value:.1f} %" for name, value in self.answers.items())
        return self._told() + told

    def _told(self) -> str:
        if self.accuracy is not None:
            return f"accuracy {100 * self.accuracy:.1f} %, loss {self.loss:.3f}"
        if self.perplexity is not None:
            return f"perplexity {self.perplexity:.3f}, loss {self.loss:.3f}"
        return f"loss {self.loss:.6g}"


def evaluate(
    model: Model,
    task: BaseTask,
    examples: Sequence[BaseExample],
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Runs `examples` through `model` and returns their metrics.

    Args:
        model: it is not changed.
        task: made the examples.
        examples: at least one.
        batch_size: rows per forward pass.
        progress: called with (rows done, rows in all).

    Raises:
        InputError: there are no examples.
    """
    total = None
    predictions = np.full(len(examples), -1, np.int64)
    for indices, batch in eval_batches(task, examples, batch_size):
        outputs = model.forward(batch)
        tally = batch.objective.tally(outputs)
        total = tally if total is None else total + tally
        chosen = batch.objective.predictions(outputs)
        if chosen is not None:
            predictions[indices] = chosen
        if progress:
            progress(total.examples, len(examples))
    if total is None:
        raise InputError("there are no examples to evaluate; give data with rows")
    return Metrics.of(total, predictions)
