"""Edits a generation graph so that it reads options: several for a prompt, any answers of each."""

from __future__ import annotations

from dataclasses import dataclass

from edgezo_runtime import wire

LOGITS = "logits"
#: Which prompt each option goes on from, (batch,) int64.
ROWS = "rows"
#: Where answers are predicted, as ``option * new + t``, (answers,) int64.
POSITIONS = "positions"
#: What the names of the prompts' keys and values begin with.
PROMPTS = "prompt."
_PAST = "past_key_values."
_INPUT_IDS = "input_ids"
# Field numbers of onnx.proto.
_VALUE_TYPE, _TENSOR_TYPE, _ELEMENT_TYPE, _SHAPE, _DIM, _SYMBOL = 2, 1, 1, 2, 1, 2
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TYPE = 1, 3, 20
_INT, _INT64 = 2, 7


@dataclass(frozen=True)
class _Node:
    raw: memoryview | bytes
    operator: str
    inputs: list[str]
    outputs: list[str]
    axis: int


def option_graph(model: bytes) -> bytes:
    """Returns the generation graph `model`, edited.

    The past of row i is that of prompt ``rows[i]``, taken inside the graph, so that nothing is
    copied outside; logits (answers, vocabulary) are those at `positions`; no cache comes back.

    Raises:
        ValueError: it is damaged, or takes the last token's hidden states in an unknown way.
    """
    fields = list(wire.fields(wire.main_graph(model)))
    nodes = [_node(raw, payload) for n, raw, payload in fields if n == wire.GRAPH_NODE]
    last = _last_tokens(nodes)
    hidden, answers = last.inputs[0], last.outputs[0]
    flat = f"{hidden}.flat"
    chosen = [
        _made("Flatten", [hidden], flat, axis=2),
        _made("Gather", [flat, POSITIONS], answers),
    ]
    stale = _after(nodes, {answers})  # their shapes are others now
    past, inputs, others = [], [], []
    for number, raw, payload in fields:
        if number == wire.GRAPH_INPUT:
            name = wire.text(payload, wire.VALUE_NAME)
            if name.startswith(_PAST):
                inputs.append(_input(PROMPTS + name, _element(payload), _dims(payload, "prompts")))
                past.append(_made("Gather", [PROMPTS + name, ROWS], name))
            else:
                inputs.append(raw)
            if name == _INPUT_IDS:
                batch = _dims(payload)[:1]
                inputs.append(_input(ROWS, _INT64, batch))
        elif number == wire.GRAPH_VALUE_INFO:
            if wire.text(payload, wire.VALUE_NAME) not in stale:
                others.append(raw)
        elif number not in (wire.GRAPH_NODE, wire.GRAPH_OUTPUT):
            others.append(raw)
    inputs.append(_input(POSITIONS, _INT64, [_symbol("answers")]))
    kept = [part for node in nodes for part in (chosen if node is last else [node.raw])]
    output = wire.delimited(wire.GRAPH_OUTPUT, wire.delimited(wire.VALUE_NAME, LOGITS.encode()))
    return wire.with_main_graph(model, b"".join((*past, *kept, *others, *inputs, output)))


def _last_tokens(nodes: list[_Node]) -> _Node:
    """Returns the node that takes the last of the hidden states (batch, new, hidden)."""
    late = _after(nodes, {_INPUT_IDS})
    makers = {name: node for node in nodes for name in node.outputs}
    name: str | None = LOGITS
    while name in makers:
        node = makers[name]
        if node.operator == "Gather" and node.axis == 1 and node.inputs[1] not in late:
            return node
        name = next((each for each in node.inputs if each in late), None)
    raise ValueError("it has no node that takes the last token's hidden states")


def _after(nodes: list[_Node], names: set[str]) -> set[str]:
    """Returns the names of all that depends on `names`, and these."""
    found = set(names)
    for node in nodes:
        if not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def _node(raw: memoryview, payload: memoryview) -> _Node:
    axis = 0
    for number, _, attribute in wire.fields(payload):
        if number == wire.NODE_ATTRIBUTE and wire.texts(attribute, _ATTRIBUTE_NAME) == ["axis"]:
            axis = next(value[0] for n, _, value in wire.fields(attribute) if n == _ATTRIBUTE_INT)
    return _Node(
        raw,
        wire.text(payload, wire.NODE_OPERATOR),
        wire.texts(payload, wire.NODE_INPUT),
        wire.texts(payload, wire.NODE_OUTPUT),
        axis,
    )


def _made(operator: str, inputs: list[str], output: str, axis: int = 0) -> bytes:
    node = b"".join(wire.delimited(wire.NODE_INPUT, name.encode()) for name in inputs)
    node += wire.delimited(wire.NODE_OUTPUT, output.encode())
    node += wire.delimited(wire.NODE_OPERATOR, operator.encode())
    attribute = wire.delimited(_ATTRIBUTE_NAME, b"axis") + wire.number(_ATTRIBUTE_INT, axis)
    attribute += wire.number(_ATTRIBUTE_TYPE, _INT)
    node += wire.delimited(wire.NODE_ATTRIBUTE, attribute)
    return wire.delimited(wire.GRAPH_NODE, node)


def _input(name: str, element: int, dims: list[bytes]) -> bytes:
    shape = b"".join(wire.delimited(_DIM, dim) for dim in dims)
    tensor = wire.number(_ELEMENT_TYPE, element) + wire.delimited(_SHAPE, shape)
    kind = wire.delimited(_VALUE_TYPE, wire.delimited(_TENSOR_TYPE, tensor))
    value = wire.delimited(wire.VALUE_NAME, name.encode()) + kind
    return wire.delimited(wire.GRAPH_INPUT, value)


def _tensor(value: memoryview) -> memoryview:
    (kind,) = (p for n, _, p in wire.fields(value) if n == _VALUE_TYPE)
    (tensor,) = (p for n, _, p in wire.fields(kind) if n == _TENSOR_TYPE)
    return tensor


def _element(value: memoryview) -> int:
    return next(p[0] for n, _, p in wire.fields(_tensor(value)) if n == _ELEMENT_TYPE)


def _dims(value: memoryview, first: str | None = None) -> list[bytes]:
    """Returns the sizes of a value, the first one by another name if one is given."""
    (shape,) = (p for n, _, p in wire.fields(_tensor(value)) if n == _SHAPE)
    dims = [bytes(p) for n, _, p in wire.fields(shape) if n == _DIM]
    return dims if first is None else [_symbol(first), *dims[1:]]


def _symbol(name: str) -> bytes:
    return wire.delimited(_SYMBOL, name.encode())
