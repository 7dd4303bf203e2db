"""Reverse mode through what images pass besides convolutions: fixed norms, and pools of maxima."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgezo_export.gradients.movement import known_rank
from edgezo_export.gradients.tape import Tape, only
from edgezo_export.gradients.writer import Writer, dims, first, no_gradient


class FixedNorm:
    """A BatchNormalization by statistics that stay: each channel on a line of its own.

    Args:
        tape: gets what is computed.
        node: the normalisation.
        moves: whether a value takes part in the derivative.

    Raises:
        InputError: the statistics are those of the batch, of an unknown number of channels, or take
            part in the derivative.
    """

    def __init__(self, tape: Writer, node: ir.Node, moves: Callable[[ir.Value], bool]) -> None:
        inputs = [value for value in node.inputs if value is not None]
        self.x, self.scale, self.bias, self._mean, self._variance = inputs
        own = dims(self._mean)
        if node.attributes.get_int("training_mode", 0) or own is None:
            raise no_gradient(node, ", by statistics of the batch")
        if not isinstance(own[0], int):
            raise no_gradient(node, ", of no known number of channels")
        if moves(self._mean) or moves(self._variance):
            raise no_gradient(node, ", by the statistics that it divides by")
        self._tape, self._epsilon = tape, node.attributes.get_float("epsilon", 1e-5)
        self._ones, self._zeros = (
            tape.constant(fill(own[0]), np.float32) for fill in (np.ones, np.zeros)
        )
        self.others = [axis for axis in range(known_rank(node)) if axis != 1]

    def normalized(self) -> ir.Value:
        """Returns the input before scale and bias."""
        return self._norm(self.x, self._ones, self._mean)

    def slope(self, dy: ir.Value) -> ir.Value:
        """Returns the derivative by the input, a diagonal matrix, times `dy`."""
        return self._norm(dy, self.scale, self._zeros)

    def _norm(self, x: ir.Value, scale: ir.Value, mean: ir.Value) -> ir.Value:
        inputs = (x, scale, self._zeros, mean, self._variance)
        return self._tape.op("BatchNormalization", *inputs, epsilon=self._epsilon)


def _batch_norm(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    norm, dy = FixedNorm(tape, node, tape.wants), only(cotangents)
    if tape.wants(norm.bias):
        tape.give(norm.bias, tape.summed(dy, norm.others, keep=False))
    if tape.wants(norm.scale):
        along = tape.op("Mul", dy, norm.normalized())
        tape.give(norm.scale, tape.summed(along, norm.others, keep=False))
    if tape.wants(norm.x):
        tape.give(norm.x, norm.slope(dy))


def chosen_places(tape: Writer, node: ir.Node) -> ir.Value:
    """Returns where in its input, as one vector, each maximum of a MaxPool is: a vector, too."""
    # The order in which places are counted changes no maximum, and is that of `Reshape` here.
    attributes = {name: one for name, one in node.attributes.items() if name != "storage_order"}
    places = tape.ops("MaxPool", [first(node)], 2, **attributes)[1]
    return tape.op("Reshape", places, tape.constant([-1]))


def _max_pool(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x, flat = first(node), tape.constant([-1])
    zeros = tape.op("Reshape", tape.zeros(x), flat)
    dy = tape.op("Reshape", cotangents[0], flat)
    spread = tape.op("ScatterElements", zeros, chosen_places(tape, node), dy, reduction="add")
    tape.give(x, tape.like(spread, x))


RULES: Mapping[str, Any] = {"BatchNormalization": _batch_norm, "MaxPool": _max_pool}
