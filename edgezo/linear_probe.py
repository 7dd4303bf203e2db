"""Linear probing: how much a logistic regression gets out of the features of an untuned model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from edgezo.choice_probe import OptionRows
from edgezo.data.batches import eval_batches
from edgezo.evaluate import Metrics
from edgezo.features import features
from edgezo.logistic import Logistic, fit
from edgezo.tasks import Arrays, BaseTask
from edgezo.tasks.base import BaseExample
from edgezo.tasks.choice import Choice
from edgezo.tasks.label_task import LabelTask
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model

_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HELD_BACK = 5  # one row in so many chooses the decay


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


class ProbeRows(Protocol):
    """The features of some rows and what is right for each; they can be fitted and judged."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Self:
        """Returns some of the rows."""
        ...

    def fit(self, decay: float) -> Any:
        """Returns the regression with weight decay `decay`."""
        ...

    def judge(self, fitted: Any) -> Metrics:
        """Returns how a regression does on the rows."""
        ...


@dataclass(frozen=True)
class LabelRows:
    """Rows that all have the same labels.

    Attributes:
        inputs: (rows, hidden).
        labels: the right one of each, (rows,) int64.
        classes: how many labels there are.
    """

    inputs: np.ndarray
    labels: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> LabelRows:
        """Returns some of the rows."""
        return LabelRows(self.inputs[indices], self.labels[indices], self.classes)

    def fit(self, decay: float) -> Logistic:
        """Returns a multinomial logistic regression."""
        return fit(self.inputs, self.labels, self.classes, decay)

    def judge(self, fitted: Logistic) -> Metrics:
        """Returns how a regression does on the rows."""
        chances = fitted.log_chances(self.inputs)
        told = chances.argmax(axis=1)
        loss = float(-chances[np.arange(len(self)), self.labels].mean())
        return Metrics(len(self), loss, float((told == self.labels).mean()), None, told)


def probes(task: BaseTask) -> bool:
    """Whether a regression can tell the labels of `task` apart, or a row's options."""
    return isinstance(task, LabelTask | Choice) or (isinstance(task, Arrays) and task.chooses)


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
        InputError: the task has nothing to tell apart, or the graph does not end in a linear layer.
    """
    if not probes(task):
        raise InputError(f"task {task.name} has neither labels nor options for a linear probe")
    started = time.perf_counter()
    classes = 1 + max(int(task.right(rows).max()) for rows in (train, held_out))
    rows, forwards = _read(model, task, train, batch_size, classes)
    order = np.random.default_rng(0).permutation(len(train))
    back, kept = np.split(order, [len(train) // _HELD_BACK])

    def judged(decay: float) -> tuple[float, float]:
        found = rows.take(back).judge(rows.take(kept).fit(decay))
        return found.accuracy or 0.0, -found.loss

    decay = max(_DECAYS, key=judged) if len(back) else _DECAYS[-1]
    fitted = rows.fit(decay)
    seconds = time.perf_counter() - started
    outside, _ = _read(model, task, held_out, batch_size, classes)
    return Probed(outside.judge(fitted), forwards, seconds)


def _read(
    model: Model, task: BaseTask, examples: Sequence[Any], batch_size: int, classes: int
) -> tuple[ProbeRows, int]:
    """Returns the examples' features, and how many forward passes they took."""
    if isinstance(task, Choice):
        return OptionRows.read(model, task, examples, batch_size)
    batches = list(eval_batches(task, examples, batch_size))
    inputs = features(model, task, examples, batches)
    return LabelRows(inputs, task.right(examples), classes), len(batches)
