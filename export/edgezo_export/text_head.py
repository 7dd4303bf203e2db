"""Puts the text interface on a foreign graph that turns tokens into the logits of every token.

The answers' rows are gathered from the logits here; `GatherEarly` then moves that before the
vocabulary projection, so that the `(batch, length, vocabulary)` logits never exist.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.tape import Tape

from edgezo_export.architectures import TEXT_INPUTS
from edgezo_export.head_graph import FIRST, LAST
from edgezo_export.text_graph import INPUTS, LONG_SUM, OUTPUTS, logsumexp_groups
from edgezo_runtime.errors import InputError

_PAST = "past_key_values."
_SHAPES = {
    "input_ids": ["batch", "length"],
    "attention_mask": ["batch", "length"],
    "positions": ["answers"],
    "targets": ["answers"],
    "candidates": ["choices"],
    "decoder_input_ids": ["batch", "decoded"],
}


class _Ops(Tape):
    """Makes nodes: `op("Add", a, b)` is their sum."""

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.op(operator, inputs, attributes)


def put_text_head(
    model: ir.Model, vocabulary: int, position: int | None = None, decoder: bool = False
) -> None:
    """Gives `model` the inputs and outputs of a text graph, in place.

    Position numbers are counted from the mask, as transformers counts them, segments are 0, and a
    cache of keys and values is empty.

    Args:
        model: takes `input_ids, attention_mask` and perhaps `position_ids`, `token_type_ids` and
            past keys and values, and returns `logits` (batch, length, vocabulary), or
            (batch, labels) of a classifier.
        vocabulary: how many tokens the model knows, or labels.
        position: of the token that a classifier's head reads, first or last.
        decoder: whether it takes `decoder_input_ids` too, which the logits are of.

    Raises:
        InputError: it takes something else, or returns no logits.
    """
    graph = model.graph
    theirs = {str(value.name): value for value in graph.inputs}
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    text = TEXT_INPUTS if decoder else TEXT_INPUTS[:2]
    if logits is None or not theirs.keys() >= set(text):
        raise InputError(
            f"the graph does not turn {' and '.join(text)} into logits: export it with optimum's "
            "task text-generation, fill-mask, text-classification or text2text-generation"
        )
    ours = {name: _input(name) for name in dict.fromkeys((*INPUTS, *text))}
    for name in text:
        theirs[name].replace_all_uses_with(ours[name])
        ours[name].name = name
    first = _Ops()
    for name, value in theirs.items():
        if name == "position_ids":
            value.replace_all_uses_with(_position_ids(first, ours["attention_mask"]))
        elif name == "token_type_ids":
            mask = ours["attention_mask"]
            value.replace_all_uses_with(first("Sub", mask, mask))
        elif name.startswith(_PAST):
            value.replace_all_uses_with(_empty_past(first, value, ours["input_ids"]))
        elif name not in ours:
            raise InputError(f"the graph takes {name!r}, which edgezo does not know")
    last = _Ops()
    if position == FIRST:
        _read_at(graph, ours["positions"])
        rows = logits
    else:
        every = _scores(graph) if position == LAST else logits
        rows = _picked(last, every, ours["positions"], vocabulary)
    outputs = _answers(last, rows, ours, vocabulary)
    graph.inputs[:] = ours.values()
    graph.outputs[:] = outputs
    if first.nodes:
        graph.insert_before(graph.node(0), first.nodes)
    graph.extend(last.nodes)


def check_no_full_logits(model: ir.Model, vocabulary: int) -> None:
    """Raises InputError where the answers are still picked from the logits of every token."""
    for node in model.graph:
        rows, index = [*node.inputs, None, None][:2]
        if node.op_type != "Gather" or index is None or index.name != "positions":
            continue
        if rows is not None and rows.shape is not None and rows.shape[-1] == vocabulary:
            raise InputError(
                "the graph makes the logits of every token: edgezo cannot move the choice of the "
                "answers before its vocabulary projection"
            )


def _input(name: str) -> ir.Value:
    return ir.val(name, ir.DataType.INT64, ir.Shape(_SHAPES[name]))


def _position_ids(op: _Ops, mask: ir.Value) -> ir.Value:
    """Counts tokens from 0; padding gets 1, as in transformers."""
    counted = op("Sub", op("CumSum", mask, _integers(op, 1)), _integers(op, 1))
    return op("Where", op("Equal", mask, _integers(op, 0)), _integers(op, 1), counted)


def _empty_past(op: _Ops, past: ir.Value, tokens: ir.Value) -> ir.Value:
    """Returns keys or values of no tokens, (batch, heads, 0, features)."""
    sizes = list(past.shape or ())
    if len(sizes) != 4 or not isinstance(sizes[1], int) or not isinstance(sizes[3], int):
        raise InputError(f"the graph's cache {past.name!r} is not (batch, heads, tokens, features)")
    batch = op("Shape", tokens, start=0, end=1)
    shape = op("Concat", batch, _integers(op, [sizes[1], 0, sizes[3]]), axis=0)
    assert past.dtype is not None
    zero = ir.tensor([0.0], dtype=past.dtype)
    return op("ConstantOfShape", shape, value=zero)


def _read_at(graph: ir.Graph, positions: ir.Value) -> None:
    """Lets a classifier's head read the tokens at `positions`, not the first of each text."""
    firsts = [node for node in graph if _is_first_token(node)]
    head = next((user for node in firsts for user, _ in node.outputs[0].uses()), None)
    if len(firsts) != 1 or head is None or head.op_type != "Gemm":
        raise InputError("the graph does not show which token its classifier reads")
    hidden, weight = firsts[0].inputs[0], head.inputs[1]
    assert hidden is not None and weight is not None and weight.shape is not None
    features = weight.shape[1 if head.attributes.get_int("transB", 0) else 0]
    assert isinstance(features, int)
    op = _Ops()
    rows = _picked(op, hidden, positions, features)
    firsts[0].outputs[0].replace_all_uses_with(rows)
    graph.insert_before(firsts[0], op.nodes)
    graph.remove(firsts[0], safe=True)


def _is_first_token(node: ir.Node) -> bool:
    """Whether `node` takes the first of the second axis, (batch, length, features)."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        return False
    index = node.inputs[1]
    number = None if index is None else ir.convenience.get_const_tensor(index)
    return number is not None and number.size == 1 and number.numpy().item() == 0


def _scores(graph: ir.Graph) -> ir.Value:
    """Returns what a classifier scores each token with, (batch, length, labels)."""
    weight = graph.initializers.get("score.weight")
    users = [user for user, _ in weight.uses()] if weight is not None else []
    if len(users) == 1 and users[0].op_type == "Transpose":
        users = [user for user, _ in users[0].outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "MatMul":
        raise InputError("the graph does not multiply tokens with score.weight in one place")
    return users[0].outputs[0]


def _picked(op: _Ops, values: ir.Value, positions: ir.Value, features: int) -> ir.Value:
    """Returns the rows at `positions` of (batch, length, features), (answers, features)."""
    flat = op("Reshape", values, _integers(op, [-1, features]))
    rows = op("Gather", flat, positions, axis=0)
    values.shape = ir.Shape(["batch", "length", features])
    flat.shape = ir.Shape(["batch*length", features])
    rows.shape = ir.Shape(["answers", features])
    values.type = values.type or ir.TensorType(ir.DataType.FLOAT)  # only outputs say theirs
    flat.type = rows.type = values.type
    return rows


def _answers(
    op: _Ops, rows: ir.Value, inputs: dict[str, ir.Value], vocabulary: int
) -> list[ir.Value]:
    if rows.dtype != ir.DataType.FLOAT:
        rows = op("Cast", rows, to=ir.DataType.FLOAT)
        rows.shape, rows.dtype = ir.Shape(["answers", vocabulary]), ir.DataType.FLOAT
    column = op("Unsqueeze", inputs["targets"], _integers(op, [1]))
    chosen = op("Squeeze", op("GatherElements", rows, column, axis=1), _integers(op, [1]))
    outputs = [
        op("Sub", chosen, _logsumexp(op, rows, vocabulary)),
        op("Gather", rows, inputs["candidates"], axis=1),
    ]
    for value, name, shape in zip(
        outputs, OUTPUTS, (["answers"], ["answers", "choices"]), strict=True
    ):
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(shape)
    return outputs


def _logsumexp(op: _Ops, rows: ir.Value, vocabulary: int) -> ir.Value:
    """Does what `text_graph` does to the logits."""
    if groups := logsumexp_groups(vocabulary):
        shape = _integers(op, [-1, groups, vocabulary // groups])
        inner = op("ReduceLogSumExp", op("Reshape", rows, shape), _integers(op, [2]), keepdims=0)
        return op("ReduceLogSumExp", inner, _integers(op, [1]), keepdims=0)
    if vocabulary < LONG_SUM:
        return op("ReduceLogSumExp", rows, _integers(op, [1]), keepdims=0)
    first = _integers(op, 0)
    logprobs = op("LogSoftmax", rows, axis=1)
    return op("Sub", op("Gather", rows, first, axis=1), op("Gather", logprobs, first, axis=1))


def _integers(op: _Ops, values: int | list[int]) -> ir.Value:
    return op("Constant", value=ir.tensor(values, dtype=ir.DataType.INT64))
