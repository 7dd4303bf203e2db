"""The rules of forward mode, by operator.

A rule gives each output of a node its tangent. It takes the tape and the node, of which one input
or more have a tangent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgezo_export.tangents import channels, convolution, elementwise, linear, movement, reductions
from edgezo_export.tangents.tape import Tape

Rule = Callable[[Tape, ir.Node], None]

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **convolution.RULES,
    **channels.RULES,
    **movement.RULES,
    **reductions.RULES,
}
