r"""Low-rank adaptation: :math:`y = x W^T + s\,(x A^T) B^T` beside the frozen weights W.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgezo_runtime import dtypes
from edgezo_runtime.bundle import PACKED, QUANTIZED, Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.peft import scale

KIND = "lora"
ALL_LINEAR = "all-linear"
#: What PEFT adapts in the architectures that it knows, the first that a model has.
DEFAULT_TARGETS = (
    ("q_proj", "v_proj"),
    ("c_attn",),
    ("query", "value"),
    ("query_key_value",),
    ("q", "v"),
)
#: Output projections, which `ALL_LINEAR` leaves out as PEFT does.
_OUTPUTS = ("lm_head.", "embed_out.", "score.", "classifier.weight")
_WEIGHT = ".weight"
_ADDED = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class _Use:
    """One node that multiplies with a weight: ``x W^T`` or ``x W``."""

    node: ir.Node
    flipped: bool  # whether it reads the transposed weight
    scale: float = 1.0  # of the product: a Gemm's alpha


@dataclass(frozen=True)
class _Layer:
    """A linear layer: its weight's name and dtype, and the nodes that multiply with it."""

    weight: str
    inputs: int
    outputs: int
    dtype: ir.DataType
    uses: Sequence[_Use]


def add_lora(
    model: ir.Model,
    parameters: Sequence[Parameter],
    rank: int = 8,
    alpha: float = 16.0,
    target: Sequence[str] | None = None,
    rslora: bool = False,
    fan_in_fan_out: bool | None = None,
) -> tuple[list[Parameter], dict[str, Any]]:
    r"""Puts A and B beside each target weight of `model`, in place.

    Args:
        model: a weight-free graph.
        parameters: its parameters.
        rank: r; A is (r, in), B is (out, r), both float32.
        alpha: the scale s is :math:`\alpha / r`.
        target: modules by the last parts of their names, by patterns of the whole name, or
            ``all-linear`` for every linear layer but the output projection; None: as PEFT.
        rslora: the scale is :math:`\alpha / \sqrt{r}` instead.
        fan_in_fan_out: whether the target weights are (in, out); None: as the graph uses them.

    Returns:
        The new parameters in the order of their layers, and the settings in full.

    Raises:
        InputError: a setting is out of range, or a target is no linear layer of the graph.
    """
    if rank < 1:
        raise InputError(f"rank is {rank}; use a whole number from 1 on")
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha is {alpha}; use a number above 0, such as {2 * rank}")
    inputs = {value.name: value for value in model.graph.inputs}
    layers = [layer for p in parameters if (layer := _layer(p, inputs[p.name]))]
    linear = {layer.weight: layer for layer in layers}
    if not linear:
        if any(p.kind == "scale" for p in parameters):
            raise InputError(
                "the graph has no linear layer for LoRA, as its file was quantised already: tune "
                "the scales with --tune scales, or make the bundle from the file of float weights"
            )
        raise InputError(
            "the graph has no linear layer for LoRA: tune weights by the patterns of their names"
        )
    names = list(target) if target else _default_target(linear)
    chosen = _chosen(names, linear)
    upright = {not use.flipped for name in chosen for use in linear[name].uses}
    if len(upright) > 1 or fan_in_fan_out not in (None, *upright):
        raise InputError(
            "the target layers differ in whether their weights are (in, out) or (out, in): "
            "choose layers of one kind with --target"
        )
    settings = {"rank": rank, "alpha": alpha, "target": names, "rslora": rslora}
    settings["fan_in_fan_out"] = upright.pop()
    factor = scale(settings)
    added: list[Parameter] = []
    for layer in layers:
        if layer.weight in chosen:
            added += _adapt(model.graph, layer, rank, factor)
    return added, settings


def _default_target(linear: Iterable[str]) -> list[str]:
    for names in DEFAULT_TARGETS:
        if all(any(_is_named(_module(w), name) for w in linear) for name in names):
            return list(names)
    raise InputError(
        f"the graph has none of the layers that LoRA usually adapts: name some with --target, "
        f"such as {_module(next(iter(linear)))}, or {ALL_LINEAR}"
    )


def _chosen(names: Sequence[str], linear: Iterable[str]) -> set[str]:
    chosen: set[str] = set()
    for name in names:
        if name == ALL_LINEAR:
            matched = {w for w in linear if not w.startswith(_OUTPUTS)}
        else:
            matched = {w for w in linear if _is_named(_module(w), name)}
        if not matched:
            raise InputError(
                f"--target {name!r} matches no linear layer of the graph; layers look like "
                f"{_module(next(iter(linear)))!r}"
            )
        chosen |= matched
    return chosen


def _module(weight: str) -> str:
    return weight.removesuffix(_WEIGHT)


def _is_named(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}") or fnmatch.fnmatchcase(module, name)


def _layer(parameter: Parameter, value: ir.Value) -> _Layer | None:
    """Returns the layer whose weight, or whose integers, `parameter` is; None if it has none."""
    if parameter.kind == QUANTIZED:
        nodes = [node for node, _ in value.uses()]
        if any(node.op_type != "MatMulNBits" for node in nodes) or value is not nodes[0].inputs[1]:
            return None
        wide, deep = (nodes[0].attributes.get_int(size, 0) for size in ("K", "N"))
        uses = [_Use(node, flipped=True) for node in nodes]
        name = parameter.name.removesuffix(PACKED)
        return _Layer(name, wide, deep, ir.DataType.FLOAT, uses)
    if parameter.kind != "linear" or len(parameter.shape) != 2 or not (uses := _uses(value)):
        return None
    deep, wide = parameter.shape if uses[0].flipped else parameter.shape[::-1]
    dtype = ir.DataType(dtypes.named(parameter.dtype).onnx)
    return _Layer(parameter.name, wide, deep, dtype, uses)


def _uses(weight: ir.Value) -> list[_Use]:
    """Returns what multiplies with `weight`; nothing where something else uses it too."""
    found: list[_Use] = []
    for node, index in weight.uses():
        if node.op_type == "Transpose":  # of a matrix there is one only
            behind = [_multiplication(user, i) for user, i in node.outputs[0].uses()]
            uses = [use and _Use(use.node, not use.flipped, use.scale) for use in behind]
        else:
            uses = [_multiplication(node, index)]
        if None in uses:
            return []
        found += [use for use in uses if use is not None]
    # A weight that is used in both ways has no input and output side.
    return found if len({use.flipped for use in found}) == 1 else []


def _multiplication(node: ir.Node, index: int) -> _Use | None:
    if index != 1:
        return None
    if node.op_type == "MatMul":
        return _Use(node, flipped=False)
    if node.op_type == "Gemm" and not node.attributes.get_int("transA", 0):
        flipped = bool(node.attributes.get_int("transB", 0))
        return _Use(node, flipped, node.attributes.get_float("alpha", 1.0))
    return None


def _adapt(graph: ir.Graph, layer: _Layer, rank: int, factor: float) -> list[Parameter]:
    name = _module(layer.weight)
    down, up = (rank, layer.inputs), (layer.outputs, rank)
    added = [
        Parameter(f"{name}.lora_A.weight", down, "float32", KIND, init="kaiming_uniform"),
        Parameter(f"{name}.lora_B.weight", up, "float32", KIND, init="zeros"),
    ]
    for new in added:
        value = ir.Value(
            name=new.name, shape=ir.Shape(new.shape), type=ir.TensorType(ir.DataType.FLOAT)
        )
        graph.inputs.append(value)
    matrices = (graph.inputs[-2], graph.inputs[-1])
    for number, use in enumerate(layer.uses):
        scale = factor * use.scale
        _add_product(graph, use, matrices, scale, layer.dtype, f"{name}.lora_{number}")
    return added


def _add_product(
    graph: ir.Graph,
    use: _Use,
    matrices: tuple[ir.Value, ir.Value],
    factor: float,
    dtype: ir.DataType,
    name: str,
) -> None:
    """Adds ``factor * (x A^T) B^T``, computed in float32, to what the node of `use` gives."""
    down, up = matrices
    rows, result = use.node.inputs[0], use.node.outputs[0]
    assert rows is not None
    nodes: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes or None)
        node.outputs[0].name = f"{name}.{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    constant = ir.tensor(np.float32(factor), name=f"{name}.scale")
    scalar = ir.val(f"{name}.scale", const_value=constant)
    graph.register_initializer(scalar)
    half = dtype != ir.DataType.FLOAT
    x = add("Cast", rows, to=ir.DataType.FLOAT.value) if half else rows
    x = add("MatMul", x, add("Transpose", down, perm=[1, 0]))
    x = add("MatMul", add("Mul", x, scalar), add("Transpose", up, perm=[1, 0]))
    if half:
        x = add("Cast", x, to=dtype.value)
    total = add("Add", result, x)
    total.shape, total.type = result.shape, result.type
    users = [(user, i) for user, i in result.uses() if user is not nodes[-1]]
    for user, i in users:
        user.replace_input_with(i, total)
    for i, output in enumerate(graph.outputs):
        if output is result:
            graph.outputs[i] = total
            total.name, result.name = result.name, f"{name}.base"
    graph.insert_after(use.node, nodes)


def without_lora(model: ir.Model) -> None:
    """Takes what `add_lora` put into `model` out again, in place."""
    added = [value for value in model.graph.inputs if str(value.name).endswith(_ADDED)]
    for up in added:
        for transpose, _ in up.uses() if str(up.name).endswith(_ADDED[1]) else ():
            for product, _ in list(transpose.outputs[0].uses()):
                total = _behind(product)
                if total.op_type == "Cast":
                    total = _behind(total)
                base, sum_ = total.inputs[0], total.outputs[0]
                assert base is not None
                if sum_.is_graph_output():
                    base.name, sum_.name = sum_.name, base.name
                sum_.replace_all_uses_with(base, replace_graph_outputs=True)
    common_passes.RemoveUnusedNodesPass()(model)
    for value in added:
        model.graph.inputs.remove(value)


def _behind(node: ir.Node) -> ir.Node:
    (user, _), *_ = node.outputs[0].uses()
    return user
