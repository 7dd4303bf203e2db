r"""Forward mode over ONNX: from a graph to the graph of its directional derivatives.

For outputs :math:`y` of weights :math:`w` the graph takes a tangent :math:`\dot w` of each weight,
and gives :math:`y` and :math:`\dot y = \partial y / \partial w \, \dot w`. Who runs it multiplies
:math:`\dot y` with the derivative of a loss by the outputs, and gets that of the loss along
:math:`\dot w`: one graph serves every loss. Batch and length stay free.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_export.gradients.cuts import narrow_values
from edgezo_export.gradients.path import (
    differentiable,
    input_like,
    rule_for,
    with_derivatives,
)
from edgezo_export.tangents.rules import RULES
from edgezo_export.tangents.tape import Tape
from edgezo_runtime.bundle import Manifest
from edgezo_runtime.first_order.graph import CUTS_KEY, tangent_of


def tangent_graph(graph: bytes, manifest: Manifest) -> bytes:
    """Returns the tangent graph of a bundle's graph, along all weights that may be trained.

    Args:
        graph: the bytes of `graph.onnx`.
        manifest: of the bundle.

    Raises:
        InputError: a weight is quantised or not float32, or a node on the way has no rule.
    """
    return with_derivatives(graph, manifest, add_tangents)


def add_tangents(model: ir.Model, weights: Sequence[str]) -> None:
    """Extends a graph with inputs for tangents of weights, and outputs for those of its outputs.

    Args:
        model: it is changed.
        weights: the graph inputs to differentiate by.

    Raises:
        InputError: a node on the way has no rule, a weight is no float32, or nothing depends on it.
    """
    path = differentiable(model, weights)
    graph = model.graph
    cuts = [v for v in narrow_values(path.nodes, path.active) if not v.is_graph_output()]
    tape = Tape(graph, path.nodes, path.active, path.wanted)
    given = [input_like(value, tangent_of(str(value.name))) for value in path.wanted]
    for value, tangent in zip(path.wanted, given, strict=True):
        tape.give(value, tangent)
    for node in path.nodes:
        _differentiate(tape, node)
        for value in node.outputs:
            if value in cuts and tape.of(value) is not None:
                tape.rename(value, tangent_of(str(value.name)))
    found = [tape.rename(v, tangent_of(str(v.name))) for v in graph.outputs if v in path.active]
    graph.inputs.extend(given)
    graph.extend(tape.nodes)
    graph.outputs.extend(found)
    model.metadata_props[CUTS_KEY] = json.dumps([value.name for value in cuts])
    common_passes.RemoveUnusedNodesPass()(model)


def _differentiate(tape: Tape, node: ir.Node) -> None:
    """Lets the rule of `node` follow the tangents of its inputs to its outputs."""
    if all(tape.of(value) is None for value in node.inputs):
        return
    if not any(tape.wants(value) for value in node.outputs):
        return
    rule_for(RULES, node)(tape, node)
