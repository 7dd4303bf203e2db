"""What a step lowers, when that is not the task's own loss: 1 - score, of any score at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edgezo.answers import METRICS, best, fitted_prompts, truths_of
from edgezo.data.arrays import ArrayRows
from edgezo.data.rows import Rows
from edgezo.evaluate import Metrics
from edgezo.generate import generate_batch
from edgezo.settings import AUTO
from edgezo.tasks import BaseTask, Choice, Generate
from edgezo.tasks.base import BaseExample
from edgezo_runtime.batch import ArrayBatch, BaseBatch, Batch, Forward, Outputs
from edgezo_runtime.errors import InputError
from edgezo_runtime.parts import PartedBatch

#: Judges what a model answered to some rows: one number, or one for each row; more is better.
Score = Callable[[Sequence[str], Sequence[Mapping[str, Any]]], ArrayLike]
#: Makes the batch of the rows of these indices.
BatchMaker = Callable[[np.ndarray], BaseBatch]

LOSS, CROSS_ENTROPY, ACCURACY, F1, EXACT_MATCH = (
    "loss",
    "cross-entropy",
    "accuracy",
    "f1",
    "exact-match",
)
#: Those that are a mean over rows or tokens.
MEANS = (LOSS, CROSS_ENTROPY, AUTO)
OBJECTIVES = (*MEANS, ACCURACY, F1, EXACT_MATCH)
#: The metric that belongs to an objective which is not the loss, nor accuracy.
ANSWER_METRICS = {F1: "f1", EXACT_MATCH: "em"}
MAX_TOKENS = 32
#: Rows of more options than these on average are read for their right one alone.
_FEW_OPTIONS = 8


@dataclass(frozen=True)
class ScoredBatch(BaseBatch):
    """A batch whose loss is 1 - score.

    Attributes:
        batch: the task's own.
        score: of what the model that it is given answers; more is better.
    """

    batch: BaseBatch
    score: Callable[[Any], float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", self.batch.objective)

    def feeds(self) -> dict[str, np.ndarray]:
        """Returns the graph's data inputs by name."""
        return self.batch.feeds()

    def loss(self, model: Forward) -> float:
        """Returns 1 - score at the model's present weights."""
        return 1 - self.score(model)


def settled(objective: str, task: BaseTask, examples: Sequence[BaseExample]) -> str:
    """Returns what ``"auto"`` stands for with some rows, and any other objective as it is.

    That is the cross-entropy over a row's options where they are few, and else the task's own loss:
    what raises the right option's probability may raise the others' as well, but to read them all
    multiplies what a step takes.
    """
    if objective != AUTO:
        return objective
    few = sum(e.sequences for e in examples) <= _FEW_OPTIONS * len(examples)
    return CROSS_ENTROPY if isinstance(task, Choice) and few else LOSS


def batch_maker(
    task: BaseTask,
    rows: Rows | ArrayRows,
    examples: Sequence[BaseExample],
    objective: str | Score = LOSS,
    max_tokens: int = MAX_TOKENS,
) -> BatchMaker:
    r"""Returns what makes the batches that a run trains on.

    Args:
        task: made the examples.
        rows: the data.
        examples: of the rows.
        objective: ``"loss"``, the task's own; ``"cross-entropy"`` over a row's options; ``"auto"``,
            see `settled`;
            ``"accuracy"``; ``"f1"``, over words of generated answers, else the macro average over
            the labels; ``"exact-match"`` of generated answers; or a function of the answers and
            their rows, whose mean is to rise. Of a task with labels the answers are labels, of
            options the options' texts.
        max_tokens: longest generated answer.

    Raises:
        InputError: there is no such objective, or the task does not go with it.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023,
        section 3.3.
    """

    def chosen(indices: np.ndarray) -> list[Any]:
        return [examples[i] for i in indices]

    if isinstance(objective, str):
        objective = settled(objective, task, examples)
    if objective == LOSS:
        return lambda indices: task.training_batch(chosen(indices))
    if isinstance(objective, str) and objective not in OBJECTIVES:
        raise InputError(f"objective is {objective!r}; use one of {', '.join(OBJECTIVES)}")
    if isinstance(task, Generate) and isinstance(rows, Rows):
        return _generated(task, rows, chosen, objective, max_tokens)
    if not task.chooses or objective == EXACT_MATCH:
        raise InputError(
            f"task {task.name} {'generates no text' if task.chooses else 'chooses no labels'} that "
            f"objective {_name(objective)} could judge; use "
            + (", ".join(OBJECTIVES[:-1]) if task.chooses else LOSS)
        )
    if objective == CROSS_ENTROPY:
        return lambda indices: task.collate(chosen(indices))

    def make(indices: np.ndarray) -> BaseBatch:
        batch = task.collate(chosen(indices))

        def judge(outputs: Outputs) -> float:
            if objective == ACCURACY:
                tally = batch.objective.tally(outputs)
                return (tally.correct or 0) / tally.examples
            predictions = batch.objective.predictions(outputs)
            assert predictions is not None  # the task chooses
            if objective == F1:
                return macro_f1(predictions, task.right(chosen(indices)))
            assert not isinstance(objective, str)
            taken = [rows.row(i) for i in indices]
            return checked(objective, task.say(predictions, taken), taken)

        return ScoredBatch(batch, lambda model: judge(model.forward(batch)))

    return make


def parted(make: BatchMaker, rows: int, objective: str) -> BatchMaker:
    """Returns what makes batches in parts of at most `rows` rows, with the loss of the whole.

    Raises:
        InputError: the objective is no mean over rows or tokens.
    """
    if objective not in MEANS:
        raise InputError(
            f"objective {objective} judges a batch as a whole, so it cannot be cut into "
            f"micro-batches; use {' or '.join(MEANS)}, or fewer rows with --batch-size"
        )

    def cut(indices: np.ndarray) -> BaseBatch:
        if len(indices) <= rows:
            return make(indices)
        parts = []
        for start in range(0, len(indices), rows):
            part = make(indices[start : start + rows])
            assert isinstance(part, Batch | ArrayBatch)  # what the objectives above make
            parts.append(part)
        return PartedBatch.of(parts)

    return cut


def with_label_f1(found: Metrics, task: BaseTask, examples: Sequence[BaseExample]) -> Metrics:
    """Returns metrics of a task that chooses, with the macro average of the labels' F1.

    Args:
        found: what an evaluation of `examples` found, with its predictions.
        task: made the examples.
        examples: in the order of the predictions.
    """
    assert found.predictions is not None  # the task chooses
    score = macro_f1(found.predictions, task.right(examples))
    return dataclasses.replace(found, answers={**found.answers, ANSWER_METRICS[F1]: score})


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over the labels that occur of each one's F1.

    Args:
        predictions: the chosen labels, (rows,) int64.
        labels: the right ones, (rows,) int64.
    """
    scores = []
    for label in np.union1d(predictions, labels):
        ours, theirs = predictions == label, labels == label
        scores.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    return float(np.mean(scores))


def checked(score: Score, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> float:
    """Returns the mean of what `score` says.

    Raises:
        InputError: that is neither a number nor one for each row, or not finite.
    """
    found = score(answers, rows)  # what it raises is for whoever wrote it
    if found is None:
        raise InputError(f"objective {_name(score)} returned None; return a score")
    try:
        values = np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"objective {_name(score)} returned no number: {error}") from error
    if values.shape not in ((), (len(rows),)):
        raise InputError(
            f"objective {_name(score)} returned shape {list(values.shape)} for {len(rows)} rows; "
            "return one number, or one for each row"
        )
    if not np.isfinite(values).all():
        raise InputError(f"objective {_name(score)} returned NaN or infinity; return finite scores")
    return float(values.mean())


def _generated(
    task: Generate,
    rows: Rows,
    chosen: Callable[[np.ndarray], list[Any]],
    objective: str | Score,
    max_tokens: int,
) -> BatchMaker:
    """Returns what makes batches that are judged by the texts that the model writes."""
    if objective in (CROSS_ENTROPY, ACCURACY):
        raise InputError(
            f"task {task.name} has no labels for objective {objective}; use "
            f"{LOSS}, {F1} or {EXACT_MATCH}"
        )

    def make(indices: np.ndarray) -> BaseBatch:
        taken = [rows[int(i)] for i in indices]
        places = [rows.place(int(i)) for i in indices]
        prompts = fitted_prompts(task, taken, places, max_tokens)
        truths = [truths_of(row, place) for row, place in zip(taken, places, strict=True)]

        def judge(model: Any) -> float:
            answers = generate_batch(model, prompts, max_tokens, stop=task.stop)
            if not isinstance(objective, str):
                return checked(objective, answers, taken)
            metric = METRICS[ANSWER_METRICS[objective]]
            pairs = zip(answers, truths, strict=True)
            return float(np.mean([best(metric, answer, right) for answer, right in pairs]))

        return ScoredBatch(task.collate(chosen(indices)), judge)

    return make


def _name(objective: str | Score) -> str:
    return objective if isinstance(objective, str) else getattr(objective, "__name__", "given")
