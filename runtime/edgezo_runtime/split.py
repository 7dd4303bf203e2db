"""Cuts a graph in two where the trained weights begin.

What depends on frozen weights and tokens alone is the same for every sample of a step: it is
computed once for a batch, and each sample runs only what comes after. What takes no product with
a weight to make again (masks, rotations, norms, transposed weights) is made again there: what
crosses the cut is little, and depends on one row alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass

from edgezo_runtime import wire

# A prefix deserves a session of its own if it multiplies with frozen weights.
HEAVY = (
    *("MatMul", "FusedMatMul", "MatMulNBits", "Gemm"),
    *("Conv", "ConvTranspose", "LSTM", "GRU", "RNN"),
)
_DESCRIBED = (wire.GRAPH_VALUE_INFO, wire.GRAPH_OUTPUT)


@dataclass(frozen=True)
class Split:
    """A graph in two parts.

    Attributes:
        prefix: the model that needs only frozen weights, as the bytes of an ONNX file.
        suffix: the model of everything else; it takes the boundary as inputs.
        boundary: names of the values that the prefix hands to the suffix.
        read: names of the inputs whose content the prefix depends on, and not their sizes alone.
    """

    prefix: bytes
    suffix: bytes
    boundary: tuple[str, ...]
    read: frozenset[str]


@dataclass(frozen=True)
class _Node:
    raw: memoryview
    inputs: list[str]
    outputs: list[str]
    operator: str


def split(model: bytes, changing: Set[str], frozen: Set[str]) -> Split | None:
    """Cuts `model` into what depends on `changing` inputs and what comes before.

    Args:
        model: the bytes of an ONNX file.
        changing: the inputs that differ between the samples of a step, or come late: the trained
            weights, and what is asked of the outputs.
        frozen: the weights that stay as they are.

    Returns:
        The two parts, or None if there is nothing before that is worth keeping, or the graph does
        not say what type the values between have.

    Raises:
        ValueError: the file is damaged.
    """
    fields = list(wire.fields(wire.main_graph(model)))
    nodes = [_node(payload, raw) for n, raw, payload in fields if n == wire.GRAPH_NODE]
    changed = set(changing)
    early: list[_Node] = []
    late: list[_Node] = []
    for node in nodes:
        if changed.isdisjoint(node.inputs):
            early.append(node)
        else:
            late.append(node)
            changed.update(node.outputs)
    made = {name: node for node in early for name in node.outputs if name}
    heavy = {id(node) for node in early if node.operator in HEAVY and _weighs(node, made, frozen)}
    crossing = {name for node in late for name in node.inputs}
    # Backwards: what a later value was made again from may itself be made again.
    boundary = [name for name in reversed(made) if name in crossing]
    for name in list(boundary):
        others = [other for other in boundary if other != name]
        if heavy.isdisjoint(map(id, _needed([name], made, others))):
            boundary = others
    named = {wire.text(p, wire.VALUE_NAME): (n, p) for n, _, p in fields if n in _DESCRIBED}
    outputs = {name for name, (n, _) in named.items() if n == wire.GRAPH_OUTPUT}
    if not boundary or outputs & made.keys() or not all(name in named for name in boundary):
        return None
    boundary.sort()
    before = set(map(id, _needed(boundary, made, ())))
    after = set(map(id, [*late, *_needed(crossing, made, boundary)]))
    prefix = [node for node in nodes if id(node) in before]
    suffix = [node for node in nodes if id(node) in after]
    inputs = {
        wire.text(payload, wire.VALUE_NAME): raw
        for n, raw, payload in fields
        if n == wire.GRAPH_INPUT
    }
    needed = {name for node in prefix for name in node.inputs}
    taken = {name for node in suffix for name in node.inputs}
    read = {name for node in prefix if node.operator != "Shape" for name in node.inputs}
    between = [bytes(named[name][1]) for name in boundary]
    own = (*_DESCRIBED, wire.GRAPH_NODE, wire.GRAPH_INPUT, wire.GRAPH_INITIALIZER)
    shared = [raw for n, raw, _ in fields if n not in own]  # the graph's name
    constants = {
        wire.text(payload, wire.TENSOR_NAME): raw
        for n, raw, payload in fields
        if n == wire.GRAPH_INITIALIZER
    }
    first = [node.raw for node in prefix] + shared
    first += [raw for name, raw in constants.items() if name in needed]
    first += [raw for name, raw in inputs.items() if name in needed]
    first += [wire.delimited(wire.GRAPH_OUTPUT, value) for value in between]
    second = [node.raw for node in suffix] + shared
    second += [raw for name, raw in constants.items() if name in taken]
    second += [raw for n, raw, _ in fields if n == wire.GRAPH_OUTPUT]
    second += [raw for name, raw in inputs.items() if name in taken or name not in needed]
    second += [wire.delimited(wire.GRAPH_INPUT, value) for value in between]
    whole = (
        wire.with_main_graph(model, b"".join(first)),
        wire.with_main_graph(model, b"".join(second)),
    )
    return Split(*whole, tuple(boundary), frozenset(read & inputs.keys()))


def _needed(names: Iterable[str], made: Mapping[str, _Node], given: Collection[str]) -> list[_Node]:
    """Returns the nodes that make the values `names` of those `given` and the graph's inputs."""
    chosen: dict[int, _Node] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        node = None if name in given else made.get(name)
        if node is not None and id(node) not in chosen:
            chosen[id(node)] = node
            waiting += node.inputs
    return list(chosen.values())


def _weighs(node: _Node, made: Mapping[str, _Node], frozen: Set[str]) -> bool:
    """Whether `node` multiplies with a frozen weight, as it is or transposed."""
    sources = [made[name] for name in node.inputs if name in made]
    names = {*node.inputs, *(name for source in sources for name in source.inputs)}
    return not frozen.isdisjoint(names)


def _node(payload: memoryview, raw: memoryview) -> _Node:
    return _Node(
        raw,
        present(wire.texts(payload, wire.NODE_INPUT) + _captured(payload)),
        present(wire.texts(payload, wire.NODE_OUTPUT)),
        wire.text(payload, wire.NODE_OPERATOR),
    )


def present(values: Iterable[str]) -> list[str]:
    """Returns `values` without those that a node leaves out, which are all called nothing."""
    return [name for name in values if name]


def _captured(node: memoryview) -> list[str]:
    """Returns what the subgraphs of `node` may read of the graph around them: all they name."""
    names: list[str] = []
    for attribute in _payloads(node, wire.NODE_ATTRIBUTE):
        for graph in _payloads(attribute, wire.ATTRIBUTE_GRAPH, wire.ATTRIBUTE_GRAPHS):
            for inner in _payloads(graph, wire.GRAPH_NODE):
                names += wire.texts(inner, wire.NODE_INPUT) + _captured(inner)
    return names


def _payloads(message: memoryview, *numbers: int) -> list[memoryview]:
    return [payload for number, _, payload in wire.fields(message) if number in numbers]
