"""Classification by the model's own head: which of its labels fits the text?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgezo.data.rows import Rows, label_value, listed
from edgezo.tasks.base import Example, Part, Task
from edgezo.tasks.labels import Labels
from edgezo.tasks.template import Template, fit
from edgezo_runtime.batch import CandidateLoss, Objective
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

DEFAULT_TEMPLATE = "{text}"
ANSWERS = ("label", "label_text")


class Head(Task):
    """Cross-entropy over the logits of a sequence classifier's head.

    The labels' numbers take the place of tokens in the graph's targets and candidates.

    Args:
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        labels: the data's labels in the order of the head's, and the head's names for them.
        template: how a row's columns become the text.
        position: the token that the head reads: the first, 0, or the last, -1.

    Raises:
        InputError: the template is wrong.
    """

    name = "head"

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int,
        labels: Labels,
        template: str = DEFAULT_TEMPLATE,
        position: int = 0,
    ) -> None:
        super().__init__(tokenizer, context_length)
        self.labels = labels
        self.template = Template.parse(template, ANSWERS)
        self.position = position

    @property
    def candidates(self) -> np.ndarray:
        """Every label's number, (labels,) int64."""
        return np.arange(len(self.labels.labels), dtype=np.int64)

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the row's one example; the longest columns are cut at their end to fit."""
        label = self.labels.index(label_value(row, place), place)
        prompt = fit(
            self.template,
            self.template.values(row, place),
            self.tokenizer,
            self.context_length,
            place,
            encode=self.tokenizer.encode_whole,
        )
        self.truncated += prompt.cut
        read = np.array([self.position % len(prompt.tokens)], np.int64)
        part = Part(np.array(prompt.tokens, np.int64), np.array([label], np.int64), read)
        return [Example((part,), label)]

    def objective(self, examples: Sequence[Example]) -> Objective:
        """Returns a loss over the head's labels."""
        return CandidateLoss(np.array([example.label for example in examples], np.int64))

    def settings(self) -> dict[str, Any]:
        """Returns template, labels and what the head reads."""
        return {
            "name": self.name,
            "context_length": self.context_length,
            "template": self.template.source,
            "labels": list(self.labels.labels),
            "words": list(self.labels.words),
            "position": self.position,
        }


def head_labels(rows: Rows, names: Sequence[str]) -> Labels:
    """Returns the labels of `rows` in the order of a head's `names`.

    They are the names themselves, in any case, or their numbers from 0 on. A head whose names say
    nothing (``LABEL_0``) takes as many labels as it has, in their order.

    Raises:
        InputError: the rows' labels fit the head in none of these ways.
    """
    seen = {label_value(row, rows.place(index)) for index, row in enumerate(rows)}
    numbers = [str(number) for number in range(len(names))]
    for labels in (list(names), [name.lower() for name in names], numbers):
        if seen <= set(labels):
            return Labels(tuple(labels), tuple(names))
    nameless = list(names) == [f"LABEL_{number}" for number in numbers]
    if nameless and len(seen) == len(names):
        return Labels(tuple(sorted(seen)), tuple(names))
    raise InputError(
        f"the data's labels are {listed(sorted(seen))}, the model's head has {listed(names)}; give "
        f"rows with those, or with their numbers from 0 to {len(names) - 1}"
    )
