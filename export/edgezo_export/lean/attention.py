"""Attention as one operator, its rotation, its mask and its biases with it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgezo_export.lean.causal import is_causal
from edgezo_export.lean.edit import (
    Editor,
    describe,
    is_vector,
    made_by,
    only_reader,
    operand,
    permutes,
    scalar,
    sizes,
)
from edgezo_export.lean.heads import Heads, Tables, read_heads, split_tokens


@dataclass(frozen=True)
class _Scores:
    """What a softmax takes: `scale * product`, with masks added or put in."""

    product: ir.Node
    scale: float
    masks: tuple[ir.Value, ...]  # what is added
    fills: tuple[tuple[ir.Value, float], ...]  # where not, what number is put in


@dataclass(frozen=True)
class _Attention:
    query: Heads
    key: Heads
    value: Heads
    scores: _Scores
    output: ir.Node  # makes tokens of heads


class FuseAttention(ir.passes.InPlacePass):
    """Writes attention over the tokens of a text as MultiHeadAttention.

    Padding on the right needs no mask under a causal one, which is a flag and not a tensor then.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        editor = Editor(model.graph)
        tables = Tables(editor)
        known: dict[tuple[object, ...], bool] = {}
        found = False
        for node in [n for n in model.graph if n.op_type == "Softmax"]:
            attention = _read(node)
            if attention is None:
                continue
            scores = attention.scores
            key = (scores.masks, scores.fills, scores.scale)
            if key not in known:
                known[key] = is_causal(operand(node, 0), scores.product.outputs[0], scores.scale)
            mask = None if known[key] else _bias(attention)
            if known[key] or mask is not None:
                _write(editor, tables, attention, mask)
                found = True
        return ir.passes.PassResult(model, modified=found)


def _read(softmax: ir.Node) -> _Attention | None:
    scores = _scores(operand(softmax, 0))
    weights = softmax.outputs[0]
    while (cast := only_reader(weights)) is not None and cast.op_type == "Cast":
        weights = cast.outputs[0]
    product = only_reader(weights)
    if scores is None or product is None or product.op_type != "MatMul":
        return None
    transpose = only_reader(product.outputs[0])
    output = only_reader(transpose.outputs[0]) if transpose is not None else None
    if not permutes(transpose, 0, 2, 1, 3) or output is None or output.op_type != "Reshape":
        return None
    query, value = read_heads(operand(scores.product, 0)), read_heads(operand(product, 1))
    key = _keys(operand(scores.product, 1))
    if query is None or key is None or value is None or value.factor != 1:
        return None
    heads = query.heads
    fits = query.repeats == 1 and heads == key.heads * key.repeats == value.heads * value.repeats
    width = sizes(output.outputs[0])[-1:]
    if not fits or value.rotation is not None or width != (heads * value.features,):
        return None
    if len({sizes(heads.tokens)[:2] for heads in (query, key, value)}) > 1:
        return None  # of two texts
    return _Attention(query, key, value, scores, output)


def _scores(value: ir.Value) -> _Scores | None:
    scale = 1.0
    masks: list[ir.Value] = []
    fills: list[tuple[ir.Value, float]] = []
    while (node := value.producer()) is not None:
        if node.op_type == "MatMul":
            return _Scores(node, scale, tuple(masks), tuple(fills))
        factor = scalar(node.inputs[1]) if len(node.inputs) == 2 else None
        if node.op_type == "Mul" and factor is not None:
            scale *= factor
        elif node.op_type == "Div" and factor:
            scale /= factor
        elif node.op_type == "Add":
            masks.append(operand(node, 1))
        elif node.op_type == "Where" and (fill := scalar(node.inputs[2])) is not None:
            fills.append((operand(node, 0), fill))
            value = operand(node, 1)
            continue
        elif node.op_type != "Cast":
            return None
        value = operand(node, 0)
    return None


def _keys(value: ir.Value) -> Heads | None:
    """Reads keys (batch, heads, features, length)."""
    transpose = value.producer()
    if permutes(transpose, 0, 2, 3, 1) and transpose is not None:
        return split_tokens(operand(transpose, 0))
    if permutes(transpose, 0, 1, 3, 2) and transpose is not None:
        return read_heads(operand(transpose, 0))
    return None


def _bias(attention: _Attention) -> ir.Value | None:
    """Returns a mask that can be added to the scores as it is."""
    scores = attention.scores
    if len(scores.masks) != 1 or scores.fills:
        return None
    mask = scores.masks[0]
    square = sizes(mask)[2:] == sizes(scores.product.outputs[0])[2:]
    fits = len(sizes(mask)) == 4 and square and mask.dtype == attention.query.tokens.dtype
    return mask if fits else None


def _write(editor: Editor, tables: Tables, attention: _Attention, mask: ir.Value | None) -> None:
    query, key, value = attention.query, attention.key, attention.value
    before = attention.output
    tokens, bias = _tokens(query, key, value)
    inputs = [
        _prepared(editor, tables, before, heads, some)
        for heads, some in zip((query, key, value), tokens, strict=True)
    ]
    attributes: dict[str, float] = {
        "num_heads": query.heads,
        "scale": attention.scores.scale * query.factor * key.factor,
    }
    optional = [bias, None, mask] if mask is not None else [bias] if bias is not None else []
    if mask is None:
        attributes["unidirectional"] = 1
    made = editor.put(before, "MultiHeadAttention", *inputs, *optional, **attributes)
    old = before.outputs[0]
    assert query.tokens.shape is not None and old.shape is not None
    shape = ir.Shape([*query.tokens.shape[:2], old.shape[-1]])
    if len(old.shape) == 3:
        made.name, old.name = old.name, None
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        made.type, made.shape = old.type, shape
    else:  # flattened at once
        describe(made, f"{old.name}_tokens", old, shape)
        before.replace_input_with(0, made)


def _tokens(query: Heads, key: Heads, value: Heads) -> tuple[list[ir.Value], ir.Value | None]:
    """Returns the tokens, and the biases of all in one if the attention is to add them.

    A bias of keys that are not turned is left out: it adds the same to all scores of a query, which
    a softmax does not see.
    """
    tokens = [heads.tokens for heads in (query, key, value)]
    if any(heads.rotation is not None or heads.repeats > 1 for heads in (query, key, value)):
        return tokens, None
    split = tokens[0].producer()
    if split is not None and split.op_type == "Split" and tokens == list(split.outputs):
        add = made_by(split.inputs[0], "Add")
        alone = all(only_reader(v) for v in (operand(split, 0), *split.outputs))
        if add is not None and is_vector(add.inputs[1]) and alone:
            split.replace_input_with(0, operand(add, 0))
            return tokens, add.inputs[1]
        return tokens, None
    add = made_by(tokens[1], "Add")
    if add is not None and is_vector(add.inputs[1]):
        tokens[1] = operand(add, 0)
    return tokens, None


def _prepared(
    editor: Editor, tables: Tables, before: ir.Node, heads: Heads, tokens: ir.Value
) -> ir.Value:
    """Turns and repeats the heads of `tokens`, (batch, length, heads * features)."""
    if heads.rotation is not None:
        tables_of = [tables.of(heads.rotation.cos), tables.of(heads.rotation.sin)]
        start = editor.first_position()
        made = editor.put(before, "RotaryEmbedding", tokens, start, *tables_of)
        assert tokens.shape is not None
        describe(made, f"{tokens.name}_turned", tokens, tokens.shape)
        tokens = made
    if heads.repeats > 1:
        tokens = _repeated(editor, before, heads, tokens)
    return tokens


def _repeated(editor: Editor, before: ir.Node, heads: Heads, tokens: ir.Value) -> ir.Value:
    count, features, repeats = heads.heads, heads.features, heads.repeats
    shape = tokens.shape
    assert shape is not None
    steps = [
        ("Reshape", (0, 0, count, 1, features), [count, 1, features]),
        ("Expand", (1, 1, 1, repeats, 1), [count, repeats, features]),
        ("Reshape", (0, 0, count * repeats * features), [count * repeats * features]),
    ]
    for number, (operator, numbers, rest) in enumerate(steps):
        made = editor.put(before, operator, tokens, editor.integers(*numbers))
        describe(made, f"{tokens.name}_{number}", tokens, ir.Shape([*shape[:2], *rest]))
        tokens = made
    return tokens
