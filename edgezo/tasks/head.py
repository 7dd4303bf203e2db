"""Classification by the model's own head: which of its labels fits the text?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgezo.data.rows import Rows, label_value, listed
from edgezo.tasks.base import Example, Part
from edgezo.tasks.label_task import ANSWERS, LabelTask
from edgezo.tasks.labels import Labels
from edgezo.tasks.template import Template
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

DEFAULT_TEMPLATE = "{text}"


class Head(LabelTask):
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
        super().__init__(tokenizer, context_length, labels, Template.parse(template, ANSWERS))
        self.position = position

    @property
    def candidates(self) -> np.ndarray:
        """Every label's number, (labels,) int64."""
        return np.arange(len(self.labels.labels), dtype=np.int64)

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the row's one example; the longest columns are cut at their end to fit."""
        label, tokens = self.read(row, place, self.context_length, self.tokenizer.encode_whole)
        read = np.array([self.position % len(tokens)], np.int64)
        part = Part(np.array(tokens, np.int64), np.array([label], np.int64), read)
        return [Example((part,), label)]

    def settings(self) -> dict[str, Any]:
        """Returns template, labels and what the head reads."""
        return super().settings() | {"position": self.position}


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
