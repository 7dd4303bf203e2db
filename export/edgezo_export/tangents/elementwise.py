"""Forward mode through operators that work on each element alone, and broadcast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients import elementwise
from edgezo_export.gradients.writer import first, no_gradient, rank
from edgezo_export.tangents.tape import Tape


def _sides(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    left, right = node.inputs
    assert left is not None and right is not None
    return left, right


def _add(tape: Tape, node: ir.Node) -> None:
    for value in _sides(node):
        tangent = tape.of(value)
        if tangent is not None:
            tape.give_wide(node.outputs[0], tangent, value)


def _sub(tape: Tape, node: ir.Node) -> None:
    left, right = _sides(node)
    output, dl, dr = node.outputs[0], tape.of(left), tape.of(right)
    if dl is not None:
        tape.give_wide(output, dl, left)
    if dr is not None:
        tape.give_wide(output, tape.op("Neg", dr), right)


def _mul(tape: Tape, node: ir.Node) -> None:
    left, right = _sides(node)
    for value, other in ((left, right), (right, left)):
        tangent = tape.of(value)
        if tangent is not None:
            tape.give(node.outputs[0], tape.op("Mul", tangent, other))


def _div(tape: Tape, node: ir.Node) -> None:
    left, right = _sides(node)
    output, dl, dr = node.outputs[0], tape.of(left), tape.of(right)
    if dl is not None:
        tape.give(output, tape.op("Div", dl, right))
    if dr is not None:
        scaled = tape.op("Div", dr, right)
        tape.give(output, tape.op("Neg", tape.op("Mul", scaled, output)))


def _pow(tape: Tape, node: ir.Node) -> None:
    base, exponent = _sides(node)
    tangent = tape.of(base)
    if tangent is None:
        raise no_gradient(node, ", whose exponent is no constant")
    output = node.outputs[0]
    slope = elementwise.pow_slope(tape, node, tangent, base, exponent)
    if rank(base) != rank(output):  # the exponent has more axes
        slope = tape.op("Expand", slope, tape.shape_of(output))
    tape.give(output, slope)


def _where(tape: Tape, node: ir.Node) -> None:
    condition, left, right = node.inputs
    assert condition is not None and left is not None and right is not None
    _choose(tape, node, condition, (left, right))


def _extreme(tape: Tape, node: ir.Node) -> None:
    _choose(tape, node, elementwise.left_chosen(tape, node), elementwise.extremes(node))


def _choose(tape: Tape, node: ir.Node, left: ir.Value, sides: tuple[ir.Value, ir.Value]) -> None:
    zero, (dl, dr) = tape.number(0), map(tape.of, sides)
    for value, tangent, parts in zip(sides, (dl, dr), ((dl, zero), (zero, dr)), strict=True):
        if tangent is not None:
            tape.give_wide(node.outputs[0], tape.op("Where", left, *parts), value)


def _unary(slope: elementwise.Slope) -> Any:
    def give(tape: Tape, node: ir.Node) -> None:
        tangent = tape.of(first(node))
        assert tangent is not None
        output = node.outputs[0]
        tape.give(output, slope(tape, node, tangent, first(node), output))

    return give


RULES: Mapping[str, Any] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Where": _where,
    "Max": _extreme,
    "Min": _extreme,
    **{operator: _unary(slope) for operator, slope in elementwise.SLOPES.items()},
}
