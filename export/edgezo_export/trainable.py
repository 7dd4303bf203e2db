"""Which weights of an ONNX file can be tuned, and why the others cannot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgezo_export.scales import fixed_scales, is_scale

_FLOATS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._/:-]+")  # a comma or a star would mean something in --tune
_MASK = 1e30  # what is added to a score to forbid it; also beyond float16's range

#: Operators through which nothing flows back: their outputs are whole numbers or steps.
_STEPS = {
    "And", "ArgMax", "ArgMin", "BitShift", "Ceil", "ConstantOfShape", "Equal", "EyeLike", "Floor",
    "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Multinomial", "NonZero",
    "Not", "Or", "RandomNormalLike", "RandomUniformLike", "Range", "Round", "Shape", "Sign", "Size",
    "Xor",
}  # fmt: skip

_BOUND, _SHAPE = "a bound", "a shape argument"
#: What an operator's input is, where it is no weight.
_ARGUMENTS: dict[str, dict[int, str]] = {
    "BatchNormalization": {
        3: "a running mean of BatchNormalization",
        4: "a running variance of BatchNormalization",
    },
    "CastLike": {1: "only its type is used"},
    "Clip": {1: _BOUND, 2: _BOUND},
    "Dropout": {1: "a dropout rate"},
    "DequantizeLinear": {2: "a quantisation zero point"},
    "Expand": {1: _SHAPE},
    "OneHot": {1: _SHAPE, 2: "the two values of a one-hot code"},
    "Pad": {1: _SHAPE, 2: "a padding value"},
    "Pow": {1: "an exponent"},
    "Reshape": {1: _SHAPE},
    "Resize": {1: _SHAPE, 2: _SHAPE, 3: _SHAPE},
    "Upsample": {1: _SHAPE},
    "Tile": {1: _SHAPE},
    "Where": {0: "a condition"},
}
_BLOCKS = {"If", "Loop", "Scan"}
#: Operators that take a weight and, where they are given one, a bias.
_BIASES = {
    "Conv": 2, "ConvTranspose": 2, "Gemm": 2, "BatchNormalization": 2, "LayerNormalization": 2,
    "InstanceNormalization": 2, "GroupNormalization": 2, "LSTM": 3, "GRU": 3, "RNN": 3,
}  # fmt: skip
_SUMS = {"MatMul", "Conv", "ConvTranspose", "Gemm"}


@dataclass(frozen=True)
class FoundWeight:
    """One constant of an ONNX file.

    Attributes:
        value: the initializer.
        name: its name in a bundle: safe in patterns, and no other's.
        dtype: its dtype's name.
        shape: its shape.
        kind: ``"embedding"``, ``"linear"``, ``"norm"``, ``"bias"`` or ``"scale"``; empty if it is
            no weight.
        reason: why it cannot be tuned; empty if it can.
    """

    value: ir.Value
    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    reason: str

    @property
    def trainable(self) -> bool:
        """Whether it can be tuned."""
        return not self.reason

    def array(self) -> np.ndarray:
        """Returns its value, C-contiguous."""
        tensor = self.value.const_value
        assert tensor is not None
        return np.ascontiguousarray(tensor.numpy()).reshape(self.shape)


def find_weights(
    model: ir.Model, outputs: Iterable[ir.Value], taken: Set[str] = frozenset()
) -> list[FoundWeight]:
    """Returns every constant of `model`, in the file's order.

    A weight is a float tensor that reaches one of `outputs` through operators that pass small
    changes on. Single numbers, bounds, shapes, masks and running statistics are not weights.

    Args:
        model: from `read_onnx`: all constants are initializers of the main graph.
        outputs: what a loss would read.
        taken: names that no weight may have.
    """
    reached = _reached(outputs)
    names = set(taken)
    found = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        reason = _reason(value, tensor, reached)
        name = _safe_name(value.name or "weight", names)
        names.add(name)
        shape = tuple(tensor.shape.numpy())
        dtype = _FLOATS.get(tensor.dtype, tensor.dtype.name.lower())
        found.append(FoundWeight(value, name, dtype, shape, "" if reason else _kind(value), reason))
    return found


def _reached(outputs: Iterable[ir.Value]) -> set[ir.Value]:
    """Returns the values whose small changes reach `outputs`."""
    reached: set[ir.Value] = set()
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value in reached:
            continue
        reached.add(value)
        node = value.producer()
        if node is None or node.op_type in _STEPS:
            continue
        if node.op_type in _BLOCKS:
            index = value.index() or 0
            for graph in _subgraphs(node):
                # Only an If's outputs are its branches' outputs one by one.
                own = slice(index, index + 1) if node.op_type == "If" else slice(None)
                waiting += list(graph.outputs)[own]
            if node.op_type == "If":
                continue  # its own input is a condition
        arguments = _arguments(node)
        waiting += [v for i, v in enumerate(node.inputs) if v is not None and i not in arguments]
    return reached


def _reason(value: ir.Value, tensor: ir.TensorProtocol, reached: Set[ir.Value]) -> str:
    if tensor.dtype not in _FLOATS:
        return f"{tensor.dtype.name.lower()}: only float32 and float16 are tuned"
    if not value.uses() and not value.is_graph_output():
        return "unused"
    if value not in reached:
        told = {_arguments(use.node).get(use.idx, "") for use in value.uses()} - {""}
        return min(told) if told else "no change of it reaches the output"
    if tensor.size == 0:
        return "empty"
    if tensor.size == 1 and not _is_lone_bias(value, tensor) and not is_scale(value):
        return "a single number"
    array = tensor.numpy().astype(np.float32)
    if np.isnan(array).any():
        return "it holds NaN"
    if np.abs(array).max() >= _MASK or (tensor.dtype == ir.DataType.FLOAT16 and _is_mask(array)):
        return "a mask"
    return ""


def _is_mask(array: np.ndarray) -> bool:
    return bool(array.min() <= np.finfo(np.float16).min)


def _is_lone_bias(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor of one element is the bias of a layer with one output."""
    if not tensor.shape:
        return False
    for use in value.uses():
        if _BIASES.get(use.node.op_type) == use.idx or use.node.op_type == "PRelu":
            return True
        if use.node.op_type == "Add":
            others = (v.producer() for v in use.node.inputs if v is not None and v is not value)
            if any(node is not None and node.op_type in _SUMS for node in others):
                return True
    return False


def _kind(value: ir.Value) -> str:
    if is_scale(value):
        return "scale"
    uses = [(use.node.op_type, use.idx) for use in value.uses()]
    if ("Gather", 0) in uses:
        return "embedding"
    assert value.const_value is not None
    if any(op in _SUMS and i < 2 for op, i in uses):
        return "linear"
    if sum(n != 1 for n in value.const_value.shape.numpy()) > 1:
        return "linear"
    if any(_BIASES.get(op) == i or op in ("Add", "Sub") for op, i in uses):
        return "bias"
    return "norm"


def _arguments(node: ir.Node) -> dict[int, str]:
    if node.op_type in _STEPS:
        return dict.fromkeys(range(len(node.inputs)), f"an input of {node.op_type}")
    if node.op_type == "If":
        return {0: "a condition"}
    if node.op_type in ("Slice", "Gather", "GatherElements", "GatherND", "TopK", "Split"):
        return dict.fromkeys(range(1, len(node.inputs)), "an index or a size")
    return _ARGUMENTS.get(node.op_type, {}) | fixed_scales(node)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def _safe_name(name: str, taken: Set[str]) -> str:
    """Returns `name` with nothing in it that a pattern would read, and a number if it is taken."""
    base = _UNSAFE.sub("_", name) or "weight"
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}.{count}"
    return name
