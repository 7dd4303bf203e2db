"""Features of an untuned model: what its last projection reads at each example's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edgezo.tasks import Arrays, BaseTask
from edgezo.tasks.base import BaseExample, Example
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.features import Revealed, reveal
from edgezo_runtime.model import Model

LOGITS = "candidate_logits"
Batches = Iterable[tuple[np.ndarray, BaseBatch]]


def features(
    model: Model, task: BaseTask, examples: Sequence[BaseExample], batches: Batches
) -> np.ndarray:
    """Returns what the model's last projection reads at each example's answer, (examples, hidden).

    Of a text model these are the last hidden states where the label's word is predicted.

    Args:
        model: it is not changed.
        task: made the examples.
        examples: in the order of the result.
        batches: all of them, with their indices.

    Raises:
        InputError: the graph does not end in a linear layer.
    """
    output = str(model.bundle.manifest.task["output"]) if isinstance(task, Arrays) else LOGITS
    revealed = reveal(model.bundle, output)
    found: list[np.ndarray] = [np.empty(0)] * len(examples)

    def keep(index: int, read: np.ndarray, led: np.ndarray) -> None:
        found[index] = read[0].ravel().copy()  # the pass's own array goes

    read_answers(model, revealed, examples, batches, keep)
    return np.stack(found)


def read_answers(
    model: Model,
    revealed: Revealed,
    examples: Sequence[BaseExample],
    batches: Batches,
    keep: Callable[[int, np.ndarray, np.ndarray], None],
) -> None:
    """Gives `keep` what a projection reads at each example's answers, and what it leads to.

    Args:
        model: it is not changed.
        revealed: of the model's bundle.
        examples: by their indices.
        batches: all of them, with their indices.
        keep: gets an example's index, the features of its answers, (answers, hidden), and the
            outputs there, (answers, choices).
    """
    changing = {parameter.name for parameter in model.bundle.manifest.parameters}
    with model.unbound():
        session = model.session(revealed.bundle, changing)
        for indices, batch in batches:
            outputs = session.forward(batch)
            ends = np.cumsum([_answers(examples[index]) for index in indices])[:-1]
            both = (np.split(outputs[name], ends) for name in (revealed.read, revealed.output))
            for index, read, led in zip(indices, *both, strict=True):
                keep(int(index), read, led)
        del session


def _answers(example: BaseExample) -> int:
    """Returns how many answers of a batch are the example's; the first follows its prompt."""
    return sum(len(part.targets) for part in example.parts) if isinstance(example, Example) else 1
