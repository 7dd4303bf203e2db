"""What `edgezo info` says of an ONNX file: what could be tuned, and why the rest could not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgezo.cli.onnx_source import needs_onnx
from edgezo.cli.tuning_memory import WAYS, trained_by, tuning_memory
from edgezo_runtime.bundle import Parameter


def describe_onnx(path: Path, every: bool, tune: str | None) -> dict[str, Any]:
    """Returns what the file at `path` holds; with `every`, each of its constants.

    Raises:
        InputError: the file is damaged, or `tune` names nothing.
        EdgezoError: the `onnx` packages are not installed.
    """
    try:
        from edgezo_export.losses import LOSSES, TARGETS
        from edgezo_export.onnx_reader import read_onnx
        from edgezo_export.trainable import find_weights
        from edgezo_export.weight_inputs import graph_bytes, lift_weights
    except ImportError as error:
        raise needs_onnx(error) from error
    model = read_onnx(path)
    ports = [*model.graph.inputs, *model.graph.outputs]
    taken = {str(port.name) for port in ports} | {TARGETS, LOSSES}
    weights = find_weights(model, model.graph.outputs, taken)
    parameters = [Parameter(w.name, w.shape, w.dtype, w.kind) for w in weights if w.trainable]
    fixed = [w for w in weights if not w.trainable]
    constants = sum(w.value.const_value.nbytes for w in fixed if w.value.const_value)
    inputs, outputs = (_described(v) for v in (model.graph.inputs, model.graph.outputs))
    lift_weights(model, [w for w in weights if w.trainable])
    graph = graph_bytes(model, path)

    def tuned(way: str) -> Sequence[Parameter]:
        return trained_by(way, graph, parameters)

    kinds: Counter[str] = Counter()
    for parameter in parameters:
        kinds[parameter.kind] += parameter.size
    fields: dict[str, Any] = {
        "file": str(path),
        "opset": model.opset_imports.get("", None),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": sum(kinds.values()),
        "by_kind": dict(kinds),
        "by_dtype": dict(Counter(parameter.dtype for parameter in parameters)),
        **tuning_memory(parameters, constants, WAYS, tuned, tune),
        "constants": dict(Counter(w.reason for w in fixed)),
    }
    if every:
        fields["list"] = [
            {
                "name": w.name,
                "shape": list(w.shape),
                "dtype": w.dtype,
                "kind": w.kind or f"constant: {w.reason}",
            }
            for w in weights
        ]
    return fields


def _described(ports: Iterable[Any]) -> dict[str, str]:
    return {str(port.name): f"{port.dtype} {port.shape}" for port in ports}
