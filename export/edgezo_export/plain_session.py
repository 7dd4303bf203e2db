"""ONNX Runtime's session of somebody else's file, which says what the file computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgezo_export.onnx_reader import reason_of
from edgezo_runtime.errors import InputError
from edgezo_runtime.ort import onnxruntime


def session_of(path: Path, optimised: bool = True, graph: bytes | None = None) -> Any:
    """Returns a session on the CPU.

    Args:
        path: the file.
        optimised: whether ONNX Runtime may change the graph.
        graph: what is loaded instead of what the file holds now.

    Raises:
        InputError: it cannot be loaded; ONNX Runtime's reason is quoted.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            path if graph is None else graph, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise InputError(f"ONNX Runtime cannot load {path}: {reason_of(error)}") from error
