"""The scales of an ONNX file whose weights are integers already, and which of them can be tuned."""

from __future__ import annotations

import onnx_ir as ir

#: Operators that read a scale at run time, as any input; which of their inputs it is.
_SCALES = {"DequantizeLinear": 1, "MatMulNBits": 2}
_OF_ACTIVATIONS = "a scale of activations, which says where they are rounded"
_PACKED = "a scale at accuracy level 4, where ONNX Runtime packs it and does not see it change"
_INSIDE = "a scale inside {}: quantise with QuantizeLinear and DequantizeLinear instead"
_WITHIN = ("QLinear", "QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
_LEVEL = 4


def is_scale(value: ir.Value) -> bool:
    """Whether some integers are multiplied with `value`."""
    return any(
        _SCALES.get(use.node.op_type) == use.idx or _multiplies_dynamic(use.node)
        for use in value.uses()
    )


def fixed_scales(node: ir.Node) -> dict[int, str]:
    """Returns which inputs of `node` are scales that cannot be tuned, and why."""
    if node.op_type == "QuantizeLinear":
        return {1: _OF_ACTIVATIONS}
    if node.op_type == "DequantizeLinear" and not _is_constant(node.inputs[0]):
        return {1: _OF_ACTIVATIONS}
    if node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) == _LEVEL:
        return {2: _PACKED}
    if node.op_type.startswith(_WITHIN):
        reason = _INSIDE.format(node.op_type)
        floats = (i for i, v in enumerate(node.inputs) if v is not None and _is_float(v))
        return dict.fromkeys(floats, reason)
    return {}


def rounds_whole_batches(model: ir.Model) -> bool:
    """Whether the rows of a batch meet in the range that their activations are rounded by."""
    return any(node.op_type.startswith("DynamicQuantize") for node in model.graph.all_nodes())


def _multiplies_dynamic(node: ir.Node) -> bool:
    """Whether `node` multiplies the scale of activations with that of weights."""
    producers = (v.producer() for v in node.inputs if v is not None)
    return node.op_type == "Mul" and any(
        producer is not None and producer.op_type == "DynamicQuantizeLinear"
        for producer in producers
    )


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _is_float(value: ir.Value) -> bool:
    return _is_constant(value) and value.dtype == ir.DataType.FLOAT
