"""Joins the encoder and the decoder that optimum writes into two files."""

from __future__ import annotations

import onnx_ir as ir

from edgezo_runtime.errors import InputError

ENCODER_FILE, DECODER_FILE = "encoder_model.onnx", "decoder_model.onnx"
_ENCODER = "encoder"  # what the names of its parameters begin with in the checkpoint


def joined(encoder: ir.Model, decoder: ir.Model) -> ir.Model:
    """Returns one graph of both: input_ids, attention_mask and decoder_input_ids to logits.

    What the encoder's graph calls its tensors and nodes is put behind the encoder's name, as in the
    checkpoint. A tensor that both graphs hold is one afterwards, by the decoder's value.

    Args:
        encoder: takes `input_ids, attention_mask` and returns `last_hidden_state`.
        decoder: takes `input_ids, encoder_attention_mask, encoder_hidden_states` and returns
            `logits`; it is changed.

    Raises:
        InputError: one of them takes or returns something else.
    """
    reads = _named(encoder.graph.inputs, "input_ids", "attention_mask")
    states = _named(encoder.graph.outputs, "last_hidden_state")
    takes = _named(
        decoder.graph.inputs, "input_ids", "encoder_attention_mask", "encoder_hidden_states"
    )
    _put_behind_name(encoder.graph)
    graph = decoder.graph
    for value, ours in zip(takes[1:], (reads[1], states[0]), strict=True):
        value.replace_all_uses_with(ours)
    for name, value in list(encoder.graph.initializers.items()):
        del encoder.graph.initializers[name]
        if name in graph.initializers:
            value.replace_all_uses_with(graph.initializers[name])
        else:
            graph.register_initializer(value)
    encoder.graph.inputs.clear()
    encoder.graph.outputs.clear()
    nodes = list(encoder.graph)
    encoder.graph.remove(nodes)
    graph.insert_before(graph.node(0), nodes)
    takes[0].name = "decoder_input_ids"
    graph.inputs[:] = [*reads, takes[0]]
    return decoder


def _named(values: list[ir.Value], *names: str) -> list[ir.Value]:
    found = {str(value.name): value for value in values}
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"the graphs of encoder and decoder do not fit together, for want of {missing[0]!r}: "
            "export them with optimum's task text2text-generation"
        )
    return [found[name] for name in names]


def _put_behind_name(graph: ir.Graph) -> None:
    values = [value for node in graph for value in node.outputs]
    for value in (*graph.initializers.values(), *values):
        value.name = f"{_ENCODER}.{value.name}"
    for node in graph:
        node.name = f"/{_ENCODER}/{str(node.name).strip('/')}"
