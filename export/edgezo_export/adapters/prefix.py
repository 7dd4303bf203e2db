"""Prefix tuning: keys and values of virtual tokens that every token of every layer attends to.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021. As in MeZO
(Malladi et al., NeurIPS 2023), the keys and values themselves are tuned, they begin as those of
real tokens, and the text's positions count as if there were no prefix. In a graph that reads no
tokens, keys are drawn and values are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgezo_export.adapters.nodes import Maker
from edgezo_runtime.activations import SOURCE
from edgezo_runtime.adapter_init import ACTIVATIONS
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.errors import InputError

_SOUGHT = (
    "the MatMul of queries and keys, scaled and masked by Mul, Div, Add or Where, "
    "its Softmax, and the MatMul of that with the values"
)


@dataclass(frozen=True)
class _Attention:
    """One layer's attention: softmax(steps(queries keys)) values."""

    scores: ir.Node  # MatMul of (batch, heads, length, size) and (batch, heads, size, length)
    steps: tuple[ir.Node, ...]  # what scales or casts the scores, the first first
    softmax: ir.Node
    product: ir.Node  # MatMul with (batch, heads, length, size)


def add_prefix(
    model: ir.Model, parameters: Sequence[Parameter], virtual_tokens: int = 5
) -> tuple[list[Parameter], dict[str, Any]]:
    """Puts keys and values of `virtual_tokens` in front of those of every layer, in place.

    The scores of the prefix join the text's after these were masked, so no mask is touched.

    Args:
        model: a weight-free graph.
        parameters: its parameters.
        virtual_tokens: how many.

    Returns:
        The new parameters, keys and values of each layer, (1, key heads, virtual_tokens, size),
        and the settings in full.

    Raises:
        InputError: a setting is out of range, or the graph has no attention that is known, or an
            encoder's and a decoder's.
    """
    if virtual_tokens < 1:
        raise InputError(f"virtual_tokens is {virtual_tokens}; use a whole number from 1 on")
    if any(value.name == "decoder_input_ids" for value in model.graph.inputs):
        raise InputError(
            "a prefix goes into models that read one text, and this one has an encoder and a "
            "decoder: tune it with lora or prompt"
        )
    layers = [_attention(node) for node in model.graph if _is_attention(node)]
    if not layers:
        raise InputError(f"the graph has no attention that edgezo knows: it looks for {_SOUGHT}")
    added: list[Parameter] = []
    for number, layer in enumerate(layers):
        added += _adapt(model.graph, layer, number, virtual_tokens)
    return added, {"virtual_tokens": virtual_tokens}


def _is_attention(node: ir.Node) -> bool:
    return node.op_type == "Softmax" and len(node.outputs[0].shape or ()) == 4


def _attention(softmax: ir.Node) -> _Attention:
    found = _scores(softmax.inputs[0])
    user, after = softmax, [u for u, _ in softmax.outputs[0].uses()]
    while len(after) == 1 and after[0].op_type in ("Cast", "Identity"):
        user = after[0]
        after = [u for u, _ in user.outputs[0].uses()]
    last = softmax.attributes.get_int("axis", -1) in (-1, 3)
    if not last or found is None or [u.op_type for u in after] != ["MatMul"]:
        raise InputError(
            f"the attention of {softmax.outputs[0].name!r} is none that edgezo knows: "
            f"it looks for {_SOUGHT}"
        )
    scores, steps = found
    return _Attention(scores, steps, softmax, after[0])


def _scores(value: ir.Value | None) -> tuple[ir.Node, tuple[ir.Node, ...]] | None:
    """Returns the MatMul behind `value`, and what scales or casts it on the way."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    first = node.inputs[0]
    if node.op_type == "MatMul":
        wide = all(v is not None and len(v.shape or ()) == 4 for v in node.inputs)
        return (node, ()) if wide else None
    if node.op_type in ("Add", "Where"):
        ways = [way for v in node.inputs if (way := _scores(v)) is not None]
        return ways[0] if len(ways) == 1 else None
    scales = node.op_type in ("Mul", "Div") and _is_scalar(node.inputs[1])
    if scales or node.op_type in ("Cast", "Identity"):
        way = _scores(first)
        return None if way is None else (way[0], (*way[1], node))
    return None


def _is_scalar(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.size == 1


def _adapt(graph: ir.Graph, layer: _Attention, number: int, count: int) -> list[Parameter]:
    queries, turned = layer.scores.inputs
    values = layer.product.inputs[1]
    assert queries is not None and turned is not None and values is not None
    heads = queries.shape[1]  # type: ignore[index]
    make = Maker(graph, f"prefix.{number}.scores")
    name = f"prefix.{number}.keys"
    added, keys = _new_input(graph, make, _rows(make, turned), name, count, "kaiming_uniform")
    keys = _repeated(make, keys, added.shape[1], heads, queries)
    scores = make.node("MatMul", queries, make.node("Transpose", keys, perm=[0, 1, 3, 2]))
    for step in layer.steps:
        others = [v for v in step.inputs[1:] if v is not None]
        attributes = {a.name: a.value for a in step.attributes.values()}
        scores = make.node(step.op_type, scores, *others, **attributes)
    masked = layer.softmax.inputs[0]
    assert masked is not None
    layer.softmax.replace_input_with(0, make.node("Concat", scores, masked, axis=3))
    graph.insert_before(layer.softmax, make.nodes)
    _widen(layer)

    make = Maker(graph, f"prefix.{number}.product")
    also, new = _new_input(graph, make, values, f"prefix.{number}.values", count, "zeros")
    new = _repeated(make, new, also.shape[1], heads, values)
    rows = make.node("Gather", make.node("Shape", values), make.constant("first", [0]))
    batch = make.node("Concat", rows, make.constant("ones", [1, 1, 1]), axis=0)
    joined = make.node("Concat", make.node("Expand", new, batch), values, axis=2)
    layer.product.replace_input_with(1, joined)
    graph.insert_before(layer.product, make.nodes)
    return [added, also]


def _rows(make: Maker, turned: ir.Value) -> ir.Value:
    """Returns the keys as (batch, heads, length, size)."""
    node = turned.producer()
    if node is not None and list(node.attributes.get_ints("perm", ())) == [0, 1, 3, 2]:
        rows = node.inputs[0]
        assert rows is not None
        return rows
    assert turned.shape is not None and turned.type is not None
    rows = make.node("Transpose", turned, perm=[0, 1, 3, 2])
    batch, heads, size, length = turned.shape
    rows.shape, rows.type = ir.Shape([batch, heads, length, size]), turned.type
    return rows


def _ungrouped(value: ir.Value) -> ir.Value:
    """Returns the keys or values before each was repeated for a group of query heads."""
    for operator in ("Reshape", "Expand", "Unsqueeze"):
        node = value.producer()
        if node is None or node.op_type != operator or node.inputs[0] is None:
            return value if operator == "Reshape" else _not_known(value)
        if operator == "Reshape" and len(node.inputs[0].shape or ()) != 5:
            return value
        value = node.inputs[0]
    return value


def _not_known(value: ir.Value) -> ir.Value:
    raise InputError(f"the attention at {value.name!r} groups its heads in a way not known here")


def _new_input(
    graph: ir.Graph, make: Maker, like: ir.Value, name: str, count: int, init: str
) -> tuple[Parameter, ir.Value]:
    """Adds an input for keys or values such as `like`; returns it in the type of `like`.

    It begins as those of real tokens, or as `init` where the graph reads none.
    """
    source = _ungrouped(like)
    assert source.shape is not None and like.type is not None
    _, heads, _, size = source.shape
    if not isinstance(heads, int) or not isinstance(size, int):
        raise InputError(f"the graph does not say how many heads {source.name!r} has")
    if any(value.name == "input_ids" for value in graph.inputs):
        shown = make.node("Cast", source, to=ir.DataType.FLOAT.value)
        shown.name, shown.shape = name + SOURCE, source.shape
        shown.type = ir.TensorType(ir.DataType.FLOAT)
        init = ACTIVATIONS
    # Its length is free, so that the graph also runs without a prefix: see `activations`.
    value = ir.Value(
        name=name,
        shape=ir.Shape([1, heads, "prefix", size]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    graph.inputs.append(value)
    parameter = Parameter(name, (1, heads, count, size), "float32", "prefix", init=init)
    if like.type.dtype != ir.DataType.FLOAT:
        value = make.node("Cast", value, to=like.type.dtype.value)
    return parameter, value


def _repeated(make: Maker, value: ir.Value, groups: int, heads: Any, like: ir.Value) -> ir.Value:
    """Repeats each key head for the query heads of its group."""
    if groups == heads:
        return value
    assert like.shape is not None
    apart = make.node("Unsqueeze", value, make.constant("axis", [2]))
    every = make.node("Expand", apart, make.constant("group", [1, 1, heads // groups, 1, 1]))
    return make.node(
        "Reshape", every, make.constant("heads", [1, heads, -1, int(str(like.shape[3]))])
    )


def _widen(layer: _Attention) -> None:
    """Says that each token attends to more than the text."""
    value = layer.softmax.outputs[0]
    while True:
        assert value.shape is not None
        value.shape = ir.Shape([*value.shape[:-1], "attended"])
        (user, _), *_ = value.uses()
        if user is layer.product:
            return
        value = user.outputs[0]
