"""A bundle's graph, read to be changed."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgezo_runtime.errors import InputError


def bundle_graph(graph: bytes) -> ir.Model:
    """Returns the model of a bundle's graph; raises InputError if the bytes are none."""
    try:
        return ir.from_proto(onnx.load_from_string(graph))
    except Exception as error:  # protobuf's errors have no common base class
        raise InputError(f"the bundle's graph is not a sound ONNX file: {error}") from error
