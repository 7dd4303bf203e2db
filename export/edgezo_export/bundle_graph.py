"""A bundle's graph, read to be changed and written again."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from edgezo_runtime.errors import InputError
from edgezo_runtime.files import atomic_writer


def bundle_graph(graph: bytes) -> ir.Model:
    """Returns the model of a bundle's graph; raises InputError if the bytes are none."""
    try:
        return ir.from_proto(onnx.load_from_string(graph))
    except Exception as error:  # protobuf's errors have no common base class
        raise InputError(f"the bundle's graph is not a sound ONNX file: {error}") from error


def save_graph(model: ir.Model, path: Path) -> None:
    """Writes the graph to `path` atomically; equal graphs give equal bytes."""
    proto = ir.to_proto(model)
    with atomic_writer(path) as file:
        file.write(proto.SerializeToString(deterministic=True))
