"""Forward mode through operators that are linear in their first input: they do the same to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients.writer import first
from edgezo_export.tangents.tape import Tape


def _same(tape: Tape, node: ir.Node) -> None:
    inputs = [tape.of(first(node)), *node.inputs[1:]]
    parts = tape.ops(node.op_type, inputs, len(node.outputs), **node.attributes)
    for value, part in zip(node.outputs, parts, strict=True):
        tape.give(value, part)


def _concat(tape: Tape, node: ir.Node) -> None:
    parts = tape.together([value for value in node.inputs if value is not None])
    tape.give(node.outputs[0], tape.op("Concat", *parts, **node.attributes))


RULES: Mapping[str, Any] = {
    "Concat": _concat,
    **dict.fromkeys(
        (
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Transpose",
            "Expand",
            "Split",
            "Slice",
            "Gather",
            "GatherElements",
            "ReduceSum",
            "ReduceMean",
            "GlobalAveragePool",
        ),
        _same,
    ),
}
