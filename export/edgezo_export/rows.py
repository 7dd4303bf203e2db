"""Layers that work row by row: what they do to a token depends on no other token."""

from __future__ import annotations

import onnx_ir as ir

_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Sqrt", "Reciprocal"),
    *("Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "Identity", "Cast"),
}


def works_by_row(node: ir.Node) -> bool:
    """Whether each row of the output depends on the same row of the inputs alone."""
    first = first_input(node)
    if not all(is_rows(value) for value in node.outputs):
        return False
    if node.op_type in _ELEMENTWISE:
        return all(value is None or is_rows(value) or _broadcasts(value) for value in node.inputs)
    if not is_rows(first):
        return False
    if node.op_type == "MatMul":
        return rank(node.inputs[1]) == 2 and not is_rows(node.inputs[1])
    if node.op_type == "Gemm":
        return not node.attributes.get_int("transA", 0)
    if node.op_type in ("LayerNormalization", "SimplifiedLayerNormalization"):
        return node.attributes.get_int("axis", -1) == -1
    if node.op_type == "ReduceMean":
        axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
        kept = bool(node.attributes.get_int("keepdims", 1))
        return kept and axes is not None and axes.numpy().tolist() == [-1]
    if node.op_type == "Reshape":
        output = node.outputs[0]
        assert first.shape is not None and output.shape is not None
        return first.shape[-1] == output.shape[-1]
    return False


def is_rows(value: ir.Value | None) -> bool:
    """Whether `value` holds features of every token: (batch, length, n) or (batch*length, n)."""
    if value is None or value.shape is None or len(value.shape) not in (2, 3):
        return False
    *tokens, features = value.shape
    return isinstance(features, int) and not any(isinstance(n, int) for n in tokens)


def _broadcasts(value: ir.Value) -> bool:
    """Whether `value` is the same for every row: a scalar or one row."""
    return rank(value) in (0, 1)


def rank(value: ir.Value | None) -> int | None:
    """Returns the number of dimensions of `value`, if the graph says."""
    return None if value is None or value.shape is None else len(value.shape)


def first_input(node: ir.Node) -> ir.Value:
    """Returns the first input of `node`, which every layer has."""
    value = node.inputs[0]
    assert value is not None
    return value
