"""Masks: which single weights a direction moves."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.noise import (
    BLOCK_SIZE,
    POOL_KEY,
    POOL_SIZE,
    Mask,
    Purpose,
    Values,
    block_draws,
    windows,
)
from edgezo_runtime.philox import philox

_MASK_KEY = (POOL_KEY[0], POOL_KEY[1] + 1)


@dataclass(frozen=True)
class RandomMask(Mask):
    """Each weight moves with the same probability.

    As directions are windows of a pool of numbers, masks are windows of a pool of bits, drawn under
    a purpose of their own: bit k is set where word 0 of Philox at counter k, as a fraction of
    ``2**32``, is below the probability.

    Attributes:
        seed: the run's seed.
        step: the step it is drawn at.
        density: the probability.
    """

    seed: int
    step: int
    density: float

    def draw(self, xp: Any, size: int) -> Values:
        offsets, _ = block_draws(self.seed, Purpose.MASK, self.step, -(-size // BLOCK_SIZE))
        pool = xp.asarray(pool_of_bits(self.density))

        return lambda start, stop: windows(xp, pool, offsets, start, stop)


@functools.lru_cache(2)
def pool_of_bits(density: float) -> np.ndarray:
    """Returns the pool that masks of a density are windows of, (2**20,) bool."""
    bits = np.empty(POOL_SIZE, np.bool_)
    for start in range(0, POOL_SIZE, BLOCK_SIZE):
        words = philox((np.arange(start, start + BLOCK_SIZE), 0, 0, 0), _MASK_KEY)
        bits[start : start + BLOCK_SIZE] = words[0] < density * 2.0**32
    return bits


@dataclass(frozen=True, eq=False)
class StoredMask(Mask):
    """A mask held as one bit a weight.

    Attributes:
        version: names what the bits are now. Another one is another mask, and so are other bits.
        bits: of the index space, packed, the first in the highest bit of the first byte.
    """

    version: int
    bits: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredMask):
            return NotImplemented
        return self.bits is other.bits and self.version == other.version

    def __hash__(self) -> int:
        return hash(self.version)

    def draw(self, xp: Any, size: int) -> Values:
        def values(start: int, stop: int) -> Any:
            packed = self.bits[start // 8 : -(-stop // 8)]
            return xp.unpackbits(packed)[start % 8 :][: stop - start].astype(xp.bool_)

        return values
