"""Forward mode through what images pass besides convolutions: fixed norms, and pools of maxima."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients.channels import FixedNorm, chosen_places
from edgezo_export.gradients.writer import first
from edgezo_export.tangents.tape import Tape


def _batch_norm(tape: Tape, node: ir.Node) -> None:
    norm = FixedNorm(tape, node, lambda value: tape.of(value) is not None)
    output, dx, dscale, dbias = node.outputs[0], *map(tape.of, (norm.x, norm.scale, norm.bias))
    if dx is not None:
        tape.give(output, norm.slope(dx))
    if dscale is not None:
        tape.give(output, tape.op("Mul", norm.normalized(), _of_channels(tape, norm, dscale)))
    if dbias is not None:
        wide = tape.op("Expand", _of_channels(tape, norm, dbias), tape.shape_of(output))
        tape.give(output, wide)


def _of_channels(tape: Tape, norm: FixedNorm, value: ir.Value) -> ir.Value:
    return tape.op("Unsqueeze", value, tape.constant(norm.others))


def _max_pool(tape: Tape, node: ir.Node) -> None:
    tangent, flat = tape.of(first(node)), tape.constant([-1])
    chosen = tape.op("Gather", tape.op("Reshape", tangent, flat), chosen_places(tape, node))
    tape.give(node.outputs[0], tape.like(chosen, node.outputs[0]))


RULES: Mapping[str, Any] = {"BatchNormalization": _batch_norm, "MaxPool": _max_pool}
