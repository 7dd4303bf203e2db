"""Where a network is narrow: the places at which its backward pass can be cut into stages."""

from __future__ import annotations

from collections.abc import Sequence, Set

import onnx_ir as ir

# What is worth a stage of its own.
_HEAVY = ("MatMul", "Gemm", "Conv", "ConvTranspose")


def narrow_values(nodes: Sequence[ir.Node], active: Set[ir.Value]) -> list[ir.Value]:
    """Returns the values that everything after them depends on alone, in the order of `nodes`.

    Of neighbours with no product of matrices between them, the first one stands for all: a
    residual stream is narrow once before each attention and once before each MLP.

    Args:
        nodes: of the forward pass, in topological order.
        active: values that lie between trained weights and outputs, the weights included.
    """
    streams = _streams(nodes, active)
    last = {value: i for i, node in enumerate(nodes) for value in node.inputs if value in streams}
    narrow: list[ir.Value] = []
    live: set[ir.Value] = set()
    heavy = False
    for i, node in enumerate(nodes):
        live.update(value for value in node.outputs if value in last)
        live -= {value for value in node.inputs if value in last and last[value] <= i}
        heavy = heavy or (node.op_type in _HEAVY and node.outputs[0] in streams)
        if len(live) == 1 and (heavy or not narrow):
            (value,) = live
            if value.producer() is node:
                narrow.append(value)
                heavy = False
    return narrow


def _streams(nodes: Sequence[ir.Node], active: Set[ir.Value]) -> set[ir.Value]:
    """Returns the active values that depend on data: weights can be read anywhere."""
    streams: set[ir.Value] = set()
    data: set[ir.Value] = set()
    for node in nodes:
        inputs = [value for value in node.inputs if value is not None]
        fed = any(v in data or (v.is_graph_input() and v not in active) for v in inputs)
        if fed:
            data.update(node.outputs)
            streams.update(value for value in node.outputs if value in active)
    return streams
