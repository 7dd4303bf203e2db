r"""Noise, version 1: the directions of a run, regenerated from its seed.

A direction is not drawn element by element. Its index space is cut into blocks of ``2**15``
elements, and each block is a window of one fixed, circular pool of ``2**20`` values:

.. math:: z[b \cdot 2^{15} + j] = s_b \, pool[(o_b + j) \bmod 2^{20}]

with offset ``o_b`` and sign ``s_b`` from Philox4x32-10. The pool holds centred, scaled
binomial(128, 1/2) counts: mean 0, variance 1, and exact in every language.
Golden vectors are in ``runtime/vectors``.
"""

from __future__ import annotations

import abc
import enum
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.errors import InputError
from edgezo_runtime.philox import philox, split64

VERSION = 1
POOL_SIZE = 1 << 20
BLOCK_SIZE = 1 << 15
DISTRIBUTIONS = ("binomial", "rademacher", "gaussian")
POOL_KEY = (0x65646765, 0x7A6F0001)  # "edge", "zo", version 1

#: Elements ``start`` to ``stop`` of a direction or a mask; not to be written to.
Values = Callable[[int, int], Any]


class Purpose(enum.IntEnum):
    """What a random number is for; it is part of the counter, so that purposes never collide."""

    DIRECTION = 0
    BATCH_ORDER = 1
    SAMPLING = 2  # text generation
    SUBSET = 3  # which rows of the data
    ADAPTER_INIT = 16  # what an adapter's tensors begin with
    LAYERS = 32  # which layers a step moves
    MASK = 33  # which weights it moves
    LEFT = 34  # a low-rank direction's factor of the step
    RIGHT = 35  # its factor that stays for some steps
    CORE = 36  # a direction within a subspace
    BASIS = 37  # the subspace
    ROWS = 38  # which rows a gradient is estimated from


@functools.cache
def pool(distribution: str = "binomial") -> np.ndarray:
    """Returns the fixed pool, (2**20,) float32, read-only.

    Args:
        distribution: ``"binomial"`` (close to normal) or ``"rademacher"`` (random signs).
    """
    whole, unit = counts(distribution)
    values = whole * unit
    values.flags.writeable = False
    return values


def counts(distribution: str) -> tuple[np.ndarray, np.float32]:
    """Returns the pool as whole numbers, (2**20,) int8, and what one is worth."""
    if distribution not in _POOLS:
        raise InputError(f"noise distribution {distribution!r} has no pool; use binomial")
    count, unit = _POOLS[distribution]
    whole = np.empty(POOL_SIZE, np.int8)
    # In pieces: the generator's 64-bit words would take 80 times the pool's memory.
    for start in range(0, POOL_SIZE, BLOCK_SIZE):
        words = philox((np.arange(start, start + BLOCK_SIZE), 0, 0, 0), POOL_KEY)
        whole[start : start + BLOCK_SIZE] = count(words)
    return whole, unit


def _binomial(words: Sequence[np.ndarray]) -> np.ndarray:
    ones = np.zeros(words[0].shape, np.int16)
    for word in words:
        ones += np.bitwise_count(word)
    return ones - 64


def _rademacher(words: Sequence[np.ndarray]) -> np.ndarray:
    return 1 - 2 * (words[0] & 1).astype(np.int8)


_POOLS = {
    "binomial": (_binomial, np.float32(0.17677669)),
    "rademacher": (_rademacher, np.float32(1)),
}


class Mask(abc.ABC):
    """The name of a choice of single weights."""

    @abc.abstractmethod
    def draw(self, xp: Any, size: int) -> Values:
        """Returns what gives its elements, bool, of an index space of `size`."""


@dataclass(frozen=True)
class Support:
    """Which weights a direction moves; outside it is zero.

    Attributes:
        ranges: parts of the index space in rising order, bounded by parameters; None: all of it.
            What lies outside costs nothing.
        mask: which single weights within them; None: all.
    """

    ranges: tuple[tuple[int, int], ...] | None = None
    mask: Mask | None = None


EVERYWHERE = Support()


class AnyDirection(abc.ABC):
    """The name of one direction z: everything that its elements depend on."""

    support: Support

    @abc.abstractmethod
    def draw(self, xp: Any, size: int) -> Values:
        """Returns what gives its elements, float32.

        Args:
            xp: the array module, ``numpy`` or one with its functions.
            size: of the index space.
        """


@dataclass(frozen=True)
class Direction(AnyDirection):
    """A direction of windows into the pool, or of independent normals.

    Attributes:
        seed: the run's seed, ``0 <= seed < 2**64``.
        step: the step it belongs to.
        sample: which of a step's directions it is.
        distribution: one of `DISTRIBUTIONS`.
        support: which weights it moves.
    """

    seed: int
    step: int
    sample: int = 0
    distribution: str = "binomial"
    support: Support = EVERYWHERE

    def __post_init__(self) -> None:
        _check_name(self.seed, self.step, self.sample)
        if self.distribution not in DISTRIBUTIONS:
            raise InputError(
                f"noise distribution is {self.distribution!r}; use one of "
                + ", ".join(DISTRIBUTIONS)
            )

    @property
    def pooled(self) -> bool:
        """Whether each of its blocks is one window of the pool."""
        return self.distribution != "gaussian" and self.support.mask is None

    def blocks(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws the first `count` blocks.

        Returns:
            Offsets into the pool, (count,) int64, and signs, (count,) int8 of -1 and +1.
        """
        return block_draws(self.seed, Purpose.DIRECTION, self.step, count, self.sample)

    def draw(self, xp: Any, size: int) -> Values:
        plain = self._plain(xp, size)
        if self.support.mask is None:
            return plain
        mask = self.support.mask.draw(xp, size)
        return lambda start, stop: plain(start, stop) * mask(start, stop)

    def _plain(self, xp: Any, size: int) -> Values:
        if self.distribution == "gaussian":

            def drawn(start: int, stop: int) -> Any:
                first = start // BLOCK_SIZE
                blocks = range(first, -(-stop // BLOCK_SIZE))
                whole = np.concatenate([self.gaussian_block(block) for block in blocks])
                return xp.asarray(whole[start - first * BLOCK_SIZE :][: stop - start])

            return drawn
        offsets, signs = self.blocks(-(-size // BLOCK_SIZE))
        source = xp.asarray(pool(self.distribution))

        def values(start: int, stop: int) -> Any:
            found = windows(xp, source, offsets, start, stop)
            if len(found) == 0 or start // BLOCK_SIZE == (stop - 1) // BLOCK_SIZE:
                return found if signs[start // BLOCK_SIZE] > 0 else -found
            blocks = xp.arange(start, stop) // BLOCK_SIZE
            return found * xp.asarray(signs)[blocks]

        return values

    def gaussian_block(self, block: int) -> np.ndarray:
        """Returns block `block` of independent normals, (2**15,) float32 (NumPy's Philox)."""
        counter = np.array([0, block, self.sample, self.step], np.uint64)
        key = np.array([self.seed, Purpose.DIRECTION], np.uint64)
        generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
        return generator.standard_normal(BLOCK_SIZE, dtype=np.float32)


def window(xp: Any, source: Any, start: int, size: int) -> Any:
    """Returns `size` elements of a circular pool from `start` on."""
    start &= POOL_SIZE - 1
    if start + size <= POOL_SIZE:
        return source[start : start + size]
    return xp.concatenate([source[start:], source[: start + size - POOL_SIZE]])


def windows(xp: Any, source: Any, offsets: np.ndarray, start: int, stop: int) -> Any:
    """Returns elements `start` to `stop` of an index space whose blocks are windows of a pool."""
    block, within = divmod(start, BLOCK_SIZE)
    if stop <= (block + 1) * BLOCK_SIZE:
        return window(xp, source, int(offsets[block]) + within, stop - start)
    index = xp.arange(start, stop)
    places = xp.asarray(offsets)[index // BLOCK_SIZE] + index % BLOCK_SIZE
    return source[places % POOL_SIZE]


def block_draws(
    seed: int, purpose: Purpose, step: int, count: int, sample: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws what `count` blocks take from a pool for `purpose`; see `Direction.blocks`."""
    words = random_words(seed, purpose, step, count, sample)
    offsets = (words[0] & np.uint32(POOL_SIZE - 1)).astype(np.int64)
    return offsets, np.where(words[1] & 1, np.int8(-1), np.int8(1))


def stream(seed: int, purpose: Purpose, step: int, size: int) -> np.ndarray:
    """Returns (size,) numbers of the binomial pool, drawn for `purpose` as a direction's are."""
    offsets, signs = block_draws(seed, purpose, step, -(-size // BLOCK_SIZE))
    values = np.empty(size, np.float32)
    for block, start in enumerate(range(0, size, BLOCK_SIZE)):
        part = values[start : start + BLOCK_SIZE]
        np.multiply(window(np, pool(), int(offsets[block]), part.size), signs[block], part)
    return values


def shuffled(seed: int, purpose: Purpose, count: int) -> np.ndarray:
    """Returns the numbers below `count` in an order drawn for `purpose`, int64."""
    high, low, *_ = random_words(seed, purpose, 0, count)
    return order(high, low)


def order(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Returns the places of numbers of two 32-bit words each, the least number's first, int64."""
    return np.argsort(high.astype(np.uint64) << np.uint64(32) | low, kind="stable")


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
