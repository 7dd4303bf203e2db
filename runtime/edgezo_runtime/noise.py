r"""Noise, version 1: the directions of a run, regenerated from its seed.

A direction is not drawn element by element. Its index space is cut into blocks of ``2**15``
elements, and each block is a window of one fixed, circular pool of ``2**20`` values:

.. math:: z[b \cdot 2^{15} + j] = s_b \, pool[(o_b + j) \bmod 2^{20}]

with offset ``o_b`` and sign ``s_b`` from Philox4x32-10. The pool holds centred, scaled
binomial(128, 1/2) counts: mean 0, variance 1, and exact in every language.
Golden vectors are in ``runtime/vectors``.
"""

from __future__ import annotations

import enum
import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgezo_runtime.errors import InputError
from edgezo_runtime.philox import philox, split64

VERSION = 1
POOL_SIZE = 1 << 20
BLOCK_SIZE = 1 << 15
DISTRIBUTIONS = ("binomial", "rademacher", "gaussian")
_POOL_KEY = (0x65646765, 0x7A6F0001)  # "edge", "zo", version 1


class Purpose(enum.IntEnum):
    """What a random number is for; it is part of the counter, so that purposes never collide."""

    DIRECTION = 0
    BATCH_ORDER = 1
    SAMPLING = 2  # text generation
    SUBSET = 3  # which rows of the data
    ADAPTER_INIT = 16  # what an adapter's tensors begin with


@functools.cache
def pool(distribution: str = "binomial") -> np.ndarray:
    """Returns the fixed pool, (2**20,) float32, read-only.

    Args:
        distribution: ``"binomial"`` (close to normal) or ``"rademacher"`` (random signs).
    """
    if distribution not in _POOLS:
        raise InputError(f"noise distribution {distribution!r} has no pool; use binomial")
    values = np.empty(POOL_SIZE, np.float32)
    # In pieces: the generator's 64-bit words would take 20 times the pool's memory.
    for start in range(0, POOL_SIZE, BLOCK_SIZE):
        words = philox((np.arange(start, start + BLOCK_SIZE), 0, 0, 0), _POOL_KEY)
        values[start : start + BLOCK_SIZE] = _POOLS[distribution](words)
    values.flags.writeable = False
    return values


def _binomial(words: Sequence[np.ndarray]) -> np.ndarray:
    counts = np.zeros(words[0].shape, np.int32)
    for word in words:
        counts += np.bitwise_count(word)
    return (counts - 64).astype(np.float32) * np.float32(0.17677669)


def _rademacher(words: Sequence[np.ndarray]) -> np.ndarray:
    return np.where(words[0] & 1, np.float32(-1), np.float32(1))


_POOLS = {"binomial": _binomial, "rademacher": _rademacher}


@dataclass(frozen=True)
class Direction:
    """The name of one direction z: everything that its elements depend on.

    Attributes:
        seed: the run's seed, ``0 <= seed < 2**64``.
        step: the step it belongs to.
        sample: which of a step's directions it is.
        distribution: one of `DISTRIBUTIONS`.
    """

    seed: int
    step: int
    sample: int = 0
    distribution: str = "binomial"

    def __post_init__(self) -> None:
        _check_name(self.seed, self.step, self.sample)
        if self.distribution not in DISTRIBUTIONS:
            raise InputError(
                f"noise distribution is {self.distribution!r}; use one of "
                + ", ".join(DISTRIBUTIONS)
            )

    def blocks(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws the first `count` blocks.

        Returns:
            Offsets into the pool, (count,) int64, and signs, (count,) int8 of -1 and +1.
        """
        words = random_words(self.seed, Purpose.DIRECTION, self.step, count, self.sample)
        offsets = (words[0] & np.uint32(POOL_SIZE - 1)).astype(np.int64)
        signs = np.where(words[1] & 1, np.int8(-1), np.int8(1))
        return offsets, signs

    def gaussian_block(self, block: int) -> np.ndarray:
        """Returns block `block` of independent normals, (2**15,) float32 (NumPy's Philox)."""
        counter = np.array([0, block, self.sample, self.step], np.uint64)
        key = np.array([self.seed, Purpose.DIRECTION], np.uint64)
        generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
        return generator.standard_normal(BLOCK_SIZE, dtype=np.float32)


def random_words(
    seed: int, purpose: Purpose, step: int, count: int, sample: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws `count` times four 32-bit words for `purpose`; each array is (count,) uint32.

    ``w = philox(counter=(i, purpose << 24 | sample, step_lo, step_hi), key=(seed_lo, seed_hi))``.
    """
    seed, step, sample = _check_name(seed, step, sample)
    step_low, step_high = split64(step)
    counter = (np.arange(count), int(purpose) << 24 | sample, step_low, step_high)
    return philox(counter, split64(seed))


def _check_name(seed: int, step: int, sample: int) -> tuple[int, int, int]:
    """Returns its arguments as plain numbers; raises InputError where they name no counter."""
    for what, value, bits in (("seed", seed, 64), ("step", step, 64), ("sample", sample, 24)):
        if not hasattr(value, "__index__") or not 0 <= value < 1 << bits:
            raise InputError(f"{what} is {value!r}; use a whole number from 0 to 2**{bits} - 1")
    return operator.index(seed), operator.index(step), operator.index(sample)


def direction(
    size: int, seed: int, step: int, sample: int = 0, distribution: str = "binomial"
) -> np.ndarray:
    """Returns the first `size` elements of a direction, (size,) float32.

    The engine never builds this array: it sweeps the pool's windows over the arena. It serves
    tests, other engines, and whoever wants to look at a direction.

    Example:
        >>> from edgezo_runtime import noise
        >>> z = noise.direction(100_000, seed=0, step=7)
        >>> bool(abs(z.mean()) < 0.05), bool(abs(z.std() - 1) < 0.05)
        (True, True)
    """
    named = Direction(seed, step, sample, distribution)
    count = -(-size // BLOCK_SIZE)
    if distribution == "gaussian":
        blocks = [named.gaussian_block(block) for block in range(count)]
        return np.concatenate(blocks)[:size] if blocks else np.zeros(0, np.float32)
    offsets, signs = named.blocks(count)
    index = (offsets[:, None] + np.arange(BLOCK_SIZE)) & (POOL_SIZE - 1)
    values = pool(distribution)[index] * signs[:, None].astype(np.float32)
    return values.reshape(-1)[:size]
