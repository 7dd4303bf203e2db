"""Two batches a step: one for a zeroth-order estimate, one for true gradients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from edgezo.data.batches import BatchPlan
from edgezo_runtime.errors import InputError

#: The methods that take two batches a step; the first one assigns rows to them by length.
MIXED = ("addax", "addax-wa")


class MixedPlan:
    """The two batches of each step of Addax.

    Args:
        lengths: tokens of each example, (examples,).
        batch_size: examples a batch with true gradients.
        zo_batch_size: examples a batch of the estimate.
        seed: the run's seed.
        assign: whether the estimate is of long examples and the gradients of short ones; else both
            are of all.
        limit: the longest of the short ones, in tokens; None: the median.

    Raises:
        InputError: no example is longer, or none is shorter; or a batch size is below 1.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        batch_size: int,
        zo_batch_size: int,
        seed: int,
        assign: bool,
        limit: int | None = None,
    ) -> None:
        known = np.asarray(lengths, np.int64)
        self._long = self._short = np.arange(len(known))
        if assign and len(known):
            most = int(np.median(known)) if limit is None else limit
            self._long, self._short = np.nonzero(known > most)[0], np.nonzero(known <= most)[0]
            if not (len(self._long) and len(self._short)):
                side = "longer" if len(self._short) else "shorter"
                raise InputError(
                    f"no row is {side} than {most} tokens, so Addax cannot assign them: use "
                    "--method addax-wa, or another --length-limit"
                )
        self._estimated = BatchPlan(known[self._long], zo_batch_size, seed)
        # Of another seed, or without assignment both batches would hold the same rows.
        self._exact = BatchPlan(known[self._short], batch_size, (seed + 1) % 2**64)

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples of the estimate and of the gradients of step `step` >= 1."""
        return (
            self._long[self._estimated.indices(step)],
            self._short[self._exact.indices(step)],
        )
