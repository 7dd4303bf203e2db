"""Forward mode through extremes, softmaxes and norms over axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients.reductions import (
    Normalized,
    extreme_shares,
    reduced_axes,
    softmax_slope,
    with_reduced,
)
from edgezo_export.gradients.writer import first
from edgezo_export.tangents.tape import Tape


def _log_sum_exp(tape: Tape, node: ir.Node) -> None:
    total = with_reduced(tape, node, node.outputs[0], reduced_axes(node))
    _weigh(tape, node, tape.op("Exp", tape.op("Sub", first(node), total)))


def _extreme(tape: Tape, node: ir.Node) -> None:
    _weigh(tape, node, extreme_shares(tape, node))


def _weigh(tape: Tape, node: ir.Node, shares: ir.Value) -> None:
    """Gives the sum of the input's tangents, weighed with `shares`, over the reduced axes."""
    axes, keep = reduced_axes(node), bool(node.attributes.get_int("keepdims", 1))
    weighed = tape.op("Mul", shares, tape.of(first(node)))
    tape.give(node.outputs[0], tape.summed(weighed, axes, keep) if axes else weighed)


def _softmax(tape: Tape, node: ir.Node) -> None:
    tangent = tape.of(first(node))
    assert tangent is not None
    tape.give(node.outputs[0], softmax_slope(tape, node, tangent))


def _log_softmax(tape: Tape, node: ir.Node) -> None:
    tangent, y = tape.of(first(node)), node.outputs[0]
    weighed = tape.op("Mul", tape.op("Exp", y), tangent)
    mean = tape.summed(weighed, [node.attributes.get_int("axis", -1)], keep=True)
    tape.give(y, tape.op("Sub", tangent, mean))


def _layer_norm(tape: Tape, node: ir.Node) -> None:
    x, scale, bias = (*node.inputs, None)[:3]
    output, dx, dscale, dbias = node.outputs[0], tape.of(x), tape.of(scale), tape.of(bias)
    if dx is not None or dscale is not None:
        normal = Normalized(tape, node)
        if dx is not None:
            tape.give(output, tape.op("Mul", normal.slope(dx), scale))
        if dscale is not None:
            tape.give(output, tape.op("Mul", normal.values, dscale))
    if bias is not None and dbias is not None:
        tape.give_wide(output, dbias, bias)


RULES: Mapping[str, Any] = {
    "GlobalMaxPool": _extreme,
    "ReduceMax": _extreme,
    "ReduceMin": _extreme,
    "ReduceLogSumExp": _log_sum_exp,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
}
