r"""Reverse mode over ONNX: from a graph to the graph of its gradients.

For outputs :math:`y` of weights :math:`w` the graph takes cotangents :math:`\bar y`, one for each
output, and gives :math:`\bar w = \bar y^T \, \partial y / \partial w`. Who runs it has computed
:math:`\bar y`, the derivative of a loss by the outputs, and gets that of the loss by the weights:
one graph serves every loss. Batch and length stay free.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_export.gradients.cuts import narrow_values
from edgezo_export.gradients.rules import RULES
from edgezo_export.gradients.tape import Tape, dims, no_gradient
from edgezo_runtime.bundle import QUANTIZED, Manifest
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import CUTS_KEY, cotangent_of, gradient_of

_OLDEST = 16  # the opset in which scattered elements can be added up


def gradient_graph(graph: bytes, manifest: Manifest) -> bytes:
    """Returns the gradient graph of a bundle's graph, by all weights that may be trained.

    The same graph gives the same bytes. An adapter's bundle trains that and nothing else.

    Args:
        graph: the bytes of `graph.onnx`.
        manifest: of the bundle.

    Raises:
        InputError: a weight is quantised or not float32, or a node on the way has no rule.
    """
    parameters = manifest.parameters
    for parameter in parameters:
        if parameter.kind == QUANTIZED:
            raise InputError(
                f"{parameter.name} is quantised, so its model has no gradients: tune it with qzo, "
                "mezo or es, or make the gradients of the bundle that was quantised"
            )
    if manifest.adapter:
        parameters = tuple(p for p in parameters if p.init)
    model = ir.from_proto(onnx.load_from_string(graph))
    add_gradients(model, [p.name for p in parameters])
    return ir.to_proto(model).SerializeToString(deterministic=True)


def add_gradients(model: ir.Model, weights: Sequence[str]) -> None:
    """Extends a graph with inputs for its outputs' cotangents, and outputs for gradients.

    Args:
        model: it is changed.
        weights: the graph inputs to differentiate by.

    Raises:
        InputError: a node on the way has no rule, a weight is no float32, or nothing depends on it.
    """
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    if opset < _OLDEST:
        raise InputError(
            f"the graph has opset {opset}, its gradients need {_OLDEST} or later: export the "
            "model again with a newer opset"
        )
    common_passes.LiftConstantsToInitializersPass(size_limit=0, lift_all_constants=True)(model)
    common_passes.ShapeInferencePass()(model)
    graph = model.graph
    graph.sort()
    nodes = list(graph)
    inputs = {value.name: value for value in graph.inputs}
    wanted = [inputs[name] for name in weights]
    active = _active(nodes, wanted, graph.outputs)
    for value in wanted:
        if value not in active:
            raise InputError(f"no output depends on {value.name!r}: it has no gradient")
    # An output's cotangent is an input, and not what the stages above have added up.
    cuts = [value for value in narrow_values(nodes, active) if not value.is_graph_output()]
    tape = Tape(graph, active)
    seeds = [_seed(value) for value in graph.outputs if value in active]
    for seed, value in zip(seeds, [v for v in graph.outputs if v in active], strict=True):
        tape.give(value, seed)
    for node in reversed(nodes):
        _differentiate(tape, node, set(cuts))
    gradients = [_finished(tape, value) for value in wanted]
    graph.inputs.extend(seeds)
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
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise no_gradient(node)
    rule(tape, node, cotangents)


def _active(
    nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> set[ir.Value]:
    """Returns the float32 values that depend on a wanted weight and that an output depends on."""
    for value in wanted:
        if value.dtype != ir.DataType.FLOAT:
            raise InputError(
                f"{value.name} is {value.dtype}, and only float32 weights have gradients: tune "
                "quantised weights with --method qzo, or others with mezo or es"
            )
    reached = set(wanted)
    for node in nodes:
        if not reached.isdisjoint(node.inputs):
            reached.update(v for v in node.outputs if v.dtype in (ir.DataType.FLOAT, None))
    needed = set(outputs)
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(value for value in node.inputs if value is not None)
    return reached & needed


def _seed(output: ir.Value) -> ir.Value:
    shape = dims(output)
    return ir.val(
        cotangent_of(str(output.name)),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=None if shape is None else ir.Shape(shape),
    )


def _finished(tape: Tape, weight: ir.Value) -> ir.Value:
    found = tape.take(weight)
    assert found is not None
    gradient = tape.named(found, gradient_of(str(weight.name)))
    gradient.shape = weight.shape
    return gradient
