"""The end of a lean graph: the targets' log-probabilities, from hidden states and a vocabulary.

The graph computes them a few answers at a time, and writes and reads each piece's logits several
times over. A device that can do better takes the graph without that end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from edgezo_runtime import wire
from edgezo_runtime.first_order.graph import Graph, Node

_OUTPUT, _TARGETS = "logprobs", "targets"
_PRODUCT, _SOFTMAX, _WIDENED = "FusedMatMul", "LogSoftmax", "Cast"
#: What the end consists of, as the exporter writes it.
_OPERATORS = {
    *(_PRODUCT, _SOFTMAX, _WIDENED, "GatherElements", "Slice", "Pad", "Concat", "Squeeze"),
    *("Unsqueeze", "Shape", "Add", "Sub", "Mul", "Div", "Min", "Max", "Reshape", "Split"),
}
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER = 1, 3
#: The one attribute that the product has.
_TRANSPOSED = {_ATTRIBUTE_NAME: b"transB", _ATTRIBUTE_INTEGER: b"\1"}


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
    ends = {*_ends(graph)}
    end = ends.pop() if len(ends) == 1 else None
    if end is None:
        return None
    hidden, weight = end
    last = graph.needed([_OUTPUT], {hidden})
    operators = Counter(node.operator for node in last)
    read = {name for node in last for name in node.inputs} & graph.inputs
    if operators.keys() - _OPERATORS or operators[_PRODUCT] != operators[_SOFTMAX]:
        return None
    if read != {weight, _TARGETS} or hidden not in graph.made_by or hidden in graph.outputs:
        return None
    return Vocabulary(_without(model, graph, hidden), hidden, weight)


def _ends(graph: Graph) -> Iterator[tuple[str, str] | None]:
    """Yields, for each LogSoftmax, the rows and the weight whose product it is of."""
    for node in graph.nodes:
        if node.operator != _SOFTMAX:
            continue
        product = graph.made_by.get(node.inputs[0])
        if product is not None and product.operator == _WIDENED:
            product = graph.made_by.get(product.inputs[0])
        if product is None or product.operator != _PRODUCT or not _transposed(product):
            yield None
            continue
        piece = graph.made_by.get(product.inputs[0])
        yield (piece.inputs[0], product.inputs[1]) if piece and piece.operator == "Slice" else None


def _transposed(product: Node) -> bool:
    """Whether a product is that of rows and a transposed matrix, and nothing else."""
    attributes = [p for n, _, p in wire.fields(product.payload) if n == wire.NODE_ATTRIBUTE]
    found = [
        (n, bytes(payload))
        for one in attributes
        for n, _, payload in wire.fields(one)
        if n in (_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER)
    ]
    return len(attributes) == 1 and dict(found) == _TRANSPOSED


def _without(model: bytes, graph: Graph, hidden: str) -> bytes:
    """Returns the model that computes the other outputs and `hidden`, with the same inputs."""
    outputs = [name for name in graph.outputs if name != _OUTPUT]
    needed = graph.needed([*outputs, hidden])
    nodes = {node.outputs: node for node in needed}
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
