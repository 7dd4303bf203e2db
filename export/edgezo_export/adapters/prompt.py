"""Prompt tuning: embeddings of virtual tokens in front of every text.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from edgezo_export.adapters.nodes import Maker
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.errors import InputError

NAME = "prompt_embeddings"


def add_prompt(
    model: ir.Model, parameters: Sequence[Parameter], virtual_tokens: int = 10
) -> tuple[list[Parameter], dict[str, Any]]:
    """Puts `virtual_tokens` embeddings in front of the text's, in place.

    The graph goes on as if each text were longer: its positions count from the first virtual token,
    as PEFT's do. They begin as the embeddings of tokens drawn at random.

    Args:
        model: a weight-free graph of text.
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
    texts = [inputs.get(name) for name in ("input_ids", "attention_mask", "positions")]
    lookup = _lookup(inputs, parameters)
    if lookup is None or None in texts:
        raise InputError(
            "the graph has no place for a prompt: it needs input_ids, attention_mask, positions "
            "and one Gather of a table of embeddings by input_ids"
        )
    _rename_length(graph)
    table = lookup.inputs[0]
    assert table is not None and table.type is not None
    described = next(p for p in parameters if p.name == table.name)
    new = Parameter(
        NAME, (virtual_tokens, described.shape[1]), "float32", "prompt", init=f"rows:{table.name}"
    )
    prompt = ir.Value(name=NAME, shape=ir.Shape(new.shape), type=ir.TensorType(ir.DataType.FLOAT))
    _lengthen(graph, inputs, virtual_tokens)
    _replace_rows(graph, lookup, prompt, virtual_tokens)
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
                value.shape = ir.Shape(
                    [
                        n if isinstance(n, int) else str(n.value).replace("length", "prompted")
                        for n in value.shape
                    ]
                )


def _lengthen(graph: ir.Graph, inputs: dict[str, ir.Value], count: int) -> None:
    """Makes the graph read longer ids and masks, and counts the positions accordingly."""
    make = Maker(graph, "prompt.text")
    ids, mask, positions = (inputs[n] for n in ("input_ids", "attention_mask", "positions"))
    old = {value: list(value.uses()) for value in (ids, mask, positions)}
    rows = make.node("Shape", ids, start=0, end=1)
    length = make.node("Squeeze", make.node("Shape", ids, start=1, end=2))
    size = make.node("Concat", rows, make.constant("count", [count]), axis=0)
    longer_ids = make.node("Concat", make.node("Expand", make.constant("id", 0), size), ids, axis=1)
    longer_mask = make.node(
        "Concat", make.node("Expand", make.constant("seen", 1), size), mask, axis=1
    )
    # Position row * length + t becomes row * (length + count) + count + t.
    row = make.node("Div", positions, length)
    skipped = make.node(
        "Mul", make.node("Add", row, make.constant("one", 1)), make.constant("m", count)
    )
    moved = make.node("Add", positions, skipped)
    for value, new in ((ids, longer_ids), (mask, longer_mask), (positions, moved)):
        new.type = value.type
        for node, index in old[value]:
            node.replace_input_with(index, new)
    assert ids.shape is not None and positions.shape is not None
    longer_ids.shape = longer_mask.shape = ir.Shape([ids.shape[0], "prompted"])
    moved.shape = positions.shape
    graph.insert_before(graph[0], make.nodes)


def _replace_rows(graph: ir.Graph, lookup: ir.Node, prompt: ir.Value, count: int) -> None:
    """Puts the prompt in place of the first rows that `lookup` found."""
    make = Maker(graph, "prompt.rows")
    found = lookup.outputs[0]
    old = list(found.uses())
    assert found.type is not None
    cast = make.node("Cast", prompt, to=found.type.dtype.value)
    rows = make.node("Shape", found, start=0, end=1)
    ones = make.constant("ones", [1, 1])
    every = make.node("Expand", cast, make.node("Concat", rows, ones, axis=0))
    start, end, axis = (
        make.constant("start", [count]),
        make.constant("end", [2**62]),
        make.constant("axis", [1]),
    )
    rest = make.node("Slice", found, start, end, axis)
    joined = make.node("Concat", every, rest, axis=1)
    joined.shape, joined.type = found.shape, found.type
    for node, index in old:
        node.replace_input_with(index, joined)
    graph.insert_after(lookup, make.nodes)
