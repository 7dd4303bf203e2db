"""Philox4x32-10, the counter-based generator behind every random choice of edgezo.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Integers only, so that every
language draws the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10


def philox(
    counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the four 32-bit words of each counter under `key`.

    Args:
        counter: four words, each a number or an array; they broadcast against each other.
        key: two 32-bit words.

    Returns:
        Four arrays (...) uint32.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0 = _MULTIPLIERS[0] * c0  # 32 x 32 bits never overflow 64
        p1 = _MULTIPLIERS[1] * c2
        c0 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0)
        c1 = p1 & _MASK
        c2 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c3 = p0 & _MASK
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))  # type: ignore[return-value]


def split64(value: int) -> tuple[int, int]:
    """Returns the low and the high 32 bits of `value`, ``0 <= value < 2**64``."""
    return value & 0xFFFFFFFF, value >> 32
