"""The rules of reverse mode, by operator.

A rule gives each input of a node that needs one its part of the cotangent. It takes the tape, the
node, and the cotangents of its outputs, None where one has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from edgezo_export.gradients import channels, convolution, elementwise, linear, movement, reductions
from edgezo_export.gradients.tape import Tape

Rule = Callable[[Tape, ir.Node, Sequence[ir.Value | None]], None]

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **convolution.RULES,
    **channels.RULES,
    **movement.RULES,
    **reductions.RULES,
}
