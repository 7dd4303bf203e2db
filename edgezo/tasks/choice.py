"""Multiple choice: which of a row's own options follows the prompt?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgezo.data.rows import listed, quoted
from edgezo.tasks.answers import Answers
from edgezo.tasks.base import Example, Task, option_loss
from edgezo.tasks.template import Template, fit
from edgezo_runtime.batch import BaseBatch, Objective, TokenLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

DEFAULT_TEMPLATE = "{prompt}"
ANSWERS = ("label", "label_text")


class Choice(Task):
    """Chooses the option of the highest mean log-probability per token, after the prompt.

    A step lowers the mean negative log-probability of the right option's tokens, for which it reads
    that option alone (as Malladi et al. 2023, arXiv:2305.17333, do for COPA and ReCoRD).

    Args:
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        template: the prompt. A space goes between it and an option, unless it ends in a new line
            or a tab; spaces at its end make no difference.
        decoder_start: the token that begins an answer in a decoder; see `Answers`.

    Raises:
        InputError: the template is wrong.
    """

    name = "choice"
    chooses = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int,
        template: str = DEFAULT_TEMPLATE,
        decoder_start: int | None = None,
    ) -> None:
        super().__init__(tokenizer, context_length)
        self.answers = Answers(tokenizer, decoder_start)
        self._source = template
        self.template = Template.parse(template.rstrip(" "), ANSWERS)
        self._space = "" if self.template.source[-1:].isspace() else " "

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the row's one example; the longest columns are cut at their end to fit."""
        options = options_of(row, place)
        right = right_options(row, options, place)
        values = self.template.values(row, place)
        context = self.template.render(dict.fromkeys(values, "text"))
        encoded = [self.answers.encode(context, self._space + option) for option in options]
        longest = max(map(len, encoded))
        if not all(encoded) or longest > self.context_length:
            odd = min(encoded, key=len) if not all(encoded) else max(encoded, key=len)
            raise InputError(
                f"{place}: option {quoted(options[encoded.index(odd)])} has {len(odd)} tokens; "
                f"the model takes from 1 to {self.context_length}"
            )
        prompt = fit(
            self.template,
            values,
            self.tokenizer,
            self.answers.room(self.context_length, longest - 1),
            place,
            strip=self._space,
            encode=self.answers.encode_prompt,
        )
        self.truncated += prompt.cut
        parts = tuple(self.answers.score(prompt.tokens, option) for option in encoded)
        return [Example(parts, right[0], right)]

    def solved(self, row: Mapping[str, Any], place: str) -> str:
        """Returns the row's prompt and the right option after it."""
        options = options_of(row, place)
        prompt = self.template.render(self.template.values(row, place)).rstrip(self._space)
        return prompt + self._space + options[right_options(row, options, place)[0]]

    def training_batch(self, examples: Sequence[Example]) -> BaseBatch:
        """Returns the right options alone, judged by the log-probability of their tokens."""
        right = [dataclasses.replace(e, parts=(e.parts[e.label],), label=0) for e in examples]
        return dataclasses.replace(self.collate(right), objective=TokenLoss(len(examples)))

    def objective(self, examples: Sequence[Example]) -> Objective:
        """Returns the cross-entropy over the options."""
        return option_loss(examples, mean=True)

    def say(self, predictions: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns the predicted options."""
        return [row["choices"][index] for row, index in zip(rows, predictions, strict=True)]

    def settings(self) -> dict[str, Any]:
        """Returns the template."""
        return super().settings() | {"template": self._source, **self.answers.settings()}


def options_of(row: Mapping[str, Any], place: str) -> list[str]:
    """Returns the row's options; raises InputError unless they are two texts or more."""
    options = row.get("choices")
    if not isinstance(options, list) or len(options) < 2:
        raise InputError(f'{place}: column "choices" should be a list of two options or more')
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise InputError(f"{place}: option {quoted(option)} is not a text; write it as one")
    return options


def right_options(row: Mapping[str, Any], options: Sequence[str], place: str) -> tuple[int, ...]:
    """Returns the indices of the right options; the label is an index, a text, or a list of them.

    Raises:
        InputError: it is none of the options.
    """
    label = row.get("label")
    labels = label if isinstance(label, list) and label else [label]
    return tuple(_index(value, options, place) for value in labels)


def _index(label: object, options: Sequence[str], place: str) -> int:
    if type(label) is int and 0 <= label < len(options):
        return label
    if isinstance(label, str) and label in options:
        return options.index(label)
    raise InputError(
        f"{place}: label {quoted(label)} is none of its options; give one of {listed(options)}, "
        f"or a number from 0 to {len(options) - 1}"
    )
