"""Linear probing: how much a logistic regression gets out of the features of an untuned model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo.data.batches import eval_batches
from edgezo.evaluate import Metrics
from edgezo.logistic import Logistic, fit
from edgezo.tasks import Arrays, BaseTask
from edgezo.tasks.base import BaseExample, Example
from edgezo.tasks.label_task import LabelTask
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.features import reveal
from edgezo_runtime.model import Model

_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HELD_BACK = 5  # one row in so many chooses the decay
LOGITS = "candidate_logits"


@dataclass(frozen=True)
class Probed:
    """What a linear probe found.

    Attributes:
        metrics: of the held-out examples.
        forwards: forward passes over the training examples.
        seconds: that those and the fit took.
    """

    metrics: Metrics
    forwards: int
    seconds: float


def probes(task: BaseTask) -> bool:
    """Whether `task` has the same labels for all rows, which a regression can tell apart."""
    return isinstance(task, LabelTask) or (isinstance(task, Arrays) and task.chooses)


def linear_probe(
    model: Model,
    task: BaseTask,
    train: Sequence[BaseExample],
    held_out: Sequence[BaseExample],
    batch_size: int,
) -> Probed:
    """Fits a regression on `train` and returns how it does on `held_out`.

    A fifth of the training rows is held back to choose the weight decay by its accuracy; the
    regression is then fitted on all of them.

    Args:
        model: it is not changed.
        task: made the examples; one that `probes`.
        train: examples to fit.
        held_out: examples to judge.
        batch_size: rows per forward pass.

    Raises:
        InputError: the graph does not end in a linear layer.
    """
    started = time.perf_counter()
    batches = list(eval_batches(task, train, batch_size))
    inputs, labels = features(model, task, train, batches), task.right(train)
    right = task.right(held_out)
    classes = int(max(labels.max(), right.max())) + 1
    order = np.random.default_rng(0).permutation(len(train))
    back, kept = np.split(order, [len(train) // _HELD_BACK])

    def judged(decay: float) -> tuple[float, float]:
        found = _judged(fit(inputs[kept], labels[kept], classes, decay), inputs[back], labels[back])
        return found.accuracy or 0.0, -found.loss

    decay = max(_DECAYS, key=judged) if len(back) else _DECAYS[-1]
    fitted = fit(inputs, labels, classes, decay)
    seconds = time.perf_counter() - started
    outside = features(model, task, held_out, eval_batches(task, held_out, batch_size))
    return Probed(_judged(fitted, outside, right), len(batches), seconds)


def features(
    model: Model,
    task: BaseTask,
    examples: Sequence[BaseExample],
    batches: Iterable[tuple[np.ndarray, BaseBatch]],
) -> np.ndarray:
    """Returns what the model's last projection reads at each example's answer, (examples, hidden).

    Of a text model these are the last hidden states where the label's word is predicted.

    Args:
        model: it is not changed.
        task: made the examples.
        examples: in the order of the result.
        batches: all of them, with their indices.
    """
    output = str(model.bundle.manifest.task["output"]) if isinstance(task, Arrays) else LOGITS
    revealed = reveal(model.bundle, output)
    found: Any = [None] * len(examples)
    with model.unbound():
        changing = {parameter.name for parameter in model.bundle.manifest.parameters}
        session = model.session(revealed.bundle, changing)
        for indices, batch in batches:
            values = session.forward(batch)[revealed.output]
            places = np.cumsum([0, *(_answers(examples[i]) for i in indices)])[:-1]
            for index, place in zip(indices, places, strict=True):
                found[index] = np.array(values[place].ravel())  # its own: `values` goes
        del session
    return np.stack(found)


def _answers(example: BaseExample) -> int:
    """Returns how many answers of a batch are the example's; the first follows its prompt."""
    return sum(len(part.targets) for part in example.parts) if isinstance(example, Example) else 1


def _judged(fitted: Logistic, inputs: np.ndarray, labels: np.ndarray) -> Metrics:
    chances = fitted.log_chances(inputs)
    told = chances.argmax(axis=1)
    loss = float(-chances[np.arange(len(labels)), labels].mean())
    return Metrics(len(labels), loss, float((told == labels).mean()), None, told)
