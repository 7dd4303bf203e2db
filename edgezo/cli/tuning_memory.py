"""How much memory weights take to run and to tune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgezo.cli.common import megabytes
from edgezo_runtime import dtypes, noise
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.select import FULL, select

_POOL_BYTES = noise.POOL_SIZE * 4


def tuning_memory(parameters: Sequence[Parameter], tune: str | None = None) -> dict[str, Any]:
    """Returns megabytes of weights to run, and to tune by each way; activations come on top.

    Tuned weights and a pool of noise are held; frozen ones are mapped from their file, which costs
    nothing that the system could not take back.

    Args:
        parameters: of the model.
        tune: patterns to reckon with beside ``"full"``, or None.

    Raises:
        InputError: `tune` names nothing.
    """
    weights = sum(map(_nbytes, parameters))
    tuned = {FULL: weights + _POOL_BYTES}
    if tune is not None:
        tuned[tune] = sum(map(_nbytes, select(parameters, tune))) + _POOL_BYTES
    return {
        "weights_mb": megabytes(weights),
        "run_mb": megabytes(weights),
        "tune_mb": {way: megabytes(count) for way, count in tuned.items()},
    }


def _nbytes(parameter: Parameter) -> int:
    return parameter.size * dtypes.named(parameter.dtype).storage.itemsize
