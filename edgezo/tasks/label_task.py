"""What tasks with labels share: a row has one label and one prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgezo.data.rows import label_value
from edgezo.tasks.base import Example, Task
from edgezo.tasks.labels import Labels
from edgezo.tasks.template import Template, fit
from edgezo_runtime.batch import CandidateLoss, Objective
from edgezo_runtime.text import Tokenizer

#: Columns that hold the answer, which no prompt may show.
ANSWERS = ("label", "label_text")


class LabelTask(Task):
    """Chooses one of the labels for each row; by default with one candidate for each.

    Args:
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        labels: the labels and their words.
        template: the prompt.
    """

    chooses = True
    #: Whether each label is told by the logit of one token of its own.
    by_token = True

    def __init__(
        self, tokenizer: Tokenizer, context_length: int, labels: Labels, template: Template
    ) -> None:
        super().__init__(tokenizer, context_length)
        self.labels = labels
        self.template = template

    @property
    def begun(self) -> np.ndarray:
        """Whose rows of the last matrix say what the untuned model makes of each label, (labels,).

        They are the candidates, unless these mean nothing to it.
        """
        return self.candidates

    def read(
        self,
        row: Mapping[str, Any],
        place: str,
        limit: int,
        encode: Callable[[str], list[int]],
        strip: str = "",
    ) -> tuple[int, list[int]]:
        """Returns the row's label and its prompt's tokens; see `edgezo.tasks.template.fit`."""
        label = self.labels.index(label_value(row, place), place)
        values = self.template.values(row, place)
        prompt = fit(
            self.template, values, self.tokenizer, limit, place, strip=strip, encode=encode
        )
        self.truncated += prompt.cut
        return label, prompt.tokens

    def objective(self, examples: Sequence[Example]) -> Objective:
        """Returns a loss over the candidates."""
        return CandidateLoss(np.array([example.label for example in examples], np.int64))

    def say(self, predictions: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns the predicted labels."""
        return [self.labels.labels[index] for index in predictions]

    def settings(self) -> dict[str, Any]:
        """Returns template, labels and words."""
        return super().settings() | {
            "template": self.template.source,
            "labels": list(self.labels.labels),
            "words": list(self.labels.words),
        }
