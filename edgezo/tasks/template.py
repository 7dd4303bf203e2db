"""Prompts: a template over a row's columns, and how it is fitted into the model's context."""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgezo.data.rows import listed, quoted
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer


@dataclass(frozen=True)
class Template:
    """A prompt with ``{column}`` where a column's text goes; ``{{`` and ``}}`` are braces.

    Attributes:
        source: the template as written.
        pieces: its own words, each with the column that follows, or None at the end.
        shots: demonstrations that may stand in front; the first of them with room for the whole
            prompt does.
    """

    source: str
    pieces: tuple[tuple[str, str | None], ...]
    shots: tuple[str, ...] = ()

    @classmethod
    def parse(cls, source: str, answers: Collection[str] = ()) -> Template:
        """Parses a template.

        Args:
            source: the template.
            answers: columns that hold the answer, which no prompt may show.

        Raises:
            InputError: braces do not match, a field is more than a column's name, it has none,
                or it shows the answer.
        """
        pieces: list[tuple[str, str | None]] = []
        try:
            parsed = list(string.Formatter().parse(source))
        except ValueError as error:
            raise InputError(
                f"template {quoted(source)} is wrong: {error}; "
                "write {column} for a column and {{ or }} for a brace"
            ) from error
        for words, column, form, conversion in parsed:
            if column is not None and (not column or form or conversion):
                raise InputError(
                    f"template {quoted(source)} has a field that is not a column's name alone; "
                    "write {column}"
                )
            if column in answers:
                raise InputError(
                    f"template {quoted(source)} shows column {quoted(column)}, which is the "
                    "answer; leave it out"
                )
            pieces.append((words, column))
        if not any(column for _, column in pieces):
            raise InputError(
                f"template {quoted(source)} names no column; write it like {{text}} in braces"
            )
        return cls(source, tuple(pieces))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, once each."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    def filled(self, column: str, text: str) -> Template:
        """Returns the template with `text` among its own words in the place of `column`."""
        pieces: list[tuple[str, str | None]] = []
        pending = ""
        for words, name in self.pieces:
            if name == column:
                pending += words + text
            else:
                pieces.append((pending + words, name))
                pending = ""
        return Template(self.source, (*pieces, (pending, None)))

    def check(self, columns: Sequence[str], place: str) -> None:
        """Raises InputError if it names a column that is not in `columns`."""
        for column in self.columns:
            if column not in columns:
                raise InputError(
                    f"template {quoted(self.source)} names column {quoted(column)}, which {place} "
                    f"does not have; its columns are {listed(columns) or 'none'}"
                )

    def values(self, row: Mapping[str, Any], place: str) -> dict[str, str]:
        """Returns the text of each of its columns.

        Raises:
            InputError: `row` lacks a column, or one is neither text nor a number, or all are empty.
        """
        self.check(tuple(row), place)
        values: dict[str, str] = {}
        for column in self.columns:
            value = row[column]
            if type(value) not in (str, int, float):
                raise InputError(
                    f"{place}: column {quoted(column)}, which the template names, is neither "
                    "text nor a number; make it one"
                )
            values[column] = str(value)
        if not any(value.strip() for value in values.values()):
            raise InputError(
                f"{place}: column {listed(values)} is empty; give it text or drop the row"
            )
        return values

    def render(self, values: Mapping[str, str]) -> str:
        """Returns the prompt for the columns' texts."""
        return "".join(
            words + ("" if column is None else values[column]) for words, column in self.pieces
        )


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text, its tokens, and whether columns were cut to make it fit."""

    text: str
    tokens: list[int]
    cut: bool


def fit(
    template: Template,
    values: Mapping[str, str],
    tokenizer: Tokenizer,
    limit: int,
    place: str,
    keep: Literal["start", "end"] = "start",
    strip: str = "",
    encode: Callable[[str], list[int]] | None = None,
) -> Prompt:
    """Renders a prompt of at most `limit` tokens; only its longest columns are cut, to one length.

    Args:
        template: the prompt's template.
        values: text of each of its columns.
        tokenizer: the model's.
        limit: how many tokens it may take.
        place: how errors name the row.
        keep: which end of a cut column stays.
        strip: characters to remove from the prompt's end.
        encode: makes the prompt's tokens; the tokenizer's own `encode` if None.

    Raises:
        InputError: the prompt has no tokens, or the template's own words leave no room for one of
            the columns'.
    """

    encode = encode or tokenizer.encode

    def prompt(level: int | None, shots: str = "") -> Prompt:
        kept = values
        if level is not None:
            kept = {name: tokenizer.cut(text, level, keep) for name, text in values.items()}
        text = shots + template.render(kept).rstrip(strip)
        return Prompt(text, encode(text), level is not None)

    for shots in template.shots:
        shown = prompt(None, shots)
        if len(shown.tokens) <= limit:
            return shown
    whole = prompt(None)
    if not whole.tokens:
        raise InputError(f"{place}: the prompt has no tokens; give it text that the model knows")
    if len(whole.tokens) <= limit:
        return whole
    values = {name: tokenizer.cut(text, max(limit, 0), keep) for name, text in values.items()}
    best: Prompt | None = None
    low, high = 1, limit
    while low <= high:
        middle = (low + high) // 2
        tried = prompt(middle)
        if len(tried.tokens) <= limit:
            best, low = tried, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise InputError(
            f"{place}: the template and the answer leave no room for the text in a context that "
            f"holds {max(limit, 0)} tokens before the answer; shorten them"
        )
    return best
