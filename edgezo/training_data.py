"""What a run reads: its rows as examples, drawn as its settings say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgezo.answers import evaluate_answers, metric_names
from edgezo.data.arrays import ArrayRows
from edgezo.data.mixed import MIXED
from edgezo.data.rows import Rows
from edgezo.data.subset import held_back, subset
from edgezo.evaluate import Metrics, evaluate
from edgezo.head_start import NoStart, check_start
from edgezo.objectives import (
    ANSWER_METRICS,
    F1,
    LOSS,
    BatchMaker,
    batch_maker,
    parted,
    settled,
    with_label_f1,
)
from edgezo.settings import AUTO, PROBE, RunSettings
from edgezo.tasks import Classify, Generate, Prompt, load_prompt, read_data, task_of
from edgezo.tasks.base import BaseExample, BaseTask
from edgezo.tasks.labels import parse_label_words
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model

# What a journal's header has of a run's data only where it is not the default.
OPTIONAL_NOTES = ("columns", "objective", "drawn")
_NO_DRAW = "examples are drawn from rows of text, and this model takes arrays"


@dataclass(frozen=True)
class TrainingData:
    """A task, its examples, and what names them in a journal.

    Attributes:
        task: made the examples.
        train: examples to train on.
        batch: makes the batch of the training examples of these indices.
        held_out: examples to evaluate on.
        held_rows: the rows that they are of.
        notes: for the journal's header.
    """

    task: BaseTask
    train: Sequence[BaseExample]
    batch: BatchMaker
    held_out: Sequence[BaseExample]
    held_rows: Rows | ArrayRows | None
    notes: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """The rows of a run, and the task that they are for."""

    task: BaseTask
    prompt: Prompt
    sha256: str
    train: Rows | ArrayRows
    held_out: Rows | ArrayRows | None


def draw(model: Model, settings: RunSettings) -> Drawn:
    """Reads a run's data and takes the rows that its settings ask for.

    Raises:
        InputError: the data or a setting is wrong, or there are too few rows.
    """
    prompt = _prompt(model, settings)
    rows = read_data(settings.data, model, prompt)
    task = task_of(model, rows, prompt)  # of all rows: they say which labels there are
    _metrics(task, settings)
    held_out = draw_held_out(model, settings) if settings.eval_data else None
    train, held_out = _divided(rows, settings, held_out)
    return Drawn(task, prompt, rows.sha256, train, held_out)


def draw_held_out(model: Model, settings: RunSettings) -> Rows | ArrayRows:
    """Reads the data that settings hold out, and no other, and takes the rows that they ask for.

    Raises:
        InputError: the settings name no held-out data; it is wrong, or has too few rows.
    """
    if settings.eval_data is None:
        raise InputError("eval_data is missing: give the path of held-out rows")
    rows = read_data(settings.eval_data, model, _prompt(model, settings))
    if settings.eval_examples is None:
        return rows
    if not isinstance(rows, Rows):
        raise InputError(_NO_DRAW)
    # The same for every seed, which is what runs of several seeds are compared on.
    return held_back(rows, 0, settings.eval_examples)[0]


def prepare(model: Model, settings: RunSettings) -> TrainingData:
    """Reads a run's data and makes its examples.

    Where the run may start from a probe, labels whose words begin alike are told apart by tokens
    that mean nothing before that.
    """
    drawn = draw(model, settings)
    task = _to_fit(model, drawn.task) if settings.start in (PROBE, AUTO) else drawn.task
    train_examples = task.encode_rows(drawn.train)
    objective = settled(settings.objective, task, train_examples)
    make = batch_maker(task, drawn.train, train_examples, objective, settings.max_tokens)
    if settings.micro_batch:
        make = parted(make, settings.micro_batch, objective)
    notes: dict[str, Any] = {
        "task": task.settings(),
        "data": drawn.sha256,
        "order": {"version": 1, "batch_size": settings.batch_size},
    }
    if settings.method in MIXED:
        notes["order"] |= {n: getattr(settings, n) for n in ("zo_batch_size", "length_limit")}
    if settings.micro_batch:
        notes["order"]["micro_batch"] = settings.micro_batch
    if drawn.prompt.columns:
        notes["columns"] = dict(drawn.prompt.columns)
    if objective != LOSS:
        notes["objective"] = {"name": objective, "max_tokens": settings.max_tokens}
    if settings.prefix_cache:
        notes["prefix_cache"] = settings.prefix_cache
    asked = {"examples": settings.examples, "shots": settings.shots}
    asked["held_out"] = None if settings.eval_data else settings.eval_examples
    if any(asked.values()):
        notes["drawn"] = asked
    held_out = () if drawn.held_out is None else task.encode_rows(drawn.held_out)
    return TrainingData(task, train_examples, make, held_out, drawn.held_out, notes)


def _to_fit(model: Model, task: BaseTask) -> BaseTask:
    """Returns `task` with a token for each label, where rows of the last matrix can be fitted."""
    if not isinstance(task, Classify) or task.by_token:
        return task
    apart = task.apart()
    try:
        check_start(model, apart)
    except NoStart:
        return task
    return apart


def evaluate_held_out(
    model: Model,
    task: BaseTask,
    examples: Sequence[BaseExample],
    rows: Rows | ArrayRows | None,
    settings: RunSettings,
) -> Metrics:
    """Evaluates held-out examples, also by the settings' metric, or that of the objective."""
    found = evaluate(model, task, examples, settings.rows)
    names = _metrics(task, settings)
    if not names:
        return found
    if task.chooses:
        return with_label_f1(found, task, examples)
    assert isinstance(rows, Rows)  # they have completions
    tokens, size = settings.max_tokens, settings.rows
    return dataclasses.replace(
        found, answers=evaluate_answers(model, task, rows, names, tokens, size)
    )


def _metrics(task: BaseTask, settings: RunSettings) -> list[str]:
    """Returns the names of the metrics that held-out answers are judged by.

    Raises:
        InputError: there is no such metric, or the task's answers have none.
    """
    if settings.metric is None:
        own = ANSWER_METRICS.get(settings.objective)
        judged = isinstance(task, Generate) or (task.chooses and own == F1)
        return [own] if own and judged else []
    return metric_names(task, settings.metric)


def _divided(
    rows: Rows | ArrayRows, settings: RunSettings, held_out: Rows | ArrayRows | None
) -> tuple[Rows | ArrayRows, Rows | ArrayRows | None]:
    """Returns the rows to train on and the held-out ones, as the settings draw them."""
    count, drawn = settings.eval_examples, settings.examples or settings.shots
    if not isinstance(rows, Rows):
        if drawn or count:
            raise InputError(_NO_DRAW)
        return rows, held_out
    if count and held_out is None:
        if len(rows) < count + (settings.examples or 1):
            raise InputError(
                f"{rows.path or 'the data'} has {len(rows)} rows; {settings.examples or 'some'} to "
                f"train on and {count} to hold out were asked"
            )
        held_out, rows = held_back(rows, settings.seed, count)
    if drawn:
        rows = subset(rows, settings.seed, settings.examples, settings.shots)
    return rows, held_out


def _prompt(model: Model, settings: RunSettings) -> Prompt:
    prompt = load_prompt(settings.prompt, model.form["kind"])
    return prompt.override(settings.task, settings.template, _words(settings.label_words))


def _words(given: tuple[str, ...] | None) -> list[str] | dict[str, str] | None:
    """Returns label words as a list, or by label where they are written as label=word."""
    if given is None or not any("=" in word for word in given):
        return None if given is None else list(given)
    return parse_label_words(",".join(given))
