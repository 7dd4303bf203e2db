"""Losses and slopes of a step on an NVIDIA card, which the host need not wait for.

A step has a sheet on the card, float64: whether it is skipped, and for each slope the loss at
either end and the slope itself. Sweeps read it there; a copy goes to the host meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from edgezo_runtime.batch import Reduction
from edgezo_runtime.devices.cuda_kernels import cupy
from edgezo_runtime.errors import InputError
from edgezo_runtime.late import Found, LateLoss, LateSlope

if TYPE_CHECKING:
    from edgezo_runtime.devices.cuda import CudaDevice

_THREADS = 256  # as slope.cu says
_ROW = 3  # numbers of a slope
_SIZE = 8  # bytes of each


class CardLoss:
    """The mean loss of a forward pass.

    Attributes:
        array: of it, (1,) float64 on the card.
    """

    def __init__(self, device: CudaDevice, array: Any) -> None:
        self._device = device
        self.array = array

    @classmethod
    def of(cls, device: CudaDevice, output: Any, reduction: Reduction) -> CardLoss:
        """Queues what computes the loss of an `output` on the card, float32."""
        xp = device.xp
        with device.stream:
            loss = xp.empty(1, np.float64)
            if reduction.labels is None:
                count, sign = np.uint64(output.size), np.float64(reduction.sign)
                _kernel("total")((1,), (_THREADS,), (output, count, sign, loss))
            else:
                rows, columns = output.shape
                chosen = _checked(reduction.labels, rows, columns)
                labels = xp.empty(rows, np.int64)
                labels.set(chosen)
                sizes = np.uint32(rows), np.uint32(columns)
                _kernel("choice")((1,), (_THREADS,), (output, labels, *sizes, loss))
        return cls(device, loss)

    def __call__(self) -> float:
        return float(self._device.host(self.array)[0])


class CardSlopes:
    """The slopes of one step.

    Args:
        sheet: on the card.
        wait: returns its copy.
    """

    def __init__(self, sheet: Any, wait: Callable[[], list[np.ndarray]]) -> None:
        self._sheet = sheet
        self._wait = wait

    @classmethod
    def of(
        cls,
        device: CudaDevice,
        losses: Sequence[LateLoss],
        pairs: Sequence[tuple[int, int]],
        limits: tuple[float, float, np.float32, float],
    ) -> CardSlopes:
        """Queues what computes the slopes; see `Device.slopes`."""
        span, clip, lr, most = limits
        numbers = np.float64(span), np.float64(clip), np.float32(lr), np.float32(most)
        found = [loss.array for loss in losses if isinstance(loss, CardLoss)]
        with device.stream:
            sheet = device.xp.empty(1 + _ROW * len(pairs), np.float64)
            for index, (i, j) in enumerate(pairs):
                _kernel("slope")(
                    (1,), (1,), (found[i], found[j], *numbers, np.uint32(index), sheet)
                )
        return cls(sheet, device.bring([sheet]))

    @property
    def each(self) -> list[LateSlope]:
        """The slopes, in their order."""
        start = self._sheet.data.ptr
        return [
            LateSlope(start + _SIZE * _ROW * (index + 1), start, functools.partial(self._at, index))
            for index in range(self._sheet.size // _ROW)
        ]

    def _at(self, index: int) -> float:
        return float(self.wait().slopes[index])

    def wait(self) -> Found:
        """Waits for all; the slopes are 0 if the step is skipped."""
        (sheet,) = self._wait()
        rows = sheet[1:].reshape(-1, _ROW)
        skipped = bool(sheet[0])
        slopes = np.zeros(len(rows), np.float32) if skipped else rows[:, 2].astype(np.float32)
        return Found(rows[:, :2].ravel().tolist(), tuple(slopes), skipped)


def _checked(labels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns labels as the card takes them; raises InputError if it would read elsewhere."""
    if labels.shape != (rows,) or labels.min(initial=0) < 0 or labels.max(initial=0) >= columns:
        raise InputError(f"labels must be {rows} numbers from 0 to {columns - 1}")
    return np.ascontiguousarray(labels, np.int64)


def _kernel(name: str) -> Any:
    return _module().get_function(name)


@functools.cache
def _module() -> Any:
    """Returns the compiled kernels."""
    source = resources.files("edgezo_runtime.devices").joinpath("slope.cu").read_text("utf-8")
    return cupy().RawModule(code=source, options=("--std=c++17", "--fmad=false"))
