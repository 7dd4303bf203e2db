"""Noise version 1 and the sweep, one number at a time, written from the definition alone.

Plain Python integers and floats: it shares no line with the engine and is far too slow for it. A
sum or product of two float32 is exact enough in float64 that rounding it once more gives the
float32 result (53 >= 2 * 24 + 2 bits).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import NamedTuple

BLOCK = 2**15
POOL = 2**20
MASK = 2**32 - 1
POOL_KEY = (0x65646765, 0x7A6F0001)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            (second >> 32) ^ b ^ k0,
            second & MASK,
            (first >> 32) ^ d ^ k1,
            first & MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return a, b, c, d


def float32(value: float) -> float:
    """Rounds to float32, ties to even."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def float16(value: float) -> float:
    """Rounds to float16, ties to even; infinity above its largest number."""
    try:
        return struct.unpack("<e", struct.pack("<e", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def bfloat16(value: float) -> float:
    """Rounds a float32 number to bfloat16: of its two neighbours the nearer, else the even one."""
    bits = struct.unpack("<I", struct.pack("<f", abs(value)))[0] & 0xFFFF0000
    below, above = bfloat16_value(bits >> 16), bfloat16_value((bits >> 16) + 1)
    if above == float("inf"):
        above = 2.0**128  # where the next number would be
    down, up = abs(value) - below, above - abs(value)
    if up < down or (up == down and (bits >> 16) & 1):
        below = float("inf") if above == 2.0**128 else above
    return -below if struct.pack("<f", value)[3] & 0x80 else below


def bfloat16_value(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


ROUND = {"float32": float32, "float16": float16, "bfloat16": bfloat16}


def decode(data: bytes, dtype: str) -> list[float]:
    """Returns the little-endian numbers in `data`."""
    if dtype == "bfloat16":
        return [bfloat16_value(bits) for (bits,) in struct.iter_unpack("<H", data)]
    code = {"float32": "<f", "float16": "<e"}[dtype]
    return [value for (value,) in struct.iter_unpack(code, data)]


def encode(values: Sequence[float], dtype: str) -> bytes:
    """The opposite of `decode`, for numbers that the dtype has."""
    if dtype == "bfloat16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'f' if dtype == 'float32' else 'e'}", *values)


@functools.cache
def pool_value(index: int, distribution: str = "binomial") -> float:
    words = philox4x32((index, 0, 0, 0), POOL_KEY)
    if distribution == "rademacher":
        return -1.0 if words[0] & 1 else 1.0
    ones = sum(bin(word).count("1") for word in words)
    return float32((ones - 64) * float32(0.17677669))


@functools.cache
def block_draw(seed: int, step: int, sample: int, block: int) -> tuple[int, int]:
    """Returns a block's offset into the pool and its sign."""
    counter = (block, (0 << 24) | sample, step & MASK, step >> 32)
    words = philox4x32(counter, (seed & MASK, seed >> 32))
    return words[0] % POOL, -1 if words[1] & 1 else 1


def element(
    index: int, seed: int, step: int, sample: int = 0, distribution: str = "binomial"
) -> float:
    """Returns element `index` of a direction."""
    offset, sign = block_draw(seed, step, sample, index // BLOCK)
    return sign * pool_value((offset + index % BLOCK) % POOL, distribution)


class OracleTerm(NamedTuple):
    seed: int
    step: int
    sample: int
    coefficient: float
    decay: float = 1.0
    distribution: str = "binomial"


def swept(
    weights: Sequence[float], first: int, terms: Sequence[OracleTerm], dtype: str, decays: bool
) -> list[float]:
    """Returns the weights, whose noise starts at index `first`, after one sweep for each term."""
    out = []
    for index, weight in enumerate(weights, start=first):
        for term in terms:
            offset, sign = block_draw(term.seed, term.step, term.sample, index // BLOCK)
            value = pool_value((offset + index % BLOCK) % POOL, term.distribution)
            weight = float32(weight + sign * float32(float32(term.coefficient) * value))
            if decays and term.decay != 1:
                weight = float32(weight * float32(term.decay))
            weight = ROUND[dtype](weight)
        out.append(weight)
    return out


def layout(parameters: Sequence[tuple[str, Sequence[int], str]]) -> list[tuple[int, int, int]]:
    """Returns each parameter's noise offset, its start in its dtype's buffer, and its size."""
    placed = []
    offset, lengths = 0, dict.fromkeys(ROUND, 0)
    for _, shape, dtype in parameters:
        size = 1
        for extent in shape:
            size *= extent
        placed.append((offset, lengths[dtype], size))
        room = (size + 63) // 64 * 64
        offset += room
        lengths[dtype] += room
    return placed
