"""The end of a lean graph: the targets' log-probabilities, from hidden states and a vocabulary.

The graph computes them a few answers at a time, and writes and reads each piece's logits several
times over. A device that can do better takes the graph without that end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgezo_runtime import wire
from edgezo_runtime.first_order.graph import Graph, Node

_OUTPUT, _TARGETS = "logprobs", "targets"
_MOVES = ("Squeeze", "Slice", "Concat", "Pad")  # what puts pieces together, and computes nothing
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER = 1, 3


@dataclass(frozen=True)
class Vocabulary:
    r"""What the end computes: :math:`\log \mathrm{softmax}(h W^\top)` at each row's target.

    Attributes:
        body: the model without it, as the bytes of an ONNX file; it returns `hidden` besides.
        hidden: the name of h, (answers, features).
        weight: the name of W, (vocabulary, features), an input of the graph.
        targets: the name of the input that holds the targets, (answers,) int64.
        output: the name of what the end returns, (answers,) float32.
    """

    body: bytes
    hidden: str
    weight: str
    targets: str = _TARGETS
    output: str = _OUTPUT


def take_off(model: bytes) -> Vocabulary | None:
    """Returns the graph of `model` and its end apart; None where it ends in another way.

    Raises:
        ValueError: the file is damaged.
    """
    graph = Graph(model)
    if _OUTPUT not in graph.outputs or _TARGETS not in graph.inputs:
        return None
    pieces = [_piece(graph, node) for node in _last(graph)]
    end = pieces[0] if pieces else None
    if end is None or len({*pieces}) > 1:
        return None
    hidden, weight = end
    read = {name for node in graph.needed([_OUTPUT], {hidden}) for name in node.inputs}
    if read & graph.inputs != {weight, _TARGETS} or hidden not in graph.made_by:
        return None
    if hidden in graph.outputs:
        return None
    return Vocabulary(_without(model, graph, hidden), hidden, weight)


def _last(graph: Graph) -> Iterator[Node | None]:
    """Yields the nodes that compute what the output is put together from; None for an input."""
    waiting = [_OUTPUT]
    while waiting:
        node = graph.made_by.get(waiting.pop())
        if node is None or node.operator not in _MOVES:
            yield node
        else:
            waiting += node.inputs if node.operator == "Concat" else node.inputs[:1]


def _piece(graph: Graph, last: Node | None) -> tuple[str, str] | None:
    """Returns the rows and the weight of whose product `last` picks the log-softmax at targets."""

    def before(node: Node | None, operator: str, place: int = 0) -> Node | None:
        found = graph.made_by.get(node.inputs[place]) if node else None
        return found if found and found.operator == operator else None

    if last is None or last.operator != "GatherElements":
        return None
    wanted = before(before(last, "Slice", 1), "Unsqueeze")
    softmax = before(last, "LogSoftmax")
    product = before(before(softmax, "Cast") or softmax, "FusedMatMul")
    rows = before(product, "Slice")
    if not (wanted and softmax and product and rows) or wanted.inputs[0] != _TARGETS:
        return None
    column, transposed = {"axis": b"\1"}, {"transB": b"\1"}
    known = ((last, column), (softmax, column), (product, transposed))
    if any(_integers(node) != attributes for node, attributes in known):
        return None
    return rows.inputs[0], product.inputs[1]


def _integers(node: Node) -> dict[str, bytes]:
    """Returns a node's attributes by name, as far as they are integers: their bytes."""
    attributes = [p for number, _, p in wire.fields(node.payload) if number == wire.NODE_ATTRIBUTE]
    return {
        wire.text(one, _ATTRIBUTE_NAME): b"".join(
            bytes(p) for number, _, p in wire.fields(one) if number == _ATTRIBUTE_INTEGER
        )
        for one in attributes
    }


def _without(model: bytes, graph: Graph, hidden: str) -> bytes:
    """Returns the model that computes the other outputs and `hidden`, with the same inputs."""
    outputs = [name for name in graph.outputs if name != _OUTPUT]
    needed = graph.needed([*outputs, hidden])
    nodes = {node.outputs for node in needed}
    read = {name for node in needed for name in node.inputs}
    plain = any(node.nested for node in needed)  # graphs inside may read constants
    fields: list[bytes | memoryview] = []
    told = wire.delimited(wire.VALUE_NAME, hidden.encode())
    for number, raw, payload in wire.fields(wire.main_graph(model)):
        if number == wire.GRAPH_NODE:
            kept = tuple(wire.texts(payload, wire.NODE_OUTPUT)) in nodes
        elif number == wire.GRAPH_INITIALIZER:
            kept = plain or wire.text(payload, wire.TENSOR_NAME) in read
        elif number == wire.GRAPH_OUTPUT:
            kept = wire.text(payload, wire.VALUE_NAME) != _OUTPUT
        elif number == wire.GRAPH_VALUE_INFO and wire.text(payload, wire.VALUE_NAME) == hidden:
            kept, told = False, bytes(payload)
        else:
            kept = True
        fields += [raw] if kept else []
    fields.append(wire.delimited(wire.GRAPH_OUTPUT, told))
    return wire.with_main_graph(model, b"".join(fields))
