r"""Linear probing of multiple choice: which option's features look like those of right answers?

.. math::
    \min_w \; -\frac{1}{n} \sum_i \log \frac{e^{w \cdot h_{i y_i}}}{\sum_o e^{w \cdot h_{io}}}
        + \frac{\lambda}{2} \|w\|^2

h are the last hidden states at an option's last token, after the prompt and the whole option: one
direction is fitted for all rows, whatever their options are.

References:
    McFadden, "Conditional Logit Analysis of Qualitative Choice Behavior", 1974.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgezo.data.batches import eval_batches
from edgezo.evaluate import Metrics
from edgezo.features import LOGITS, read_answers
from edgezo.logistic import fit_options
from edgezo.tasks.base import Example, Part
from edgezo.tasks.choice import Choice
from edgezo_runtime.features import reveal
from edgezo_runtime.model import Model


@dataclass(frozen=True)
class OptionRows:
    """Rows with options of their own.

    Attributes:
        inputs: of each row (options, hidden).
        right: the trained option of each.
        accepted: the options of each that count as right.
    """

    inputs: Sequence[np.ndarray]
    right: Sequence[int]
    accepted: Sequence[Sequence[int]]

    @classmethod
    def read(
        cls, model: Model, task: Choice, examples: Sequence[Example], batch_size: int
    ) -> tuple[OptionRows, int]:
        """Returns the examples' features, and how many forward passes they took."""
        whole = [_whole(example, task.context_length) for example in examples]
        batches = list(eval_batches(task, whole, batch_size))
        found: list[np.ndarray] = [np.empty(0)] * len(whole)

        def keep(index: int, read: np.ndarray, led: np.ndarray) -> None:
            found[index] = read.copy()  # the pass's own array goes

        read_answers(model, reveal(model.bundle, LOGITS), whole, batches, keep)
        accepted = [example.accepted or (example.label,) for example in examples]
        return cls(found, [example.label for example in examples], accepted), len(batches)

    def __len__(self) -> int:
        return len(self.right)

    def take(self, indices: np.ndarray) -> OptionRows:
        """Returns some of the rows."""
        return OptionRows(
            [self.inputs[i] for i in indices],
            [self.right[i] for i in indices],
            [self.accepted[i] for i in indices],
        )

    def fit(self, decay: float) -> np.ndarray:
        """Returns w, (hidden,), of features as they are."""
        return fit_options(self.inputs, self.right, decay)

    def judge(self, fitted: np.ndarray) -> Metrics:
        """Returns how w does on the rows."""
        loss, told = 0.0, []
        for options, right in zip(self.inputs, self.right, strict=True):
            scores = options @ fitted
            top = scores.max()
            loss += top + np.log(np.exp(scores - top).sum()) - scores[right]
            told.append(int(scores.argmax()))
        count = len(self)
        correct = sum(index in good for index, good in zip(told, self.accepted, strict=True))
        return Metrics(count, float(loss) / count, correct / count, None, np.array(told, np.int64))


def _whole(example: Example, context_length: int) -> Example:
    """Returns the example with its options read to their last token, where each is asked."""
    parts = tuple(_asked_at_the_end(part, context_length) for part in example.parts)
    return dataclasses.replace(example, parts=parts)


def _asked_at_the_end(part: Part, context_length: int) -> Part:
    last = part.targets[-1:]  # what is predicted there does not matter
    if part.decoder_tokens is not None:
        return Part(part.tokens, last, decoder_tokens=np.append(part.decoder_tokens, last))
    return Part(np.append(part.tokens, last)[-context_length:], last)
