"""Batches for a training loop of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgezo.data.batches import BatchPlan
from edgezo.data.rows import Rows, read_rows, rows_from
from edgezo.tasks import Task, make_task
from edgezo_runtime.batch import Batch
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


def batches(
    data: Path | str | Rows | Iterable[Mapping[str, Any]],
    model: TextModel,
    task: str | Task | None = None,
    batch_size: int = 16,
    seed: int = 0,
    template: str | None = None,
    label_words: str | Sequence[str] | Mapping[str, str] | None = None,
    epochs: int | None = 1,
) -> Iterator[Batch]:
    """Returns the batches of `data` for `model`, shuffled by `seed`, hardly padded.

    The data is read and encoded before this returns; batches are then made one by one.

    Args:
        data: path of a JSONL file, or the rows themselves.
        model: what the batches are for.
        task: ``"classify"``, ``"generate"``, ``"chat"`` or ``"text"``, or a task made before
            (to give evaluation rows the labels of the training rows); default: by the data's
            columns.
        batch_size: rows a batch.
        seed: orders the rows; the run's own seed is a good choice.
        template: the prompt, with ``{column}`` where a column's text goes.
        label_words: the labels' words, see `edgezo.tasks.make_task`.
        epochs: passes over the data; None never ends.

    Raises:
        InputError: the data, the template or the label words are wrong.
    """
    if isinstance(data, Rows):
        rows = data
    elif isinstance(data, str | Path):
        rows = read_rows(data)
    else:
        rows = rows_from(data)
    if not isinstance(task, Task):
        task = make_task(task, rows, model.tokenizer, model.context_length, template, label_words)
    return _stream(task, rows, batch_size, seed, epochs)


def _stream(
    task: Task, rows: Rows, batch_size: int, seed: int, epochs: int | None
) -> Iterator[Batch]:
    examples = task.encode_rows(rows)
    plan = BatchPlan([example.length for example in examples], batch_size, seed)
    steps = itertools.count(1) if epochs is None else range(1, epochs * plan.steps_per_epoch + 1)
    return (task.collate([examples[i] for i in plan.indices(step)]) for step in steps)
