"""Puts the text interface on a foreign graph that turns tokens into the logits of every token.

The answers' rows are gathered from the logits here; `GatherEarly` then moves that before the
vocabulary projection, so that the `(batch, length, vocabulary)` logits never exist.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.tape import Tape

from edgezo_export.text_graph import INPUTS, LONG_SUM, OUTPUTS, logsumexp_groups
from edgezo_runtime.errors import InputError

_PAST = "past_key_values."
_SHAPES = {
    "input_ids": ["batch", "length"],
    "attention_mask": ["batch", "length"],
    "positions": ["answers"],
    "targets": ["answers"],
    "candidates": ["choices"],
}


class _Ops(Tape):
    """Makes nodes: `op("Add", a, b)` is their sum."""

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.op(operator, inputs, attributes)


def put_text_head(model: ir.Model, vocabulary: int) -> None:
    """Gives `model` the inputs and outputs of a text graph, in place.

    Position numbers are counted from the mask, as transformers counts them, and a cache of keys and
    values is empty.

    Args:
        model: takes `input_ids, attention_mask` and perhaps `position_ids` and past keys and
            values, and returns `logits` (batch, length, vocabulary).
        vocabulary: how many tokens the model knows.

    Raises:
        InputError: it takes something else, or returns no logits.
    """
    graph = model.graph
    theirs = {str(value.name): value for value in graph.inputs}
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    if logits is None or not {"input_ids", "attention_mask"} <= theirs.keys():
        raise InputError(
            "the graph does not turn input_ids and attention_mask into logits: "
            "export it with optimum's task text-generation"
        )
    ours = {name: _input(name) for name in INPUTS}
    for name in ("input_ids", "attention_mask"):
        theirs[name].replace_all_uses_with(ours[name])
        ours[name].name = name
    first = _Ops()
    for name, value in theirs.items():
        if name == "position_ids":
            value.replace_all_uses_with(_position_ids(first, ours["attention_mask"]))
        elif name.startswith(_PAST):
            value.replace_all_uses_with(_empty_past(first, value, ours["input_ids"]))
        elif name not in ours:
            raise InputError(f"the graph takes {name!r}, which edgezo does not know")
    last = _Ops()
    outputs = _answers(last, logits, ours, vocabulary)
    graph.inputs[:] = [ours[name] for name in INPUTS]
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


def _answers(
    op: _Ops, logits: ir.Value, inputs: dict[str, ir.Value], vocabulary: int
) -> list[ir.Value]:
    flat = op("Reshape", logits, _integers(op, [-1, vocabulary]))
    rows = op("Gather", flat, inputs["positions"], axis=0)
    logits.shape = ir.Shape(["batch", "length", vocabulary])
    flat.shape = ir.Shape(["batch*length", vocabulary])
    rows.shape = ir.Shape(["answers", vocabulary])
    flat.type = rows.type = logits.type
    if logits.dtype != ir.DataType.FLOAT:
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
