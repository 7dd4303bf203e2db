"""Batches for a training loop of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from edgezo.data.arrays import ArrayRows
from edgezo.data.batches import BatchPlan
from edgezo.data.rows import Rows
from edgezo.objectives import LOSS, MAX_TOKENS, Score, batch_maker
from edgezo.tasks import BaseTask, load_prompt, make_task, read_data, task_of
from edgezo.tasks.of_model import Data
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model
from edgezo_runtime.text import Tokenizer


class TextModel(Protocol):
    """What `batches` needs of a model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def context_length(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        ...

    @property
    def form(self) -> Mapping[str, Any]:
        """What kind of model it is; see `Manifest.form`."""
        ...


def batches(
    data: Data,
    model: TextModel | Model,
    task: str | BaseTask | None = None,
    batch_size: int = 16,
    seed: int = 0,
    template: str | None = None,
    label_words: str | Sequence[str] | Mapping[str, str] | None = None,
    epochs: int | None = 1,
    prompt: str | Path | None = None,
    objective: str | Score = LOSS,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[BaseBatch]:
    """Returns the batches of `data` for `model`, shuffled by `seed`, hardly padded.

    The data is read and encoded before this returns; batches are then made one by one.

    Args:
        data: path of a JSONL file, or the rows themselves; for a model of arrays also the path of
            an `.npz` file, or a mapping of column names to arrays.
        model: what the batches are for.
        task: ``"classify"``, ``"choice"``, ``"masked"``, ``"head"``, ``"generate"`` or ``"text"``,
            or a task made before (to give evaluation rows the labels of the training rows);
            default: by the model and the data's columns.
        batch_size: rows a batch.
        seed: orders the rows; the run's own seed is a good choice.
        template: the prompt, with ``{column}`` where a column's text goes.
        label_words: the labels' words, see `edgezo.tasks.make_task`.
        epochs: passes over the data; None never ends.
        prompt: the name of a prompt in the catalogue or the path of a YAML file with one; what is
            given besides wins.
        objective: what a step lowers: ``"loss"``, or 1 - the score called ``"accuracy"``, ``"f1"``
            or ``"exact-match"``, or of a function of the answers and their rows; see
            `edgezo.objectives.batch_maker`.
        max_tokens: longest answer, where the objective judges generated text.

    Raises:
        InputError: the data, the template or the label words are wrong.
    """
    asked = load_prompt(prompt, model.form["kind"])
    rows = read_data(data, model, asked)
    if isinstance(task, BaseTask):
        return _stream(task, rows, batch_size, seed, epochs, objective, max_tokens)
    asked = asked.override(task, template, label_words)
    if isinstance(rows, Rows):
        made: BaseTask = make_task(
            asked.task,
            rows,
            model.tokenizer,
            model.context_length,
            asked.template,
            asked.label_words,
            form=model.form,
            stop=asked.stop,
        )
    else:
        assert isinstance(model, Model)  # nothing else takes arrays
        made = task_of(model, rows, asked)
    return _stream(made, rows, batch_size, seed, epochs, objective, max_tokens)


def _stream(
    task: BaseTask,
    rows: Rows | ArrayRows,
    batch_size: int,
    seed: int,
    epochs: int | None,
    objective: str | Score,
    max_tokens: int,
) -> Iterator[BaseBatch]:
    for name, value in (("batch_size", batch_size), ("epochs", epochs)):
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise InputError(f"{name} is {value!r}; use a whole number of 1 or more")
    examples = task.encode_rows(rows)
    plan = BatchPlan([example.length for example in examples], batch_size, seed)
    steps = itertools.count(1) if epochs is None else range(1, epochs * plan.steps_per_epoch + 1)
    make = batch_maker(task, rows, examples, objective, max_tokens)
    return (make(plan.indices(step)) for step in steps)
