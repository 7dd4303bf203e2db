"""What lies between weights and outputs: the part of a graph that is differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_export.bundle_graph import bundle_graph
from edgezo_export.gradients.writer import dims, no_gradient
from edgezo_export.newer_opset import in_newer_opset
from edgezo_runtime.bundle import QUANTIZED, Manifest
from edgezo_runtime.errors import InputError

#: The first opset in which all that rules write can be said.
OPSET = 18
#: What a derivative may pass through in principle; rules exist for float32 alone.
_REALS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)


@dataclass(frozen=True)
class Path:
    """The way from weights to outputs.

    Attributes:
        nodes: of the whole graph, in topological order.
        wanted: the weights.
        active: the float32 values that depend on a weight and that an output depends on.
    """

    nodes: Sequence[ir.Node]
    wanted: Sequence[ir.Value]
    active: frozenset[ir.Value]


def with_derivatives(
    graph: bytes, manifest: Manifest, add: Callable[[ir.Model, Sequence[str]], None]
) -> bytes:
    """Returns the bytes of `graph` after `add` has extended it for all weights that may be trained.

    The same graph gives the same bytes. An adapter's bundle trains that and nothing else.

    Args:
        graph: the bytes of `graph.onnx`.
        manifest: of the bundle.
        add: differentiates a model by the graph inputs of these names.

    Raises:
        InputError: a weight is quantised, an operator is too old, or what `add` raises.
    """
    model = in_newer_opset(bundle_graph(graph), OPSET)
    add(model, _trained_names(manifest))
    return ir.to_proto(model).SerializeToString(deterministic=True)


def input_like(value: ir.Value, name: str) -> ir.Value:
    """Returns a float32 graph input `name` of the shape of `value`."""
    shape = dims(value)
    return ir.val(
        name,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=None if shape is None else ir.Shape(shape),
    )


def rule_for(rules: Mapping[str, Any], node: ir.Node) -> Any:
    """Returns the rule of `node`; raises InputError, which names it, if there is none."""
    rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise no_gradient(node)
    return rule


def _trained_names(manifest: Manifest) -> list[str]:
    """Returns the weights that a bundle may train; an adapter's bundle trains that alone.

    Raises:
        InputError: a weight is quantised.
    """
    parameters = manifest.parameters
    for parameter in parameters:
        if parameter.kind == QUANTIZED:
            raise InputError(
                f"{parameter.name} is quantised, so its model has no gradients: tune it with qzo, "
                "mezo or es, or make the gradients of the bundle that was quantised"
            )
    return [p.name for p in parameters if p.init or not manifest.adapter]


def differentiable(model: ir.Model, weights: Sequence[str]) -> Path:
    """Returns the path from `weights`, and makes constants and shapes along it known.

    Args:
        model: of opset `OPSET` or later; it is changed.
        weights: the graph inputs to differentiate by.

    Raises:
        InputError: a weight is no float32, or nothing depends on it.
    """
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
    return Path(nodes, wanted, active)


def _active(
    nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> frozenset[ir.Value]:
    """Returns the float32 values that depend on a wanted weight and that an output depends on."""
    for value in wanted:
        if value.dtype != ir.DataType.FLOAT:
            raise InputError(
                f"{value.name} is {value.dtype}, and only float32 weights have gradients: tune "
                "quantised weights with --method qzo, and those in float16 with mezo"
            )
    reached = set(wanted)
    for node in nodes:
        if not reached.isdisjoint(node.inputs):
            reached.update(v for v in node.outputs if v.dtype is None or v.dtype in _REALS)
    needed = set(outputs)
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(value for value in node.inputs if value is not None)
    active = frozenset(reached & needed)
    for node in nodes:
        for value in node.outputs:
            if value in active and value.dtype not in (ir.DataType.FLOAT, None):
                raise no_gradient(node, f", in {value.dtype}")
    return active
