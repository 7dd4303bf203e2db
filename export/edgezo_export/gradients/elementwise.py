"""Reverse mode through operators that work on each element alone, and broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients.tape import Tape, only
from edgezo_export.gradients.writer import Writer, dims, first, no_gradient

#: Returns the slope of a unary node times ``dy``; takes the node's input and output. Forward mode
#: multiplies tangents of the input with it, reverse mode cotangents of the output.
Slope = Callable[[Writer, ir.Node, ir.Value, ir.Value, ir.Value], ir.Value]


def _unary(slope: Slope) -> Callable[[Tape, ir.Node, Sequence[ir.Value | None]], None]:
    def give(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
        cotangent = slope(tape, node, only(cotangents), first(node), node.outputs[0])
        tape.give(first(node), cotangent)

    return give


def _sides(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    left, right = node.inputs
    assert left is not None and right is not None
    return left, right


def _give(tape: Tape, node: ir.Node, value: ir.Value, cotangent: ir.Value) -> None:
    """Gives `value` what has the shape of the output of `node`."""
    tape.give(value, tape.sum_to(cotangent, dims(node.outputs[0]), value))


def _add(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    for value in _sides(node):
        if tape.wants(value):
            _give(tape, node, value, only(cotangents))


def _sub(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    left, right = _sides(node)
    if tape.wants(left):
        _give(tape, node, left, only(cotangents))
    if tape.wants(right):
        _give(tape, node, right, tape.op("Neg", only(cotangents)))


def _mul(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    left, right = _sides(node)
    for value, other in ((left, right), (right, left)):
        made = other.producer()
        if made is not None and made.op_type == "Sigmoid" and first(made) is value:
            tape.give(value, _silu(tape, only(cotangents), other, node.outputs[0]))
            return
    for value, other in ((left, right), (right, left)):
        if tape.wants(value):
            _give(tape, node, value, tape.op("Mul", only(cotangents), other))


def _silu(tape: Tape, dy: ir.Value, gate: ir.Value, y: ir.Value) -> ir.Value:
    """Returns the cotangent of x of y = x * sigmoid(x), in fewer passes than two rules take."""
    rest = tape.op("Mul", y, tape.op("Sub", tape.number(1), gate))
    return tape.op("Mul", dy, tape.op("Add", gate, rest))


def _div(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    left, right = _sides(node)
    scaled = tape.op("Div", only(cotangents), right)
    if tape.wants(left):
        _give(tape, node, left, scaled)
    if tape.wants(right):
        product = tape.op("Mul", scaled, node.outputs[0])
        tape.give(right, tape.op("Neg", tape.sum_to(product, dims(node.outputs[0]), right)))


def _pow(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    base, exponent = _sides(node)
    _give(tape, node, base, pow_slope(tape, node, only(cotangents), base, exponent))


def pow_slope(
    tape: Writer, node: ir.Node, dy: ir.Value, base: ir.Value, exponent: ir.Value
) -> ir.Value:
    """Returns the slope of a power of `base` times `dy`; raises InputError for others."""
    power = exponent.const_value
    if power is None or power.size != 1:
        raise no_gradient(node, ", whose exponent is no constant")
    p = float(power.numpy().reshape(()))
    lower = base if p == 2 else tape.op("Pow", base, tape.number(p - 1))
    return tape.op("Mul", dy, tape.op("Mul", lower, tape.number(p)))


def _where(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    condition, left, right = node.inputs
    assert condition is not None and left is not None and right is not None
    _choose(tape, node, condition, (left, right), only(cotangents))


def _choose(
    tape: Tape, node: ir.Node, left: ir.Value, sides: tuple[ir.Value, ir.Value], dy: ir.Value
) -> None:
    """Gives each element of `dy` to the left one of the sides where `left` is true."""
    zero = tape.number(0)
    for value, parts in zip(sides, ((dy, zero), (zero, dy)), strict=True):
        if tape.wants(value):
            _give(tape, node, value, tape.op("Where", left, *parts))


def _extreme(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    _choose(tape, node, left_chosen(tape, node), extremes(node), only(cotangents))


def extremes(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Returns the two inputs of a maximum or minimum; raises InputError where there are others."""
    if len(node.inputs) != 2:
        raise no_gradient(node, ", of other than two inputs")
    return _sides(node)


def left_chosen(tape: Writer, node: ir.Node) -> ir.Value:
    """Returns where a maximum or minimum is its left input; of equal ones it is the right."""
    return tape.op("Greater" if node.op_type == "Max" else "Less", *extremes(node))


def _clip(tape: Writer, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    return tape.op("Where", tape.op("Equal", x, y), dy, tape.number(0))


def _hard_sigmoid(tape: Writer, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    inside = tape.op("Where", tape.op("Greater", y, tape.number(0)), dy, tape.number(0))
    inside = tape.op("Where", tape.op("Less", y, tape.number(1)), inside, tape.number(0))
    return tape.op("Mul", inside, tape.number(node.attributes.get_float("alpha", 0.2)))


def _gelu(tape: Writer, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    number = tape.number
    if node.attributes.get_string("approximate", "none") == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        square = tape.op("Mul", x, x)
        inner = tape.op("Add", tape.op("Mul", square, number(scale * cubic)), number(scale))
        t = tape.op("Tanh", tape.op("Mul", inner, x))
        slope = tape.op("Add", tape.op("Mul", square, number(3 * scale * cubic)), number(scale))
        steep = tape.op("Mul", x, tape.op("Mul", _one_minus_square(tape, t), slope))
        total = tape.op("Add", tape.op("Add", t, number(1)), steep)
        return tape.op("Mul", dy, tape.op("Mul", total, number(0.5)))
    bell = tape.op("Exp", tape.op("Mul", tape.op("Mul", x, x), number(-0.5)))
    density = tape.op("Mul", bell, number(1 / math.sqrt(2 * math.pi)))
    erf = tape.op("Erf", tape.op("Mul", x, number(1 / math.sqrt(2))))
    below = tape.op("Mul", tape.op("Add", erf, number(1)), number(0.5))
    return tape.op("Mul", dy, tape.op("Add", below, tape.op("Mul", x, density)))


def _erf(tape: Writer, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", x, x)))
    return tape.op("Mul", dy, tape.op("Mul", bell, tape.number(2 / math.sqrt(math.pi))))


def _one_minus_square(tape: Writer, value: ir.Value) -> ir.Value:
    return tape.op("Sub", tape.number(1), tape.op("Mul", value, value))


def _sigmoid(tape: Writer, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    return tape.op("Mul", dy, tape.op("Mul", y, tape.op("Sub", tape.number(1), y)))


def _relu(tape: Writer, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    return tape.op("Where", tape.op("Greater", y, tape.number(0)), dy, tape.number(0))


def _sqrt(tape: Writer, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    return tape.op("Div", tape.op("Mul", dy, tape.number(0.5)), y)


SLOPES: Mapping[str, Slope] = {
    "Identity": lambda tape, node, dy, x, y: dy,
    "Neg": lambda tape, node, dy, x, y: tape.op("Neg", dy),
    "Abs": lambda tape, node, dy, x, y: tape.op("Mul", dy, tape.op("Sign", x)),
    "Exp": lambda tape, node, dy, x, y: tape.op("Mul", dy, y),
    "Log": lambda tape, node, dy, x, y: tape.op("Div", dy, x),
    "Sqrt": _sqrt,
    "Reciprocal": (
        lambda tape, node, dy, x, y: tape.op("Neg", tape.op("Mul", dy, tape.op("Mul", y, y)))
    ),
    "Tanh": lambda tape, node, dy, x, y: tape.op("Mul", dy, _one_minus_square(tape, y)),
    "Sigmoid": _sigmoid,
    "Relu": _relu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "Erf": _erf,
    "Gelu": _gelu,
    "Cos": lambda tape, node, dy, x, y: tape.op("Neg", tape.op("Mul", dy, tape.op("Sin", x))),
    "Sin": lambda tape, node, dy, x, y: tape.op("Mul", dy, tape.op("Cos", x)),
    # Only float32 values have derivatives, so a cast of one changes nothing.
    "Cast": lambda tape, node, dy, x, y: dy,
}

RULES: Mapping[str, Any] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Where": _where,
    "Max": _extreme,
    "Min": _extreme,
    **{operator: _unary(slope) for operator, slope in SLOPES.items()},
}
