"""Prompts as data: how to ask for a task, from the catalogue or from a user's own file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from edgezo.data.columns import Columns
from edgezo.data.rows import Row, listed, quoted
from edgezo.tasks.labels import GivenWords
from edgezo_runtime.errors import InputError

CATALOGUE = "catalogue.yaml"


@dataclass(frozen=True)
class Prompt:
    """How a task is asked for.

    Attributes:
        task: its name; None: by the model and the data.
        template: with columns in braces; None: the task's own.
        label_words: the word of each label; None: from the data.
        columns: columns to make of the row's own; see `Columns`.
        stop: the text that ends a generated answer; None: the model's own end of text.
    """

    task: str | None = None
    template: str | None = None
    label_words: GivenWords | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    stop: str | None = None

    @cached_property
    def _columns(self) -> Columns:
        return Columns(self.columns)

    def derive(self, row: Row, place: str) -> Row:
        """Returns `row` with the prompt's columns."""
        return self._columns(row, place) if self.columns else row

    def override(
        self, task: str | None, template: str | None, label_words: GivenWords | None
    ) -> Prompt:
        """Returns the prompt with what is not None in the place of its own."""
        given = {"task": task, "template": template, "label_words": label_words}
        return dataclasses.replace(self, **{n: v for n, v in given.items() if v is not None})


def names() -> list[str]:
    """Returns the names of the catalogue's prompts."""
    return list(_catalogue())


def is_name(source: str) -> bool:
    """Whether `source` is a name and not the path of a file."""
    return not source.endswith((".yaml", ".yml"))


def load_prompt(source: str | Path | None, kind: str = "causal") -> Prompt:
    """Returns the prompt called `source` in the catalogue, or that of the YAML file `source`.

    Args:
        source: a name, a path that ends in ``.yaml`` or ``.yml``, or None for no prompt at all.
        kind: of the model that is asked; a prompt may have another form for ``"masked"`` ones.

    Raises:
        InputError: there is no such prompt, or the file is wrong.
    """
    if source is None:
        return Prompt()
    source = str(source)
    if is_name(source):
        if source not in names():
            raise InputError(
                f"prompt is {quoted(source)}; use one of {', '.join(names())}, "
                "or a YAML file of your own"
            )
        return _prompt(_catalogue()[source], kind, f"prompt {source}")
    try:
        entry = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"cannot read prompt {source}: {what}") from error
    return _prompt(entry, kind, f"prompt {source}")


def _catalogue() -> Mapping[str, Any]:
    return yaml.safe_load((files("edgezo.tasks") / CATALOGUE).read_text(encoding="utf-8"))


def _prompt(entry: object, kind: str, place: str) -> Prompt:
    """Makes a prompt of its entry, or of the part of it for masked language models."""
    if isinstance(entry, Mapping) and isinstance(entry.get("masked"), Mapping):
        own = {"task": "masked", **entry["masked"]} if kind == "masked" else {}
        entry = {name: value for name, value in entry.items() if name != "masked"} | own
    fields = [field.name for field in dataclasses.fields(Prompt)]
    if not isinstance(entry, Mapping) or not set(entry) <= set(fields):
        odd = listed(set(entry) - set(fields)) if isinstance(entry, Mapping) else "no mapping"
        raise InputError(f"{place} holds {odd}; a prompt has {', '.join(fields)} and masked")
    for name in ("task", "template", "stop"):
        if not isinstance(entry.get(name), str | None):
            raise InputError(f"{place} has a {name} that is no text")
    columns = entry.get("columns") or {}
    if not isinstance(columns, Mapping) or not all(isinstance(v, str) for v in columns.values()):
        raise InputError(f"{place}: columns should map each name to an expression in quotes")
    words = entry.get("label_words")
    if isinstance(words, Mapping):
        words = {str(label): _word(word, place) for label, word in words.items()}
    elif isinstance(words, Sequence) and not isinstance(words, str):
        words = [_word(word, place) for word in words]
    elif not isinstance(words, str | None):
        raise InputError(f"{place}: label_words should map each label to its word")
    prompt = Prompt(**{**entry, "label_words": words, "columns": dict(columns)})
    Columns(prompt.columns)
    return prompt


def _word(word: object, place: str) -> str:
    if not isinstance(word, str):
        raise InputError(f"{place}: label word {word!r} is no text; YAML wants quotes around it")
    return word
