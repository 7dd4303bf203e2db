"""Finds a model's parameters among the initializers of a foreign graph.

Exporters merge equal tensors, behind Identity nodes, and fold transpositions into nameless
matrices: both would change which weights are tuned, or under what name.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgezo_export.lift import KIND_KEY, ParameterNames
from edgezo_runtime import dtypes
from edgezo_runtime.dtypes import Dtype
from edgezo_runtime.errors import InputError

_DTYPES = {
    ir.DataType.FLOAT: dtypes.FLOAT32,
    ir.DataType.FLOAT16: dtypes.FLOAT16,
    ir.DataType.BFLOAT16: dtypes.BFLOAT16,
}


@dataclass(frozen=True)
class FoundTensor:
    """A parameter's value in the foreign file, perhaps transposed there."""

    tensor: ir.TensorProtocol
    transposed: bool

    @property
    def dtype(self) -> Dtype:
        """The dtype that the file holds it in."""
        return _DTYPES[self.tensor.dtype]

    def storage(self) -> np.ndarray:
        """Returns the value in the checkpoint's layout, C-contiguous, in storage dtype."""
        values = self.tensor.numpy()
        if self.dtype == dtypes.BFLOAT16:
            values = values.view(np.uint16)
        return np.ascontiguousarray(values.T if self.transposed else values)


def match_parameters(
    model: ir.Model,
    names: ParameterNames,
    shapes: Mapping[str, tuple[int, ...]],
    checkpoint: Callable[[str, Dtype], np.ndarray] | None = None,
) -> dict[str, FoundTensor]:
    """Names each parameter's initializer by its key and marks it for the lift, in place.

    Args:
        model: the foreign graph.
        names: the parameters that it should have, and their tied names.
        shapes: shape of each key in the checkpoint's layout.
        checkpoint: returns a key's value in a dtype; nameless matrices are known by it. Without
            one, by the path of the layer that reads them.

    Returns:
        Where each parameter's value lies, by key.

    Raises:
        InputError: a parameter is not found, or a weight is none of them; the message names it.
    """
    _undo_merges(model.graph, names)
    digest = None if checkpoint is None else _digests(checkpoint)
    found: dict[str, FoundTensor] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _DTYPES:
            continue
        key = names.source.get(str(value.name))
        if key is not None and tuple(tensor.shape) == shapes[key]:
            value.metadata_props[KIND_KEY] = "PARAMETER"
            found.setdefault(key, FoundTensor(tensor, transposed=False))
        elif tensor.shape.rank() == 2:
            folded = FoundTensor(tensor, transposed=True)
            for node, index in list(value.uses()):
                key = _name_of_folded(folded, node, str(value.name), names, shapes, digest)
                _transpose(model.graph, node, index, key, folded)
                found.setdefault(key, folded)
            model.graph.initializers.pop(str(value.name))
    for key in names.kinds:
        if key not in found:
            raise InputError(f"the graph has no tensor for parameter {key!r}")
    return found


def _undo_merges(graph: ir.Graph, names: ParameterNames) -> None:
    """Gives the parameter behind `Identity(another parameter)` a tensor of its own."""
    for node in list(graph):
        value, name = node.inputs[0] if node.inputs else None, str(node.outputs[0].name)
        if node.op_type != "Identity" or value is None or value.const_value is None:
            continue
        if name not in names.source or name in graph.initializers:
            continue
        node.outputs[0].name = None
        own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
        node.outputs[0].replace_all_uses_with(own, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        graph.register_initializer(own)


def _name_of_folded(
    folded: FoundTensor,
    node: ir.Node,
    name: str,
    names: ParameterNames,
    shapes: Mapping[str, tuple[int, ...]],
    digest: Callable[[str, Dtype], bytes] | None,
) -> str:
    """Returns the key of the transposed matrix that `node` multiplies with."""
    shape = folded.tensor.numpy().shape[::-1]
    keys = {key for key in names.kinds if shapes[key] == shape and node.op_type == "MatMul"}
    if digest is not None and keys:
        mine = _digest(folded.storage())
        keys = {key for key in keys if digest(key, folded.dtype) == mine}
    if digest is None or len(keys) > 1:
        # "/decoder/layers.0/fc1/MatMul"; the first part of a key may be missing.
        path = ".".join(str(node.name).strip("/").split("/")[:-1]) + ".weight"
        ends = {names.source[n] for n in names.source if f".{n}".endswith(f".{path}")}
        keys &= ends
    if len(keys) != 1:
        raise InputError(
            f"cannot tell which parameter the tensor {name!r} is, which {node.name!r} reads: "
            "export the graph again with do_constant_folding=False (--no-constant-folding)"
        )
    return keys.pop()


def _digests(checkpoint: Callable[[str, Dtype], np.ndarray]) -> Callable[[str, Dtype], bytes]:
    """Returns what reads each key once, however many matrices have its shape."""
    return functools.cache(lambda key, dtype: _digest(checkpoint(key, dtype)))


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).data).digest()


def _transpose(graph: ir.Graph, node: ir.Node, index: int, key: str, folded: FoundTensor) -> None:
    """Lets `node` read the parameter `key` in its own layout, through a Transpose."""
    weight = graph.initializers.get(key)
    if weight is None:
        rows, columns = folded.tensor.numpy().shape
        weight = ir.Value(
            name=key,
            type=ir.TensorType(folded.tensor.dtype),
            shape=ir.Shape([columns, rows]),
            const_value=folded.tensor,
            metadata_props={KIND_KEY: "PARAMETER"},
        )
        graph.register_initializer(weight)
    turned = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
    turned.outputs[0].type = weight.type
    turned.outputs[0].shape = ir.Shape(folded.tensor.numpy().shape)
    graph.insert_before(node, turned)
    node.replace_input_with(index, turned.outputs[0])
