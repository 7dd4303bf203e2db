r"""Fits the label words' rows of the vocabulary matrix on the untuned model's features.

.. math::
    \min_W \; -\frac{1}{n} \sum_i \log \mathrm{softmax}(W h_i)_{y_i}
        + \frac{\lambda}{2} \|W - W_0\|^2

One pass over the training rows gives the last hidden states h; the fit needs no more forward
passes, and no gradient of anything but the last layer, which has a closed form. Directions then
need not find what a regression finds at once.

References:
    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution", ICLR 2022: first the head, then all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgezo.data.batches import eval_batches
from edgezo.linear_probe import LOGITS, features
from edgezo.logistic import fit_from, log_softmax
from edgezo.tasks import BaseTask
from edgezo.tasks.base import BaseExample
from edgezo.tasks.label_task import LabelTask
from edgezo_runtime import dtypes
from edgezo_runtime.errors import InputError
from edgezo_runtime.features import reveal
from edgezo_runtime.model import Model
from edgezo_runtime.start import Start

_DECAYS = (3e-3, 1e-2, 3e-2, 1e-1)  # of features whose mean square is 1
_FOLDS = 4


@dataclass(frozen=True)
class HeadStart:
    """What was fitted.

    Attributes:
        start: the rows.
        decay: lambda, chosen by cross-validation on the training rows.
        forwards: forward passes over the training rows.
        seconds: that they and the fit took.
    """

    start: Start
    decay: float
    forwards: int
    seconds: float


def can_start(model: Model, task: BaseTask) -> bool:
    """Whether labels are words of one token each, whose rows are float weights of one matrix."""
    return isinstance(task, LabelTask) and task.by_token and _matrix(model) is not None


def fit_head(
    model: Model, task: BaseTask, train: Sequence[BaseExample], batch_size: int
) -> HeadStart:
    """Fits the rows of the label words; the model is not changed.

    Where the matrix embeds the text as well, texts with these words read other embeddings
    afterwards, which the fit does not know of.

    Args:
        model: untuned.
        task: made the examples.
        train: the examples.
        batch_size: rows per forward pass.

    Raises:
        InputError: see `can_start`.
    """
    began = time.perf_counter()
    name = _matrix(model)
    if name is None or not isinstance(task, LabelTask) or not task.by_token:
        raise InputError(
            "a start from a probe needs labels of one token each, and a vocabulary matrix that is "
            "not quantised: leave --start out, or give other --label-words"
        )
    rows = np.asarray(task.candidates, np.int64)
    (parameter,) = (p for p in model.bundle.manifest.parameters if p.name == name)
    matrix = model.device.host(model.weights.arrays()[name][model.device.xp.asarray(rows)])
    first = dtypes.to_float32(matrix, dtypes.named(parameter.dtype)).astype(np.float64)
    labels = task.right(train)
    batches = list(eval_batches(task, train, batch_size))
    inputs = features(model, task, train, batches).astype(np.float64)
    scale = np.sqrt(np.mean(np.square(inputs)))
    inputs, begun = inputs / scale, first * scale
    decay = min(_DECAYS, key=lambda each: _held_out_loss(inputs, labels, begun, each))
    fitted = fit_from(inputs, labels, begun, decay) / scale
    start = Start(name, rows, fitted.astype(np.float32))
    return HeadStart(start, decay, len(batches), time.perf_counter() - began)


def _held_out_loss(
    inputs: np.ndarray, labels: np.ndarray, begun: np.ndarray, decay: float
) -> float:
    """Returns the cross-entropy of rows that were left out in turn."""
    fold = np.arange(len(labels)) % _FOLDS
    total = 0.0
    for out in (fold == number for number in range(_FOLDS)):
        if out.any() and not out.all():
            scores = inputs[out] @ fit_from(inputs[~out], labels[~out], begun, decay).T
            total -= log_softmax(scores)[np.arange(len(scores)), labels[out]].sum()
    return total


def _matrix(model: Model) -> str | None:
    """Returns the matrix whose rows the candidates' logits are products with."""
    try:
        name = reveal(model.bundle, LOGITS).weight
    except InputError:
        return None
    trainable = {d.name for d in dtypes.TRAINABLE}
    shapes = {p.name: p.shape for p in model.bundle.manifest.parameters if p.dtype in trainable}
    return name if name in shapes and len(shapes[name]) == 2 else None
