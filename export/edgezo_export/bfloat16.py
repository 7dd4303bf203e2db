"""bfloat16 bundles, for ONNX Runtime's CUDA provider: on the CPU it lacks most of their kernels.

They are checked as float32: with the same graph in the wider dtype, and the same rounded weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgezo_export.bundle_graph import save_graph
from edgezo_export.convert_dtype import converted
from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.bundle import GRAPH, WEIGHTS, open_bundle, write_manifest
from edgezo_runtime.files import sha256

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


class WidenBfloat16(ir.passes.InPlacePass):
    """Computes in float32 whatever is computed in bfloat16."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        graph = model.graph
        outputs = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *outputs):
            if value.const_value is not None:
                value.const_value = _widened(value.const_value)
            if value.dtype == _NARROW:
                value.dtype = _WIDE
        for node in graph:
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR:
                    tensor = _widened(attribute.as_tensor())
                    node.attributes.add(ir.AttrTensor(attribute.name, tensor))
                elif attribute.name in ("to", "dtype") and attribute.value == _NARROW:
                    node.attributes.add(ir.AttrInt64(attribute.name, _WIDE))
        return ir.passes.PassResult(model, modified=True)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype != _NARROW:
        return tensor
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def narrow_bundle(folder: Path, graph: ir.Model) -> None:
    """Makes the float32 bundle in `folder` the bfloat16 one that it was checked for.

    Args:
        folder: a bundle whose weights are exact in bfloat16.
        graph: the graph that computes in bfloat16.
    """
    bundle = open_bundle(folder)
    entries = safetensors_file.read_header(bundle.weights)

    def tensor(name: str) -> np.ndarray:
        wide = safetensors_file.map_tensor(bundle.weights, entries[name])
        return converted(wide, dtypes.FLOAT32, dtypes.BFLOAT16)

    parameters = [dataclasses.replace(p, dtype="bfloat16") for p in bundle.manifest.parameters]
    described = [(p.name, dtypes.BFLOAT16, p.shape) for p in parameters]
    digest = safetensors_file.write_each(bundle.weights, described, tensor)
    save_graph(graph, bundle.graph)
    files = {**bundle.manifest.files, WEIGHTS: digest, GRAPH: sha256(bundle.graph)}
    changed = dataclasses.replace(bundle.manifest, parameters=tuple(parameters), files=files)
    write_manifest(folder, changed)
