"""The weights of somebody else's ONNX file become inputs of its graph."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_export.onnx_reader import reason_of
from edgezo_export.signature import PARAMETERS_KEY, parameters_text
from edgezo_export.trainable import FoundWeight
from edgezo_runtime.errors import InputError

_LARGEST = (1 << 31) - 1  # bytes that protobuf can hold


def lift_weights(model: ir.Model, weights: Sequence[FoundWeight]) -> None:
    """Makes each of `weights` an input of the graph, of its own name, in place."""
    graph = model.graph
    names = {weight.name for weight in weights}
    for node in graph.all_nodes():  # a weight's new name may be some value's old one
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}_"
    for weight in weights:
        name, dtype = weight.value.name, weight.value.dtype
        assert name is not None and dtype is not None  # an initializer has both
        lifted = ir.val(weight.name, type=ir.TensorType(dtype), shape=ir.Shape(weight.shape))
        weight.value.replace_all_uses_with(lifted)
        del graph.initializers[name]
        graph.inputs.append(lifted)
    common_passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props[PARAMETERS_KEY] = parameters_text(
        (weight.name, weight.kind, ()) for weight in weights
    )


def graph_bytes(model: ir.Model, source: Path) -> bytes:
    """Returns `model` as the bytes of one ONNX file that says what is known of shapes.

    Raises:
        InputError: the constants that are left, of the file `source`, exceed 2 GB, or it has
            something that no ONNX file can hold.
    """
    inner = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if inner > _LARGEST:
        raise InputError(f"{source} has {inner} bytes of constants that cannot be tuned")
    try:
        proto = ir.to_proto(ir.external_data.load_to_model(model))
    except Exception as error:  # what was read of a damaged file cannot be written
        raise InputError(f"{source} is not a sound ONNX file: {reason_of(error)}") from error
    with contextlib.suppress(Exception):  # types between the nodes help, and may be missing
        proto = onnx.shape_inference.infer_shapes(proto)
    return proto.SerializeToString(deterministic=True)
