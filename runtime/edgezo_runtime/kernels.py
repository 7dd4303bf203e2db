r"""The arithmetic of one sweep over pieces of the arena, one kernel per weight dtype.

For each term in turn, rounding to the storage dtype in between, every kernel computes

.. math:: w \leftarrow (w + s \, x) \cdot d

in float32 without contraction, where x is a window of the scaled pool, s its sign and d the decay
(left out where it is 1). Subnormals are kept; the result is rounded to nearest, ties to even.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.noise import BLOCK_SIZE

# What one term does to one piece: np.add or np.subtract, the window (n,) float32, and the decay.
# A plain tuple: a sweep makes thousands of them, and their cost is part of every step.
Window = tuple[Callable[..., np.ndarray], np.ndarray, np.float32 | None]


class Kernel(abc.ABC):
    """Sweeps pieces of one dtype; it owns scratch memory, so that each thread has its own."""

    @abc.abstractmethod
    def sweep(self, pieces: Iterable[tuple[np.ndarray, *tuple[Window, ...]]]) -> None:
        """Applies to each piece (n,) its windows, in place; n is at most `BLOCK_SIZE`."""


class Float32Kernel(Kernel):
    """float32 weights: added where they lie."""

    def sweep(self, pieces: Iterable[tuple[np.ndarray, *tuple[Window, ...]]]) -> None:
        multiply = np.multiply
        for weights, *windows in pieces:
            for operation, values, decay in windows:
                operation(weights, values, weights)
                if decay is not None:
                    multiply(weights, decay, weights)


class _WideningKernel(Kernel):
    """Weights of 16 bits: widened to float32, added, rounded back."""

    def __init__(self) -> None:
        self._wide = np.empty(BLOCK_SIZE, np.float32)

    def sweep(self, pieces: Iterable[tuple[np.ndarray, *tuple[Window, ...]]]) -> None:
        for weights, *windows in pieces:
            wide = self._wide[: weights.size]
            for operation, values, decay in windows:
                self._widen(weights, wide)
                operation(wide, values, wide)
                if decay is not None:
                    np.multiply(wide, decay, wide)
                self._round(wide, weights)

    @abc.abstractmethod
    def _widen(self, weights: np.ndarray, wide: np.ndarray) -> None: ...

    @abc.abstractmethod
    def _round(self, wide: np.ndarray, weights: np.ndarray) -> None: ...


class Float16Kernel(_WideningKernel):
    """float16 weights; NumPy's casts round as IEEE 754 says."""

    def _widen(self, weights: np.ndarray, wide: np.ndarray) -> None:
        wide[:] = weights

    def _round(self, wide: np.ndarray, weights: np.ndarray) -> None:
        weights[:] = wide


class BFloat16Kernel(_WideningKernel):
    """bfloat16 weights, held as the uint16 of their bits."""

    def __init__(self) -> None:
        super().__init__()
        self._odd = np.empty(BLOCK_SIZE, np.uint32)

    def _widen(self, weights: np.ndarray, wide: np.ndarray) -> None:
        bits = wide.view(np.uint32)
        bits[:] = weights
        np.left_shift(bits, 16, bits)

    def _round(self, wide: np.ndarray, weights: np.ndarray) -> None:
        bits = wide.view(np.uint32)
        odd = self._odd[: bits.size]
        np.right_shift(bits, 16, odd)
        np.bitwise_and(odd, 1, odd)
        # Ties to even: half a unit less one, and one more where the kept part is odd.
        odd += np.uint32(0x7FFF)
        bits += odd
        np.right_shift(bits, 16, bits)
        weights[:] = bits


_KERNELS: dict[dtypes.Dtype, type[Kernel]] = {
    dtypes.FLOAT32: Float32Kernel,
    dtypes.FLOAT16: Float16Kernel,
    dtypes.BFLOAT16: BFloat16Kernel,
}


def kernel_for(dtype: dtypes.Dtype) -> Kernel:
    """Returns a fresh kernel for weights of `dtype`."""
    return _KERNELS[dtype]()
