r"""The arithmetic of one sweep over pieces of the arena, one kernel per weight dtype.

For each term in turn, rounding to the storage dtype in between, every kernel computes

.. math:: w \leftarrow (w + s \, x) \cdot d

in float32 without contraction, where x is a window of the scaled pool, s its sign and d the decay
(left out where it is 1). Subnormals are kept; the result is rounded to nearest, ties to even.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.noise import BLOCK_SIZE

# One addition to one piece: np.add or np.subtract, the weights (n,) and the values (n,) float32,
# n <= BLOCK_SIZE. A plain tuple: a sweep makes thousands of them and each microsecond counts.
Call = tuple[Callable[..., np.ndarray], np.ndarray, np.ndarray]


class Kernel(abc.ABC):
    """Sweeps pieces of one dtype; it owns scratch memory, so that each thread has its own."""

    @abc.abstractmethod
    def sweep(self, columns: Sequence[Iterable[Call]], decays: Sequence[np.float32 | None]) -> None:
        """Makes the calls of all terms, one piece after the other, in place.

        Args:
            columns: for each term its calls, one for each piece.
            decays: for each term what to multiply with after its call, if anything.
        """


class Float32Kernel(Kernel):
    """float32 weights: added where they lie."""

    def sweep(self, columns: Sequence[Iterable[Call]], decays: Sequence[np.float32 | None]) -> None:
        rows = zip(*columns, strict=True)
        if all(decay is None for decay in decays):
            for operation, weights, values in itertools.chain.from_iterable(rows):
                operation(weights, values, weights)
            return
        for row in rows:
            for (operation, weights, values), decay in zip(row, decays, strict=True):
                operation(weights, values, weights)
                if decay is not None:
                    np.multiply(weights, decay, weights)


class _WideningKernel(Kernel):
    """Weights of 16 bits: widened to float32, added, rounded back."""

    def __init__(self) -> None:
        self._wide = np.empty(BLOCK_SIZE, np.float32)

    def sweep(self, columns: Sequence[Iterable[Call]], decays: Sequence[np.float32 | None]) -> None:
        for row in zip(*columns, strict=True):
            for (operation, weights, values), decay in zip(row, decays, strict=True):
                wide = self._wide[: weights.size]
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
