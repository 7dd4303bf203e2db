"""Lets query heads that share a key head read its keys and values, and no copies of them.

Models with grouped queries are exported as they are written: keys and values are repeated for each
query head. With a cache these copies grow with the text, and are made again for each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgezo_export.adapters.nodes import Maker
from edgezo_export.rows import first_input


@dataclass(frozen=True)
class _Attention:
    """softmax(scale(queries keys) + mask) values, with repeated keys and values."""

    scores: ir.Node  # MatMul of (batch, heads, new, size) and (batch, heads, size, length)
    turned: ir.Node  # the Transpose of the keys
    masked: ir.Node  # Add of the mask
    mask: ir.Value  # (batch, 1, new, length)
    product: ir.Node  # MatMul with (batch, heads, length, size)
    keys: ir.Value  # (batch, key heads, length, size)
    values: ir.Value


class GroupQueries(ir.passes.InPlacePass):
    """Multiplies the queries of a group, (batch, key heads, group * new, size), with its keys."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass; an attention that is written differently stays as it is."""
        masks: dict[tuple[ir.Value, int], ir.Value] = {}
        layers = [found for node in model.graph if (found := _attention(node)) is not None]
        for layer in layers:
            _group(model.graph, layer, masks)
        return ir.passes.PassResult(model, modified=bool(layers))


def _attention(softmax: ir.Node) -> _Attention | None:
    if softmax.op_type != "Softmax":
        return None
    masked, product = first_input(softmax).producer(), _only_user(softmax)
    if masked is None or masked.op_type != "Add" or product is None or product.op_type != "MatMul":
        return None
    first, second = masked.inputs
    scores, mask = _unmasked(first), second
    if scores is None:
        scores, mask = _unmasked(second), first
    if scores is None or not _fits(mask, first_input(scores)):
        return None
    turned = scores.inputs[1].producer() if scores.inputs[1] is not None else None
    if turned is None or list(turned.attributes.get_ints("perm", ())) != [0, 1, 3, 2]:
        return None
    keys, values = _unrepeated(turned.inputs[0]), _unrepeated(product.inputs[1])
    if keys is None or values is None or _only_user(turned) is None:
        return None
    assert mask is not None
    return _Attention(scores, turned, masked, mask, product, keys, values)


def _fits(mask: ir.Value | None, queries: ir.Value) -> bool:
    """Whether `mask` is the same for all heads, and has a row for each query."""
    if mask is None or mask.shape is None or queries.shape is None or len(mask.shape) != 4:
        return False
    return mask.shape[1] == 1 and mask.shape[2] == queries.shape[2]


def _only_user(node: ir.Node) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 else None


def _unmasked(value: ir.Value | None) -> ir.Node | None:
    """Returns the MatMul whose scaled result `value` is, which nothing else reads."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Mul", "Div") and _only_user(node) is not None:
        factor = node.inputs[1]
        if factor is None or factor.const_value is None or factor.const_value.size != 1:
            return None
        node = first_input(node).producer()
    if node is None or node.op_type != "MatMul" or _only_user(node) is None:
        return None
    return node


def _unrepeated(value: ir.Value | None) -> ir.Value | None:
    """Returns the keys or values before each was repeated for the query heads of its group."""
    for operator, dimensions in (("Reshape", 5), ("Expand", 5), ("Unsqueeze", 4)):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != operator:
            return None
        value = node.inputs[0]
        if value is None or value.shape is None or len(value.shape) != dimensions:
            return None
    return value


def _group(graph: ir.Graph, layer: _Attention, masks: dict[tuple[ir.Value, int], ir.Value]) -> None:
    queries, result, mask = first_input(layer.scores), layer.product.outputs[0], layer.mask
    assert queries.shape is not None and layer.keys.shape is not None and mask.shape is not None
    heads, key_heads = queries.shape[1], layer.keys.shape[1]
    assert isinstance(heads, int) and isinstance(key_heads, int)
    each = heads // key_heads
    rows = f"{each}*({queries.shape[2]})"  # one query head's stand behind another's

    make = Maker(graph, f"{layer.scores.outputs[0].name}.grouped")
    shape = make.constant("shape", [0, key_heads, -1, _size(layer.keys)])
    layer.scores.replace_input_with(0, make.node("Reshape", queries, shape))
    layer.turned.replace_input_with(0, layer.keys)
    graph.insert_before(layer.scores, make.nodes)
    if (mask, each) not in masks:
        make = Maker(graph, f"{mask.name}.grouped")
        masks[mask, each] = make.node("Concat", *[mask] * each, axis=2)
        masks[mask, each].type = mask.type
        masks[mask, each].shape = ir.Shape([mask.shape[0], 1, rows, mask.shape[3]])
        graph.insert_before(layer.masked, make.nodes)
    layer.masked.replace_input_with(layer.masked.inputs.index(mask), masks[mask, each])
    layer.product.replace_input_with(1, layer.values)

    make = Maker(graph, f"{result.name}.parted")
    shape = make.constant("shape", [0, heads, -1, _size(layer.values)])
    parted = make.node("Reshape", result, shape)
    parted.shape, parted.type = result.shape, result.type
    result.replace_all_uses_with(parted)
    make.nodes[-1].replace_input_with(0, result)
    graph.insert_after(layer.product, make.nodes)
    _describe(layer, [queries.shape[0], key_heads, rows])


def _size(value: ir.Value) -> int:
    """Returns the features of each head."""
    size = value.shape[3] if value.shape is not None else None
    assert isinstance(size, int)
    return size


def _describe(layer: _Attention, sizes: list[Any]) -> None:
    """Writes the new sizes of everything from the queries to the product."""
    queries, keys = first_input(layer.scores), layer.keys
    assert keys.shape is not None
    queries.shape, queries.type = ir.Shape([*sizes, keys.shape[3]]), keys.type
    turned = layer.turned.outputs[0]
    turned.shape = ir.Shape([keys.shape[i] for i in (0, 1, 3, 2)])
    value = layer.scores.outputs[0]
    while value.producer() is not layer.product:
        value.shape = ir.Shape([*sizes, keys.shape[2]])
        value = next(iter(value.uses()))[0].outputs[0]
    value.shape = ir.Shape([*sizes, _size(layer.values)])
