"""The numbers by which a gradient chooses rows, regenerated from a run's seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgezo_runtime.noise import Purpose, random_words


@dataclass(frozen=True)
class Draws:
    """The name of all the numbers that the gradient of one batch takes.

    Attributes:
        seed: the run's.
        step: the step it belongs to.
        part: which of the step's micro-batches it is.
    """

    seed: int
    step: int
    part: int = 0

    def uniform(self, product: int, products: int, count: int) -> np.ndarray:
        """Returns (count,) float32 multiples of 2**-24, above 0 and at most 1.

        Args:
            product: whose rows they choose.
            products: how many there are.
            count: of the numbers.
        """
        sample = self.part * products + product
        words = random_words(self.seed, Purpose.ROWS, self.step, -(-count // 4), sample)
        whole = np.stack(words, axis=1).reshape(-1)[:count] >> 8
        return (whole + 1).astype(np.float32) * np.float32(2**-24)


#: Of a gradient that belongs to no run.
NO_RUN = Draws(0, 0)
