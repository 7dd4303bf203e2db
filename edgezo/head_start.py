r"""Fits the labels' rows of the model's last matrix on the untuned model's features.

.. math::
    \min_W \; -\frac{1}{n} \sum_i \log \mathrm{softmax}(W h_i)_{y_i}
        + \frac{\lambda}{2} \|W - W_0\|^2

The matrix is the vocabulary's, of which the label words have rows, or a classifier's own. One pass
over the training rows gives what it multiplies, h, with a constant where a bias is added; the fit
needs no more forward passes, and no gradient of anything but the last layer, which has a closed
form. Directions then need not find what a regression finds at once.

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
from edgezo.data.rows import listed
from edgezo.features import LOGITS, Batches, read_answers
from edgezo.logistic import fit_from, log_softmax
from edgezo.tasks import BaseTask
from edgezo.tasks.base import BaseExample
from edgezo.tasks.label_task import LabelTask
from edgezo_runtime import dtypes
from edgezo_runtime.errors import InputError
from edgezo_runtime.features import Revealed, reveal
from edgezo_runtime.model import Model
from edgezo_runtime.start import Start

_DECAYS = (3e-3, 1e-2, 3e-2, 1e-1)  # of features whose mean square is 1
_FOLDS = 4
_CLOSE = 0.02  # of the logits' size: how far the products may be from them in half precision


class NoStart(InputError):
    """A model and a task have nothing to fit; the sentence says why."""


@dataclass(frozen=True)
class HeadStart:
    """What was fitted.

    Attributes:
        start: the rows.
        decay: lambda, chosen by cross-validation on the training rows.
        helps: whether rows that were left out are predicted better than by the untuned model.
        forwards: forward passes over the training rows.
        seconds: that they and the fit took.
    """

    start: Start
    decay: float
    helps: bool
    forwards: int
    seconds: float


def check_start(model: Model, task: BaseTask) -> None:
    """Checks that a label is told by the product with a float row of its own.

    Raises:
        NoStart: it is told in another way.
    """
    _revealed(model, task)


def fit_head(
    model: Model, task: BaseTask, train: Sequence[BaseExample], batch_size: int
) -> HeadStart:
    """Fits the rows of the labels, and their biases; the model is not changed.

    Where the matrix embeds the text as well, texts with these words read other embeddings
    afterwards, which the fit does not know of.

    Args:
        model: untuned.
        task: made the examples.
        train: the examples.
        batch_size: rows per forward pass.

    Raises:
        NoStart: see `check_start`; or the labels' logits are more than products and biases, or all
            examples have the same label.
    """
    began = time.perf_counter()
    labelled, revealed = _revealed(model, task)
    rows, labels = np.asarray(labelled.candidates, np.int64), labelled.right(train)
    if len(np.unique(labels)) < 2:
        raise NoStart("its training rows all have one label, which tells nothing of the others")
    names = [name for name in (revealed.weight, revealed.bias) if name is not None]
    there, first = (
        np.column_stack([_rows_of(model, name, chosen) for name in names])
        for chosen in (rows, np.asarray(labelled.begun, np.int64))
    )
    batches = list(eval_batches(task, train, batch_size))
    inputs, logits = _read(model, revealed, train, batches)
    width = inputs.shape[1]
    if revealed.bias is not None:
        inputs = np.column_stack([inputs, np.ones(len(inputs))])
    if inputs.shape[1] != first.shape[1] or not _alike(inputs @ there.T, logits):
        raise NoStart("the labels' scores are more than products with a matrix, and a bias")
    scale = np.ones(inputs.shape[1])
    scale[:width] = np.sqrt(np.mean(np.square(inputs[:, :width]))) or 1
    inputs, begun = inputs / scale, first * scale
    losses = {decay: _held_out_loss(inputs, labels, begun, decay) for decay in _DECAYS}
    decay = min(losses, key=lambda each: losses[each])
    helps = losses[decay] < _loss(inputs @ begun.T, labels)
    fitted = (fit_from(inputs, labels, begun, decay) / scale).astype(np.float32)
    values = dict(zip(names, (fitted[:, :width], fitted[:, -1]), strict=False))
    start = Start(rows, {name: np.ascontiguousarray(array) for name, array in values.items()})
    return HeadStart(start, decay, helps, len(batches), time.perf_counter() - began)


def _revealed(model: Model, task: BaseTask) -> tuple[LabelTask, Revealed]:
    """Returns the task as one with labels, and the bundle that gives the features."""
    if not isinstance(task, LabelTask):
        raise NoStart(f"task {task.name} has no labels with a word or a number each")
    try:
        revealed = reveal(model.bundle, LOGITS)
    except InputError as error:
        raise NoStart(str(error)) from error
    trainable = {dtype.name for dtype in dtypes.TRAINABLE}
    ranks = {p.name: len(p.shape) for p in model.bundle.manifest.parameters if p.dtype in trainable}
    if revealed.weight is None or ranks.get(revealed.weight) != 2:
        raise NoStart("the labels' scores are not products with one matrix of float weights")
    if revealed.bias is not None and ranks.get(revealed.bias) != 1:
        raise NoStart("what is added to the labels' scores is no bias of float weights")
    if not task.by_token:
        raise NoStart(
            f"it needs labels of one token each, and {listed(task.labels.words)} are not told "
            "apart by their first tokens"
        )
    return task, revealed


def _read(
    model: Model, revealed: Revealed, examples: Sequence[BaseExample], batches: Batches
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (examples, hidden) and logits (examples, labels), float64."""
    found: list[np.ndarray] = [np.empty(0)] * len(examples)
    told = found.copy()

    def keep(index: int, read: np.ndarray, led: np.ndarray) -> None:
        found[index], told[index] = (array[0].astype(np.float64) for array in (read, led))

    read_answers(model, revealed, examples, batches, keep)
    return np.stack(found), np.stack(told)


def _rows_of(model: Model, name: str, rows: np.ndarray) -> np.ndarray:
    """Returns rows of a parameter, (rows, width) or (rows,) float64."""
    (parameter,) = (p for p in model.bundle.manifest.parameters if p.name == name)
    if parameter.shape[0] <= rows.max():
        raise NoStart(f"{name} has {parameter.shape[0]} rows, and not one for each label")
    array = model.device.host(model.weights.arrays()[name][model.device.xp.asarray(rows)])
    return dtypes.to_float32(array, dtypes.named(parameter.dtype)).astype(np.float64)


def _alike(products: np.ndarray, logits: np.ndarray) -> bool:
    return bool(np.abs(products - logits).max() <= _CLOSE * np.abs(logits).max())


def _held_out_loss(
    inputs: np.ndarray, labels: np.ndarray, begun: np.ndarray, decay: float
) -> float:
    """Returns the mean cross-entropy of rows that were left out in turn; of a single row none."""
    fold = np.empty(len(labels), np.int64)
    # About as many rows of each label in each, also where labels take turns in the data.
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % _FOLDS
    total = 0.0
    for out in (fold == number for number in range(min(_FOLDS, len(labels)))):
        if out.all():
            return np.inf
        scores = inputs[out] @ fit_from(inputs[~out], labels[~out], begun, decay).T
        total += _loss(scores, labels[out]) * out.sum()
    return total / len(labels)


def _loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean cross-entropy."""
    return float(-log_softmax(scores)[np.arange(len(labels)), labels].mean())
