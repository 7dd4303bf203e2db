"""Reverse mode through sums, means, extremes, softmaxes and norms over axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgezo_export.gradients.movement import known_rank
from edgezo_export.gradients.tape import Tape, only
from edgezo_export.gradients.writer import Writer, dims, first, no_gradient, rank

#: They reduce the axes behind rows and channels.
POOLS = ("GlobalAveragePool", "GlobalMaxPool")


def reduced_axes(node: ir.Node) -> list[int]:
    """Returns the axes that `node` reduces; all of them if it names none."""
    given = node.attributes.get_ints("axes", [])
    count = known_rank(node)
    if node.op_type in POOLS:
        return list(range(2, count))
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        if axes.const_value is None:
            raise no_gradient(node, ", over axes that it computes")
        given = [int(axis) for axis in axes.const_value.numpy()]
    if not given and node.attributes.get_int("noop_with_empty_axes", 0):
        return []
    return [axis % count for axis in given] or list(range(count))


def with_reduced(tape: Writer, node: ir.Node, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Returns `value`, of the shape of the output of `node`, with the reduced axes as 1."""
    if node.attributes.get_int("keepdims", 1) or not axes:
        return value
    return tape.op("Unsqueeze", value, tape.constant(list(axes)))


def _sum(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x = first(node)
    kept = with_reduced(tape, node, only(cotangents), reduced_axes(node))
    tape.give(x, tape.op("Expand", kept, tape.shape_of(x)))


def _mean(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x, axes = first(node), reduced_axes(node)
    kept = with_reduced(tape, node, only(cotangents), axes)
    sizes = dims(x) or []
    counts = [sizes[axis] for axis in axes]
    whole = [count for count in counts if isinstance(count, int)]
    if len(whole) == len(counts):
        share = tape.op("Mul", kept, tape.number(1 / float(np.prod(whole))))
    else:
        count = tape.size_of(x, axes[0])
        for axis in axes[1:]:
            count = tape.op("Mul", count, tape.size_of(x, axis))
        floats = tape.cast(count, ir.DataType.FLOAT)
        share = tape.op("Div", kept, tape.op("Squeeze", floats))
    base = _squared(x)
    if base is None:
        tape.give(x, tape.op("Expand", share, tape.shape_of(x)))
    else:  # at once: the squares' own cotangent would be as large as they are
        tape.give(base, tape.op("Mul", base, tape.op("Mul", share, tape.number(2))))


def _squared(value: ir.Value) -> ir.Value | None:
    """Returns what `value` is the square of, if it is one."""
    made = value.producer()
    if made is None or made.op_type != "Pow":
        return None
    power = made.inputs[1].const_value if made.inputs[1] is not None else None
    two = power is not None and power.size == 1 and float(power.numpy().reshape(())) == 2
    if rank(first(made)) != rank(value):
        return None  # the power adds axes
    return first(made) if two else None


def _log_sum_exp(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x, axes = first(node), reduced_axes(node)
    total = with_reduced(tape, node, node.outputs[0], axes)
    dy = with_reduced(tape, node, only(cotangents), axes)
    tape.give(x, tape.op("Mul", tape.op("Exp", tape.op("Sub", x, total)), dy))


def extreme_shares(tape: Writer, node: ir.Node) -> ir.Value:
    """Returns the slopes of a maximum or minimum by its elements: equal ones share it."""
    x, axes = first(node), reduced_axes(node)
    y = with_reduced(tape, node, node.outputs[0], axes)
    reached = tape.cast(tape.op("Equal", x, y), ir.DataType.FLOAT)
    return tape.op("Div", reached, tape.summed(reached, axes, keep=True)) if axes else reached


def _extreme(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    dy = with_reduced(tape, node, only(cotangents), reduced_axes(node))
    tape.give(first(node), tape.op("Mul", extreme_shares(tape, node), dy))


def softmax_slope(tape: Writer, node: ir.Node, dy: ir.Value) -> ir.Value:
    """Returns the derivative of a softmax, a symmetric matrix, times `dy`."""
    y, axis = node.outputs[0], node.attributes.get_int("axis", -1)
    weighed = tape.op("Mul", dy, y)
    total = tape.summed(weighed, [axis], keep=True)
    return tape.op("Sub", weighed, tape.op("Mul", y, total))


def _softmax(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    tape.give(first(node), softmax_slope(tape, node, only(cotangents)))


def _log_softmax(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    dy, y = only(cotangents), node.outputs[0]
    total = tape.summed(dy, [node.attributes.get_int("axis", -1)], keep=True)
    tape.give(node.inputs[0], tape.op("Sub", dy, tape.op("Mul", tape.op("Exp", y), total)))


class Normalized:
    """What a LayerNormalization makes of its input before scale and bias, and its derivative.

    It normalises again, for ONNX Runtime does that in one pass.
    """

    def __init__(self, tape: Writer, node: ir.Node) -> None:
        rank = known_rank(node)
        axis = node.attributes.get_int("axis", -1) % rank
        own = [size for size in (dims(first(node)) or [])[axis:] if isinstance(size, int)]
        if len(own) < rank - axis:
            raise no_gradient(node, ", over axes of no fixed size")
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        ones = tape.constant(np.ones(own), np.float32)
        self.values, _, self._inverse = tape.ops(
            "LayerNormalization", [first(node), ones], 3, axis=axis, epsilon=epsilon
        )
        self._tape, self._axes = tape, tape.constant(list(range(axis, rank)))

    def slope(self, dy: ir.Value) -> ir.Value:
        """Returns the derivative, a symmetric matrix, times `dy`."""
        op = self._tape.op
        mean = op("ReduceMean", dy, self._axes)
        along = op("ReduceMean", op("Mul", dy, self.values), self._axes)
        inner = op("Sub", op("Sub", dy, mean), op("Mul", self.values, along))
        return op("Mul", inner, self._inverse)


def _layer_norm(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x, scale, bias = (*node.inputs, None)[:3]
    assert x is not None and scale is not None
    dy = only(cotangents)
    if tape.wants(bias):
        assert bias is not None
        tape.give(bias, tape.sum_to(dy, dims(x), bias))
    if not (tape.wants(x) or tape.wants(scale)):
        return
    normal = Normalized(tape, node)
    if tape.wants(scale):
        tape.give(scale, tape.sum_to(tape.op("Mul", dy, normal.values), dims(x), scale))
    if tape.wants(x):
        tape.give(x, normal.slope(tape.op("Mul", dy, scale)))


RULES: Mapping[str, Any] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "GlobalAveragePool": _mean,
    "GlobalMaxPool": _extreme,
    "ReduceMax": _extreme,
    "ReduceMin": _extreme,
    "ReduceLogSumExp": _log_sum_exp,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
}
