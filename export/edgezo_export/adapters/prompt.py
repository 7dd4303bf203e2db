"""Prompt tuning: embeddings of virtual tokens in front of every text.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from edgezo_export.adapters.nodes import Maker
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.errors import InputError

NAME = "prompt_embeddings"
#: What the graphs of `text_graph` and `generate_graph` call the length of a text.
_LENGTH = re.compile("length|new")


def add_prompt(
    model: ir.Model, parameters: Sequence[Parameter], virtual_tokens: int = 10
) -> tuple[list[Parameter], dict[str, Any]]:
    """Puts `virtual_tokens` embeddings in front of the text's, in place.

    The graph goes on as if each text were longer: its positions count from the first virtual token,
    as PEFT's do. They begin as the embeddings of tokens drawn at random. Where a text is read on
    with a cache, they are in the cache already.

    Args:
        model: a weight-free graph of text, or one that generates it.
        parameters: its parameters.
        virtual_tokens: how many.

    Returns:
        The new parameter, (virtual_tokens, hidden), and the settings in full.

    Raises:
        InputError: a setting is out of range, or the graph does not look its tokens up in one
            table of embeddings.
    """
    if virtual_tokens < 1:
        raise InputError(f"virtual_tokens is {virtual_tokens}; use a whole number from 1 on")
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    past = next((v for name, v in inputs.items() if name.startswith("past_key_values.")), None)
    lookup = _lookup(inputs, parameters)
    if lookup is None or "attention_mask" not in inputs or not (past or "positions" in inputs):
        raise InputError(
            "the graph has no place for a prompt: it needs input_ids, attention_mask, positions or "
            "past_key_values, and one Gather of a table of embeddings by input_ids"
        )
    _rename_length(graph)
    table = lookup.inputs[0]
    assert table is not None and table.type is not None
    described = next(p for p in parameters if p.name == table.name)
    new = Parameter(
        NAME, (virtual_tokens, described.shape[1]), "float32", "prompt", init=f"rows:{table.name}"
    )
    prompt = ir.Value(name=NAME, shape=ir.Shape(new.shape), type=ir.TensorType(ir.DataType.FLOAT))
    make = Maker(graph, "prompt.text")
    count = make.constant("count", [virtual_tokens])
    shown, turned = (count, None) if past is None else _at_first(make, inputs, past, count)
    _lengthen(make, inputs, shown, count)
    graph.insert_before(graph[0], make.nodes)
    _put_before(graph, lookup, prompt, shown, turned)
    graph.inputs.append(prompt)
    return [new], {"virtual_tokens": virtual_tokens}


def _lookup(inputs: dict[str, ir.Value], parameters: Sequence[Parameter]) -> ir.Node | None:
    """Returns the one node that turns tokens into embeddings."""
    ids = inputs.get("input_ids")
    if ids is None:
        return None
    tables = {p.name for p in parameters if p.kind == "embedding"}
    # Some models reshape (batch, length) to itself before they look it up.
    same = [n.outputs[0] for n, index in ids.uses() if n.op_type == "Reshape" and index == 0]
    found = [
        node
        for source in (ids, *same)
        for node, index in source.uses()
        if node.op_type == "Gather" and index == 1
        if node.inputs[0] is not None and node.inputs[0].name in tables
    ]
    if len(found) != 1 or len(found[0].outputs[0].shape or ()) != 3:
        return None
    return found[0]


def _rename_length(graph: ir.Graph) -> None:
    """Gives the text's length within the graph another name than that of the inputs."""
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = _renamed(value.shape)


def _renamed(shape: ir.Shape) -> ir.Shape:
    sizes = (n if isinstance(n, int) else str(n.value) for n in shape)
    return ir.Shape([n if isinstance(n, int) else _LENGTH.sub("prompted", n) for n in sizes])


def _at_first(
    make: Maker, inputs: dict[str, ir.Value], past: ir.Value, count: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Returns how many virtual tokens a reading with a cache shows, and how many slots to turn.

    A first reading shows them all, behind the padding on the left: in the slots in front of it they
    would stand too far away for a sliding window. Turning padding and prompt swaps them.
    """
    held = make.node("Shape", past, start=2, end=3)
    zero, axis = make.constant("zero", [0]), make.constant("axis", [1])
    first = make.node("Cast", make.node("Equal", held, zero), to=ir.DataType.INT64.value)
    padding = make.node("Sub", make.constant("one", 1), inputs["attention_mask"])
    padded = make.node("ReduceSum", padding, axis, keepdims=0)
    turned = make.node("Mul", make.node("Add", padded, count), first)
    return make.node("Mul", count, first), turned


def _lengthen(make: Maker, inputs: dict[str, ir.Value], shown: ir.Value, count: ir.Value) -> None:
    """Makes the graph read longer ids and masks, and counts the positions accordingly."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    # A decoder's positions are those of the answer, which stays as long as it is.
    positions = None if "decoder_input_ids" in inputs else inputs.get("positions")
    old = {value: list(value.uses()) for value in (ids, mask, positions) if value is not None}
    rows = make.node("Shape", ids, start=0, end=1)

    def filled(name: str, number: int, by: ir.Value) -> ir.Value:
        return make.node(
            "Expand", make.constant(name, number), make.node("Concat", rows, by, axis=0)
        )

    # A text's padding is on its right; on the left where it is generated.
    seen = [filled("seen", 1, count), mask]
    seen = seen if "positions" in inputs else seen[::-1]
    new = {
        ids: make.node("Concat", filled("id", 0, shown), ids, axis=1),
        mask: make.node("Concat", *seen, axis=1),
    }
    for value, longer in new.items():
        assert value.shape is not None
        longer.shape = _renamed(value.shape)
    if positions is not None:
        # Position row * length + t becomes row * (length + count) + count + t.
        length = make.node("Squeeze", make.node("Shape", ids, start=1, end=2))
        row = make.node("Div", positions, length)
        skipped = make.node("Mul", make.node("Add", row, make.constant("next", 1)), count)
        new[positions] = make.node("Add", positions, skipped)
        new[positions].shape = positions.shape
    for value, longer in new.items():
        longer.type = value.type
        for node, index in old[value]:
            node.replace_input_with(index, longer)


def _put_before(
    graph: ir.Graph,
    lookup: ir.Node,
    prompt: ir.Value,
    shown: ir.Value,
    turned: ir.Value | None,
) -> None:
    """Puts as many rows of the prompt as are `shown` in place of the first that `lookup` found."""
    make = Maker(graph, "prompt.rows")
    found = lookup.outputs[0]
    old = list(found.uses())
    assert found.type is not None
    zero, axis = make.constant("zero", [0]), make.constant("axis", [1])
    rows = make.node("Cast", prompt, to=found.type.dtype.value)
    if turned is not None:
        last, end, back = (
            make.constant(name, [n]) for name, n in (("last", -1), ("end", -(2**62)), ("back", -1))
        )
        rows = make.node(
            "Slice", make.node("Slice", rows, zero, shown, zero), last, end, zero, back
        )
    size = make.node(
        "Concat", make.node("Shape", found, start=0, end=1), make.constant("ones", [1, 1]), axis=0
    )
    rest = make.node("Slice", found, shown, make.constant("rest", [2**62]), axis)
    joined = make.node("Concat", make.node("Expand", rows, size), rest, axis=1)
    if turned is not None:
        joined = make.node("ReverseSequence", joined, turned, batch_axis=0, time_axis=1)
    joined.shape, joined.type = found.shape, found.type
    for node, index in old:
        node.replace_input_with(index, joined)
    graph.insert_after(lookup, make.nodes)
