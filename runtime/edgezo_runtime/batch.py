"""What goes into one forward pass, and what the outputs mean."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgezo_runtime.errors import InputError

#: What a graph returns, by name; docs/bundle.md says what text and array graphs have.
Outputs = Mapping[str, np.ndarray]
#: What data of arrays calls the right answers, so that no input of a model can be called it.
ANSWERS = ("label", "target")


@dataclass(frozen=True)
class Tally:
    """Sums over the examples of one or several batches; they add up.

    Attributes:
        examples: number of rows.
        units: number of things that the loss averages over: rows, or tokens of language modelling.
        loss: summed loss over the units, in nats.
        correct: number of rows predicted right; None where there is nothing to predict.
        tokens: whether the units are tokens, so that exp(loss / units) is a perplexity.
    """

    examples: int
    units: int
    loss: float
    correct: int | None = None
    tokens: bool = False

    def __add__(self, other: Tally) -> Tally:
        correct = None
        if self.correct is not None and other.correct is not None:
            correct = self.correct + other.correct
        return Tally(
            self.examples + other.examples,
            self.units + other.units,
            self.loss + other.loss,
            correct,
            self.tokens and other.tokens,
        )


@dataclass(frozen=True)
class Reduction:
    r"""A mean loss that follows from one output x, so that a device can compute it there.

    .. math::
        L = \frac{s}{n} \sum_i x_i \quad \text{or} \quad
        L = \frac{1}{n} \sum_i \Bigl(\log \sum_j e^{x_{ij}} - x_{i y_i}\Bigr)

    Attributes:
        output: the name of x, float32.
        sign: s, of the sum of all elements.
        labels: y, (rows,) int64, for the cross-entropy of rows; None: the sum.
    """

    output: str
    sign: int = 1
    labels: np.ndarray | None = None


class Objective(abc.ABC):
    """Turns the outputs of one batch into numbers; it knows the right answers."""

    @abc.abstractmethod
    def tally(self, outputs: Outputs) -> Tally:
        """Returns the batch's sums."""

    def loss(self, outputs: Outputs) -> float:
        """Returns the batch's mean loss: what a tuning step lowers."""
        tally = self.tally(outputs)
        return tally.loss / tally.units

    def reduction(self) -> Reduction | None:
        """Returns how `loss` follows from one output; None where it does not."""
        return None

    def units(self, answers: int) -> int:
        """Returns how many things the loss of a batch with so many answers averages over."""
        return answers

    def predictions(self, outputs: Outputs) -> np.ndarray | None:
        """Returns the predicted label of each row, (rows,) int64, or None if there is none."""
        return None

    def cotangents(self, outputs: Outputs) -> dict[str, np.ndarray]:
        """Returns the derivative of `loss` by each float output, in its shape and dtype.

        Raises:
            InputError: the loss has no derivative.
        """
        raise InputError(
            f"{type(self).__name__} has no gradient: tune with a method that needs none, such as "
            "mezo"
        )


@dataclass(frozen=True)
class CandidateLoss(Objective):
    """Cross-entropy over the candidate tokens at one position a row: labels of one token.

    Attributes:
        labels: index of the right candidate, (rows,) int64.
    """

    labels: np.ndarray

    def tally(self, outputs: Outputs) -> Tally:
        return _choice_tally(outputs["candidate_logits"], self.labels)

    def reduction(self) -> Reduction:
        return Reduction("candidate_logits", labels=self.labels)

    def predictions(self, outputs: Outputs) -> np.ndarray:
        return outputs["candidate_logits"].argmax(axis=1)

    def cotangents(self, outputs: Outputs) -> dict[str, np.ndarray]:
        slope = _choice_slope(outputs["candidate_logits"], self.labels)
        return _zeros(outputs) | {"candidate_logits": slope.astype(np.float32)}


@dataclass(frozen=True)
class OptionLoss(Objective):
    """Cross-entropy over options of several tokens, each scored by its log-probability.

    Attributes:
        options: which option each answer token belongs to, (answers,) int64; the options of a row
            follow each other, and those of the next row follow them.
        labels: index of the right option within its row, (rows,) int64.
        choices: options of each row, (rows,) int64.
        mean: score an option by the mean over its tokens, and not by their sum.
        accepted: indices of all options that count as right, for each row; None: the label alone.
    """

    options: np.ndarray
    labels: np.ndarray
    choices: np.ndarray
    mean: bool = False
    accepted: Sequence[Sequence[int]] | None = None

    def scores(self, outputs: Outputs) -> np.ndarray:
        """Returns the log-probability of each option, (rows, most choices) float64.

        Rows with fewer choices are filled up with minus infinity.
        """
        size = int(self.choices.sum())
        scored = np.bincount(self.options, outputs["logprobs"].astype(np.float64), size)
        if self.mean:
            scored /= np.bincount(self.options, minlength=size)
        table = np.full((len(self.labels), int(self.choices.max())), -np.inf)
        table[np.arange(table.shape[1]) < self.choices[:, None]] = scored
        return table

    def tally(self, outputs: Outputs) -> Tally:
        scores = self.scores(outputs)
        tally = _choice_tally(scores, self.labels)
        if self.accepted is None:
            return tally
        chosen = zip(scores.argmax(axis=1), self.accepted, strict=True)
        return dataclasses.replace(tally, correct=sum(index in right for index, right in chosen))

    def units(self, answers: int) -> int:
        return len(self.labels)

    def predictions(self, outputs: Outputs) -> np.ndarray:
        return self.scores(outputs).argmax(axis=1)

    def cotangents(self, outputs: Outputs) -> dict[str, np.ndarray]:
        slope = _choice_slope(self.scores(outputs), self.labels)
        slope = slope[np.arange(slope.shape[1]) < self.choices[:, None]]
        if self.mean:
            slope /= np.bincount(self.options, minlength=len(slope))
        slope = slope[self.options]
        return _zeros(outputs) | {"logprobs": slope.astype(np.float32)}


@dataclass(frozen=True)
class TokenLoss(Objective):
    """Mean negative log-probability of the target tokens: completions and plain text.

    Attributes:
        rows: number of examples in the batch.
    """

    rows: int

    def tally(self, outputs: Outputs) -> Tally:
        total = -float(outputs["logprobs"].sum(dtype=np.float64))
        return Tally(self.rows, len(outputs["logprobs"]), total, tokens=True)

    def reduction(self) -> Reduction:
        return Reduction("logprobs", sign=-1)

    def cotangents(self, outputs: Outputs) -> dict[str, np.ndarray]:
        count = len(outputs["logprobs"])
        return _zeros(outputs) | {"logprobs": np.full(count, -1 / count, np.float32)}


@dataclass(frozen=True)
class RowLoss(Objective):
    """The mean of the losses that an array graph computes itself, one a row.

    Attributes:
        labels: index of the right class, (rows,) int64; None where rows have no class.
        output: the output whose largest entry in a row is the predicted class, (rows, classes).
    """

    labels: np.ndarray | None = None
    output: str | None = None

    def tally(self, outputs: Outputs) -> Tally:
        losses, chosen = outputs["losses"], self.predictions(outputs)
        correct = None if chosen is None else int((chosen == self.labels).sum())
        return Tally(len(losses), len(losses), float(losses.sum(dtype=np.float64)), correct)

    def reduction(self) -> Reduction:
        return Reduction("losses")

    def predictions(self, outputs: Outputs) -> np.ndarray | None:
        if self.labels is None or self.output is None:
            return None
        return outputs[self.output].reshape(len(self.labels), -1).argmax(axis=1)

    def cotangents(self, outputs: Outputs) -> dict[str, np.ndarray]:
        count = len(outputs["losses"])
        return _zeros(outputs) | {"losses": np.full(count, 1 / count, np.float32)}


class Forward(Protocol):
    """What a batch needs of a model to find its loss."""

    def forward(self, batch: BaseBatch) -> Outputs:
        """Returns the graph's outputs by name."""
        ...


class BaseBatch(abc.ABC):
    """The data inputs of one forward pass, and the objective over its outputs.

    Attributes:
        objective: what the outputs are judged by.
    """

    objective: Objective

    @abc.abstractmethod
    def feeds(self) -> dict[str, np.ndarray]:
        """Returns the graph's data inputs by name."""

    def passes(self) -> Sequence[BaseBatch]:
        """Returns the batches that go through the model, one after the other: itself."""
        return (self,)

    def loss(self, model: Forward) -> float:
        """Returns what a tuning step lowers, at the model's present weights."""
        return self.objective.loss(model.forward(self))


@dataclass(frozen=True)
class ArrayBatch(BaseBatch):
    """A batch of an array graph.

    Attributes:
        inputs: the graph's inputs by name, C-contiguous, in the dtypes and shapes of its ports.
        targets: the right answer of each row: (rows,) int64 classes, or (rows, ...) float32.
        objective: what the outputs are judged by.
    """

    inputs: Mapping[str, np.ndarray]
    targets: np.ndarray
    objective: Objective

    def feeds(self) -> dict[str, np.ndarray]:
        """Returns the graph's data inputs by name."""
        return {**self.inputs, "targets": self.targets}


@dataclass(frozen=True)
class Batch(BaseBatch):
    """A batch of a text graph.

    Attributes:
        input_ids: (rows, length) int64, padded on the right.
        attention_mask: (rows, length) int64, 1 for tokens and 0 for padding.
        positions: where answers are predicted, as ``row * length + t``, (answers,) int64.
        targets: the token that should follow each position, (answers,) int64.
        candidates: tokens whose logits are asked for at each position, (choices,) int64.
        objective: what the outputs are judged by.
        decoder_input_ids: what the decoder of a model with an encoder reads,
            (rows, decoder length) int64, padded on the right; `positions` then count in it.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray
    objective: Objective
    decoder_input_ids: np.ndarray | None = None

    def feeds(self) -> dict[str, np.ndarray]:
        """Returns the graph's data inputs by name."""
        feeds = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "positions": self.positions,
            "targets": self.targets,
            "candidates": self.candidates,
        }
        if self.decoder_input_ids is not None:
            feeds["decoder_input_ids"] = self.decoder_input_ids
        return feeds


def _zeros(outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(a) for name, a in outputs.items() if a.dtype.kind == "f"}


def _choice_slope(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Derivative of the mean of `_choice_tally`'s loss by `scores`, (rows, choices) float64."""
    scores = scores.astype(np.float64)
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(labels)), labels] -= 1
    return chances / len(labels)


def _choice_tally(scores: np.ndarray, labels: np.ndarray) -> Tally:
    """Softmax cross-entropy of `scores` (rows, choices) against `labels` (rows,).

    Raises:
        InputError: a label is none of the choices.
    """
    rows, choices = scores.shape
    if len(labels) != rows or not np.all((labels >= 0) & (labels < choices)):
        raise InputError(f"labels must be {rows} numbers from 0 to {choices - 1}, one for each row")
    scores = scores.astype(np.float64)
    highest = scores.max(axis=1, keepdims=True)
    total = np.log(np.exp(scores - highest).sum(axis=1)) + highest[:, 0]
    losses = total - scores[np.arange(len(labels)), labels]
    correct = int((scores.argmax(axis=1) == labels).sum())
    return Tally(len(labels), len(labels), float(losses.sum()), correct)
