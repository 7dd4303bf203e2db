"""Mean losses of forward passes, computed on an NVIDIA card."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from edgezo_runtime.batch import Reduction
from edgezo_runtime.devices.cuda_kernels import cupy
from edgezo_runtime.errors import InputError
from edgezo_runtime.late import CELL, LateNumber

if TYPE_CHECKING:
    from edgezo_runtime.devices.cuda import CudaDevice

_THREADS = 256  # as loss.cu says


def mean_loss(device: CudaDevice, output: Any, reduction: Reduction) -> LateNumber:
    """Queues what computes the loss of an `output` on the card, float32.

    Raises:
        InputError: a label is none of the columns.
    """
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
    return LateNumber(CELL, loss)


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
    source = resources.files("edgezo_runtime.devices").joinpath("loss.cu").read_text("utf-8")
    return cupy().RawModule(code=source, options=("--std=c++17", "--fmad=false"))
