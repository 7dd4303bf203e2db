"""Evaluation: accuracy and perplexity of a model on the examples of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgezo.data.batches import eval_batches
from edgezo.tasks.base import Example, Task
from edgezo_runtime.batch import Tally
from edgezo_runtime.model import Model


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found.

    Attributes:
        examples: number of rows.
        loss: mean loss in nats, per row where labels are chosen, else per token.
        accuracy: share of rows predicted right; None where nothing is predicted.
        perplexity: exp(loss) per token; None where labels are chosen.
    """

    examples: int
    loss: float
    accuracy: float | None
    perplexity: float | None

    @classmethod
    def of(cls, tally: Tally) -> Metrics:
        """Returns the metrics of summed batches."""
        loss = tally.loss / tally.units
        if tally.correct is not None:
            return cls(tally.examples, loss, tally.correct / tally.examples, None)
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return cls(tally.examples, loss, None, perplexity)

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics that there are, by name."""
        fields = {
            "examples": self.examples,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "perplexity": self.perplexity,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        if self.accuracy is not None:
            return f"accuracy {100 * self.accuracy:.1f} %, loss {self.loss:.3f}"
        return f"perplexity {self.perplexity:.3f}, loss {self.loss:.3f}"


def evaluate(
    model: Model,
    task: Task,
    examples: Sequence[Example],
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
    """
    total = None
    for batch in eval_batches(task, examples, batch_size):
        tally = batch.objective.tally(model.forward(batch))
        total = tally if total is None else total + tally
        if progress:
            progress(total.examples, len(examples))
    assert total is not None, "an evaluation needs an example"
    return Metrics.of(total)
