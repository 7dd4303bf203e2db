r"""Reverse mode over ONNX: from a graph to the graph of its gradients.

For outputs :math:`y` of weights :math:`w` the graph takes cotangents :math:`\bar y`, one for each
output, and gives :math:`\bar w = \bar y^T \, \partial y / \partial w`. Who runs it has computed
:math:`\bar y`, the derivative of a loss by the outputs, and gets that of the loss by the weights:
one graph serves every loss. Batch and length stay free.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_export.gradients.column_row import SampledTape, weights_alone
from edgezo_export.gradients.cuts import narrow_values
from edgezo_export.gradients.path import (
    differentiable,
    input_like,
    rule_for,
    with_derivatives,
)
from edgezo_export.gradients.rules import RULES
from edgezo_export.gradients.tape import Tape
from edgezo_runtime.bundle import Manifest
from edgezo_runtime.first_order.graph import COLUMN_ROW_KEY, CUTS_KEY, cotangent_of, gradient_of


def gradient_graph(graph: bytes, manifest: Manifest, column_row: float = 1.0) -> bytes:
    """Returns the gradient graph of a bundle's graph, by all weights that may be trained.

    Args:
        graph: the bytes of `graph.onnx`.
        manifest: of the bundle.
        column_row: see `add_gradients`.

    Raises:
        InputError: a weight is quantised or not float32, a node on the way has no rule, or
            `column_row` is out of range.
    """
    add = functools.partial(add_gradients, column_row=column_row)
    return with_derivatives(graph, manifest, add)


def add_gradients(model: ir.Model, weights: Sequence[str], column_row: float = 1.0) -> None:
    """Extends a graph with inputs for its outputs' cotangents, and outputs for gradients.

    Args:
        model: it is changed.
        weights: the graph inputs to differentiate by.
        column_row: the fraction of the rows that the gradients of linear layers are estimated
            from, by numbers that the graph then takes too; 1: they are exact.

    Raises:
        InputError: a node on the way has no rule, a weight is no float32, nothing depends on it,
            or `column_row` is out of range.
    """
    path = differentiable(model, weights)
    graph, nodes, active = model.graph, path.nodes, path.active
    # An output's cotangent is an input, and not what the stages above have added up.
    cuts = [value for value in narrow_values(nodes, active) if not value.is_graph_output()]
    tape = Tape(graph, active)
    if column_row != 1:
        tape = SampledTape(graph, active, weights_alone(nodes, path.wanted), column_row)
        model.metadata_props[COLUMN_ROW_KEY] = repr(column_row)
    outputs = [value for value in graph.outputs if value in active]
    seeds = [input_like(value, cotangent_of(str(value.name))) for value in outputs]
    for seed, value in zip(seeds, outputs, strict=True):
        tape.give(value, seed)
    for node in reversed(nodes):
        _differentiate(tape, node, set(cuts))
    gradients = [_finished(tape, value) for value in path.wanted]
    graph.inputs.extend([*seeds, *tape.inputs])
    graph.extend(tape.nodes)
    graph.outputs.extend(gradients)
    model.metadata_props[CUTS_KEY] = json.dumps([value.name for value in cuts])
    common_passes.RemoveUnusedNodesPass()(model)


def _differentiate(tape: Tape, node: ir.Node, cuts: set[ir.Value]) -> None:
    """Lets the rule of `node` pass on the cotangents of its outputs."""
    cotangents: list[ir.Value | None] = []
    for value in node.outputs:
        found = tape.take(value)
        if found is not None and value in cuts:
            found = tape.named(found, cotangent_of(str(value.name)))
            found.shape = value.shape
        cotangents.append(found)
    if all(cotangent is None for cotangent in cotangents):
        return
    if not any(tape.wants(value) for value in node.inputs):
        return
    rule_for(RULES, node)(tape, node, cotangents)


def _finished(tape: Tape, weight: ir.Value) -> ir.Value:
    found = tape.take(weight)
    assert found is not None
    gradient = tape.named(found, gradient_of(str(weight.name)))
    gradient.shape = weight.shape
    return gradient
