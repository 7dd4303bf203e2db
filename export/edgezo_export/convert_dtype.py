"""Weights from one float dtype to another, rounded to nearest even."""

from __future__ import annotations

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.dtypes import Dtype


def widened(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Returns `values`, the storage of `dtype`, as float32; float32 itself is not copied."""
    if dtype == dtypes.BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def converted(values: np.ndarray, old: Dtype, new: Dtype) -> np.ndarray:
    """Returns the storage in `new` of `values`, the storage of `old`.

    Raises:
        OverflowError: a number is too large for `new`, or is no number.
    """
    if old == new:
        return values
    wide = widened(values, old)
    if new == dtypes.FLOAT32:
        return wide
    with np.errstate(over="ignore"):
        narrow = _bfloat16_bits(wide) if new == dtypes.BFLOAT16 else wide.astype(np.float16)
    if not np.isfinite(widened(narrow, new)).all():
        raise OverflowError(f"numbers too large for {new.name}")
    return narrow


def _bfloat16_bits(wide: np.ndarray) -> np.ndarray:
    bits = wide.view(np.uint32)
    # Ties to even: half a unit less one, and one more where the kept part is odd.
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return rounded.astype(np.uint16)
