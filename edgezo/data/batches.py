"""Which rows form which batch: an order that depends on nothing but the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import InputError
from edgezo_runtime.noise import Purpose, order, random_words

if TYPE_CHECKING:
    from edgezo.tasks.base import BaseExample, BaseTask

#: Rows are sorted by length within windows of at most this many batches, and a quarter of an
#: epoch: within a window, the same rows would meet in every epoch.
WINDOW = 32


class BatchPlan:
    """The batches of a run: shuffled anew each epoch, rows of like length together.

    An epoch's rows are put in the order of 64-bit random words, cut into windows of some batches,
    sorted by length within each window and cut into batches, whose order is shuffled in turn.
    Every row comes once an epoch; the epoch's one incomplete batch is filled up with rows from the
    front of its shuffled order.

    Args:
        lengths: tokens of each example, (examples,).
        batch_size: examples a batch; all of them where there are fewer.
        seed: the run's seed.

    Raises:
        InputError: there are no examples, or `batch_size` is below 1.
    """

    def __init__(self, lengths: ArrayLike, batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths, np.int64)
        if not len(self._lengths):
            raise InputError("there are no examples to form batches of; give data with rows")
        if batch_size < 1:
            raise InputError(f"batch size is {batch_size}; use 1 or more")
        self.batch_size = min(batch_size, len(self._lengths))
        self.seed = seed
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return -(-len(self._lengths) // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """Returns the examples of step `step` >= 1, (batch_size,) int64, no one twice."""
        if step < 1:
            raise InputError(f"step is {step}; steps count from 1")
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self._epoch[1][batch]

    def _batches(self, epoch: int) -> np.ndarray:  # (steps_per_epoch, batch_size)
        size = self.batch_size
        words = random_words(self.seed, Purpose.BATCH_ORDER, epoch, len(self._lengths))
        shuffled = order(words[0], words[1])
        rows = shuffled.copy()
        width = min(WINDOW, max(self.steps_per_epoch // 4, 1)) * size
        for start in range(0, len(rows), width):
            window = rows[start : start + width]
            window[:] = window[np.argsort(self._lengths[window], kind="stable")]
        missing = self.steps_per_epoch * size - len(rows)
        if missing:
            rest = rows[len(rows) - (size - missing) :]
            fill = shuffled[~np.isin(shuffled, rest)][:missing]
            rows = np.concatenate([rows, fill])
        count = self.steps_per_epoch
        turns = order(words[2][:count], words[3][:count])
        return rows.reshape(count, size)[turns].astype(np.int64)


def eval_batches(
    task: BaseTask, examples: Sequence[BaseExample], batch_size: int
) -> Iterator[tuple[np.ndarray, BaseBatch]]:
    """Yields every example once, shortest first.

    A batch holds `batch_size` sequences at most, where no single example has more: what is chosen
    among many options takes no more memory than what has one.

    Yields:
        The examples' indices, (examples of the batch,) int64, and their batch: what belongs to
        row r of the batch belongs to example ``indices[r]``.
    """
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; use 1 or more")
    for indices in eval_indices(examples, batch_size):
        yield indices, task.collate([examples[i] for i in indices])


def eval_indices(examples: Sequence[BaseExample], batch_size: int) -> Iterator[np.ndarray]:
    """Yields which examples form each batch of `eval_batches`."""
    order = np.argsort([example.length for example in examples], kind="stable").astype(np.int64)
    start = 0
    while start < len(order):
        end = start + 1
        sequences = examples[order[start]].sequences
        while end < len(order) and sequences + examples[order[end]].sequences <= batch_size:
            sequences += examples[order[end]].sequences
            end += 1
        yield order[start:end]
        start = end
