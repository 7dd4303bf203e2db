"""Forward mode through convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients.convolution import Convolution
from edgezo_export.tangents.tape import Tape


def _convolution(tape: Tape, node: ir.Node) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    output, dx, dw, db = node.outputs[0], tape.of(x), tape.of(weight), tape.of(bias)
    if dx is not None:
        tape.give(output, tape.op("Conv", dx, weight, **node.attributes))
    if dw is not None:
        tape.give(output, tape.op("Conv", x, dw, **node.attributes))
    if db is not None:
        wide = tape.op("Unsqueeze", db, tape.constant([0, *Convolution.of(node).spatial]))
        tape.give(output, tape.op("Expand", wide, tape.shape_of(output)))


RULES: Mapping[str, Any] = {"Conv": _convolution}
