"""Columns made of a row's own: each is an expression of jinja2's, as in ``question | lower``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgezo.data.rows import Row, listed, quoted
from edgezo_runtime.errors import InputError


class Columns:
    """Adds columns to rows; expressions run in jinja2's sandbox.

    Besides jinja2's filters there is ``uncapitalize``, which writes a text's first word small
    unless it is "I".

    Args:
        sources: the expression of each column; it sees the row's own columns as variables.

    Raises:
        InputError: an expression is wrong.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        # Imported here: most work never needs it.
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        environment.filters["uncapitalize"] = _uncapitalize
        self._columns: dict[str, Callable[..., Any]] = {}
        for name, source in sources.items():
            try:
                self._columns[name] = environment.compile_expression(source, False)
            except jinja2.TemplateError as error:
                raise InputError(
                    f"column {quoted(name)} is {quoted(source)}, which is no expression: {error}"
                ) from error

    def __call__(self, row: Row, place: str) -> Row:
        """Returns `row` with the columns added, or in the place of its own.

        Raises:
            InputError: an expression cannot be computed of this row.
        """
        return row | {name: self._value(name, row, place) for name in self._columns}

    def _value(self, name: str, row: Row, place: str) -> Any:
        try:
            value = self._columns[name](**row)
            if isinstance(value, Iterable) and not isinstance(value, str | list | Mapping):
                value = list(value)
        except Exception as error:  # whatever the expression raises
            what = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{place}: the prompt cannot make column {quoted(name)} of columns {listed(row)}: "
                f"{what}; give rows with what it reads, or another prompt"
            ) from error
        return value


def _uncapitalize(text: str) -> str:
    first, space, rest = text.partition(" ")
    return text if first == "I" else first.lower() + space + rest
