"""Powers without the C library, whose last bits differ from machine to machine."""

from __future__ import annotations


def power(base: float, exponent: int) -> float:
    """Returns ``base ** exponent`` by repeated multiplication: the same bits everywhere."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
