"""What `edgezo info` says of an ONNX file: what could be tuned, and why the rest could not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgezo.cli.onnx_source import needs_onnx
from edgezo.cli.tuning_memory import tuning_memory
from edgezo_runtime.bundle import Parameter


def describe_onnx(path: Path, every: bool, tune: str | None) -> dict[str, Any]:
    """Returns what the file at `path` holds; with `every`, each of its constants.

    Raises:
        InputError: the file is damaged, or `tune` names nothing.
        EdgezoError: the `onnx` packages are not installed.
    """
    try:
        from edgezo_export.onnx_reader import read_onnx
        from edgezo_export.trainable import find_weights
    except ImportError as error:
        raise needs_onnx(error) from error
    model = read_onnx(path)
    weights = find_weights(model, model.graph.outputs)
    parameters = [Parameter(w.name, w.shape, w.dtype, w.kind) for w in weights if w.trainable]
    kinds: Counter[str] = Counter()
    for parameter in parameters:
        kinds[parameter.kind] += parameter.size
    fields: dict[str, Any] = {
        "file": str(path),
        "opset": model.opset_imports.get("", None),
        "inputs": {str(v.name): f"{v.dtype} {v.shape}" for v in model.graph.inputs},
        "outputs": {str(v.name): f"{v.dtype} {v.shape}" for v in model.graph.outputs},
        "parameters": sum(kinds.values()),
        "by_kind": dict(kinds),
        "by_dtype": dict(Counter(parameter.dtype for parameter in parameters)),
        **tuning_memory(parameters, tune),
        "constants": dict(Counter(w.reason for w in weights if not w.trainable)),
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
