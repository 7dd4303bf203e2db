"""The data and the task that a model calls for: text, or arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgezo.data.arrays import ArrayRows, arrays_from, read_arrays
from edgezo.data.rows import Rows, read_rows, rows_from
from edgezo.tasks.arrays import Arrays
from edgezo.tasks.base import BaseTask
from edgezo.tasks.make import make_task, task_from_settings
from edgezo.tasks.prompts import Prompt
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model

#: A path of a data file; rows of text; columns of arrays.
Data = Path | str | Rows | ArrayRows | Iterable[Mapping[str, Any]] | Mapping[str, Any]


def takes_arrays(model: object) -> bool:
    """Whether `model` takes arrays and not text."""
    return isinstance(model, Model) and model.bundle.manifest.context_length is None


def read_data(data: Data, model: object, prompt: Prompt | None = None) -> Rows | ArrayRows:
    """Returns rows of text or of arrays, as `model` takes them, with the columns of `prompt`.

    Raises:
        InputError: the data is missing or damaged.
    """
    if isinstance(data, Rows | ArrayRows):
        return data
    derive = prompt.derive if prompt and prompt.columns else None
    if isinstance(data, str | Path):
        return read_arrays(data) if takes_arrays(model) else read_rows(data, derive)
    if takes_arrays(model):
        if not isinstance(data, Mapping):
            raise InputError("a model of arrays takes a mapping of column names to arrays")
        return arrays_from({str(name): column for name, column in data.items()})
    if isinstance(data, Mapping):
        raise InputError("a model of text takes rows, one mapping for each, not columns")
    return rows_from(data, derive)


def task_of(model: Model, rows: Rows | ArrayRows, prompt: Prompt) -> BaseTask:
    """Returns the task for `rows`: the bundle's own for arrays, else see `make_task`.

    Raises:
        InputError: a setting is not for this model, or wrong.
    """
    if isinstance(rows, Rows):
        return make_task(
            prompt.task,
            rows,
            model.tokenizer,
            model.context_length,
            template=prompt.template,
            label_words=prompt.label_words,
            defaults=model.bundle.manifest.task,
            form=model.form,
            stop=prompt.stop,
        )
    if prompt not in (Prompt(), Prompt(task=Arrays.name)):
        raise InputError(
            f"{model.bundle.folder} takes arrays: leave out --prompt, --task, --template and "
            "--label-words"
        )
    return Arrays(model.bundle.manifest)


def task_of_run(model: Model, settings: Mapping[str, Any]) -> BaseTask:
    """Returns the task of a run of `model` whose journal has its `BaseTask.settings`.

    Raises:
        InputError: the settings are damaged.
    """
    if takes_arrays(model):
        return Arrays(model.bundle.manifest)
    return task_from_settings(settings, model.tokenizer)
