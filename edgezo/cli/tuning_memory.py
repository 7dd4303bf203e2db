"""How much memory weights take to run, and to tune by each way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgezo.cli.common import megabytes
from edgezo.cli.extras import to_install
from edgezo_runtime import dtypes, noise
from edgezo_runtime.bundle import QUANTIZED, Parameter
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.select import ADAPTERS, FULL, WORDS, select

#: What `--tune` may say of a model that has no adapter yet.
WAYS = (FULL, *WORDS, *ADAPTERS)
_POOL_BYTES = noise.POOL_SIZE * 4


def tuning_memory(
    parameters: Sequence[Parameter],
    constants: int,
    ways: Iterable[str],
    tuned: Callable[[str], Sequence[Parameter]],
    tune: str | None = None,
) -> dict[str, Any]:
    """Returns megabytes of weights to run, and to tune by each way; activations come on top.

    Held are what is tuned, a pool of noise, the graph's constants, and integers, which ONNX Runtime
    packs. Frozen weights are mapped from their file, which costs nothing that the system could not
    take back.

    Args:
        parameters: of the model.
        constants: bytes of what the graph itself holds.
        ways: of tuning it.
        tuned: returns the parameters that a way trains, or raises EdgezoError with the reason why
            this model has none.
        tune: a way to reckon with besides, such as patterns of names, or None.

    Raises:
        EdgezoError: the model has nothing to tune by `tune`.
    """
    fixed = constants + sum(_nbytes(p) for p in parameters if p.kind == QUANTIZED)
    weights = constants + sum(map(_nbytes, parameters))

    def held(way: str) -> float:
        chosen = tuned(way)
        if not chosen:
            raise InputError("no weight of the model can be tuned")
        if any(p.dtype == dtypes.BFLOAT16.name for p in chosen):
            raise InputError("bfloat16 weights are not tuned: export the model as float32")
        return megabytes(fixed + sum(map(_nbytes, chosen)) + _POOL_BYTES)

    amounts = {} if tune is None else {tune: held(tune)}
    reasons = {}
    for way in ways:
        try:
            amounts[way] = held(way)
        except EdgezoError as error:
            reasons[way] = str(error)
    return {
        "weights_mb": megabytes(weights),
        "run_mb": megabytes(weights),
        "tune_mb": amounts,
        "not_tuned": reasons,
    }


def trained_by(way: str, graph: bytes, parameters: Sequence[Parameter]) -> Sequence[Parameter]:
    """Returns what a way of tuning trains in a model without an adapter.

    Args:
        way: a word or patterns, as `--tune` takes them.
        graph: the bytes of its weight-free graph.
        parameters: its parameters.

    Raises:
        InputError: it has nothing of that kind.
        EdgezoError: the packages that edit graphs are not installed.
    """
    if way not in ADAPTERS:
        return select(parameters, way)
    try:
        from edgezo_export.adapters.base import new_parameters
    except ImportError as error:
        raise EdgezoError(
            f"an adapter in a graph needs {error.name}: run `{to_install('onnx')}`"
        ) from error
    return new_parameters(graph, parameters, way)


def _nbytes(parameter: Parameter) -> int:
    return parameter.size * dtypes.named(parameter.dtype).storage.itemsize
