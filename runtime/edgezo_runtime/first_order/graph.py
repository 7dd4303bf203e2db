"""A gradient graph taken apart, and pieces of it put together as models of their own.

It is read and written as protobuf's wire format says, so that the `onnx` package is not needed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from edgezo_runtime import wire

#: Where the graph's metadata keeps the names of the values at which it can be cut, as JSON.
CUTS_KEY = "edgezo.cuts"
#: Where it keeps the fraction of the rows that gradients are estimated from, if that is not 1.
COLUMN_ROW_KEY = "edgezo.column_row"

_MODEL_METADATA, _ENTRY_KEY, _ENTRY_VALUE = 14, 1, 2
_NODE_NAME, _NODE_METADATA, _NODE_DOC = 3, 9, 6
_UNTOLD = (_NODE_NAME, _NODE_METADATA, _NODE_DOC)  # what two equal nodes may differ in
_VALUE_TYPE = 2
_UNIFORM = ".uniform"


def cotangent_of(name: str) -> str:
    """Returns the name of the derivative of the loss by the output or cut value `name`."""
    return f"{name}.cotangent"


def gradient_of(name: str) -> str:
    """Returns the name of the derivative of the loss by the weight `name`."""
    return f"{name}.gradient"


def tangent_of(name: str) -> str:
    """Returns the name of the derivative of the weight or value `name` along a direction."""
    return f"{name}.tangent"


def uniform_of(name: str) -> str:
    """Returns the name of the numbers by which rows of the product `name` are chosen."""
    return name + _UNIFORM


@dataclass(frozen=True)
class Node:
    """One node: its bytes, what it reads and makes, and whether it holds graphs of its own."""

    payload: memoryview
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operator: str
    nested: bool


@dataclass(frozen=True)
class Piece:
    """A part of a graph as a model of its own.

    Attributes:
        model: the bytes of an ONNX file. Its values are numbered, so that parts that compute the
            same have the same bytes, whatever their values are called.
        inputs: the graph's name of each input of the model, and the model's own.
        outputs: likewise.
    """

    model: bytes
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


class Graph:
    """A graph's parts by name.

    Args:
        model: the bytes of an ONNX file.

    Raises:
        ValueError: the file is damaged.

    Attributes:
        nodes: in topological order.
        inputs: names of the graph's inputs.
        outputs: names of its outputs.
        described: names of the values whose type the graph says.
        cuts: the values at which it can be cut, in the order of the forward pass.
        uniforms: names of the inputs that hold numbers by which rows are chosen, in their order.
        column_row: the fraction of the rows that gradients are estimated from.
    """

    def __init__(self, model: bytes) -> None:
        self._head: list[memoryview] = []
        metadata: dict[str, str] = {}
        graph = memoryview(b"")
        for number, raw, payload in wire.fields(memoryview(model)):
            if number == wire.MODEL_GRAPH:
                graph = payload
            elif number == _MODEL_METADATA:
                key = wire.text(payload, _ENTRY_KEY)
                metadata[key] = wire.text(payload, _ENTRY_VALUE)
            else:
                self._head.append(raw)
        self.nodes: list[Node] = []
        self._types: dict[str, memoryview] = {}
        self._constants: dict[str, memoryview] = {}
        ports: dict[int, list[str]] = {wire.GRAPH_INPUT: [], wire.GRAPH_OUTPUT: []}
        for number, _, payload in wire.fields(graph):
            if number == wire.GRAPH_NODE:
                self.nodes.append(_node(payload))
            elif number == wire.GRAPH_INITIALIZER:
                self._constants[wire.text(payload, wire.TENSOR_NAME)] = payload
            elif number in (*ports, wire.GRAPH_VALUE_INFO):
                name = wire.text(payload, wire.VALUE_NAME)
                ports.get(number, []).append(name)
                for field, raw, _ in wire.fields(payload):
                    if field == _VALUE_TYPE:
                        self._types[name] = raw
        self.inputs = frozenset(ports[wire.GRAPH_INPUT])
        self.outputs = tuple(ports[wire.GRAPH_OUTPUT])
        self.described = self._types.keys()
        self.cuts: tuple[str, ...] = tuple(json.loads(metadata.get(CUTS_KEY, "[]")))
        self.column_row = float(metadata.get(COLUMN_ROW_KEY, "1"))
        fed = ports[wire.GRAPH_INPUT] if COLUMN_ROW_KEY in metadata else []
        self.uniforms = tuple(name for name in fed if name.endswith(_UNIFORM))
        self.made_by = _makers(self.nodes)

    def needed(self, outputs: Iterable[str], given: Collection[str] = ()) -> list[Node]:
        """Returns the nodes that compute `outputs`, in order, from what is `given` and inputs."""
        chosen: set[int] = set()
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            node = None if name in given else self.made_by.get(name)
            if node is not None and id(node) not in chosen:
                chosen.add(id(node))
                waiting += node.inputs
        return [node for node in self.nodes if id(node) in chosen]

    def without(self, zero: Iterable[str]) -> Graph:
        """Returns the graph without the tangents `zero`, and without what is zero with them.

        In a graph of tangents a node whose input is zero makes zeros, but for a sum of two.
        """
        gone, same = set(zero), dict[str, str]()
        nodes: list[Node] = []
        for node in self.nodes:
            inputs = tuple(same.get(name, name) for name in node.inputs)
            left = [name for name in inputs if name not in gone]
            if len(left) == len(inputs):
                nodes.append(replace(node, inputs=inputs))
            elif node.operator == "Add" and left:
                same[node.outputs[0]] = left[0]
            else:
                gone.update(node.outputs)
        smaller = copy.copy(self)
        smaller.nodes = nodes
        smaller.made_by = _makers(nodes)
        return smaller

    def piece(self, outputs: Sequence[str], given: Collection[str]) -> Piece:
        """Returns the model that computes `outputs` from what is `given` and the graph's inputs."""
        nodes = self.needed(outputs, given)
        plain = any(node.nested for node in nodes)  # graphs inside call values by their names
        names: dict[str, str] = {"": ""}
        made = {name for node in nodes for name in node.outputs}
        inputs: list[str] = []
        constants: list[str] = []
        for node in nodes:
            for name in (*node.inputs, *node.outputs):
                if name in names:
                    continue
                names[name] = name if plain else f"v{len(names)}"
                if name in self._constants:
                    constants.append(name)
                elif name not in made and (name in given or name in self.inputs):
                    inputs.append(name)
        graph = [wire.delimited(wire.GRAPH_NODE, _renamed(node, names)) for node in nodes]
        graph.append(wire.delimited(2, b"piece"))
        graph += [
            wire.delimited(wire.GRAPH_INITIALIZER, _retitled(self._constants[name], names[name]))
            for name in constants
        ]
        ports = ((wire.GRAPH_INPUT, inputs), (wire.GRAPH_OUTPUT, outputs))
        for number, ported in ports:
            for name in ported:
                value = wire.delimited(wire.VALUE_NAME, names[name].encode())
                graph.append(wire.delimited(number, value + bytes(self._types.get(name, b""))))
        model = b"".join([*self._head, wire.delimited(wire.MODEL_GRAPH, b"".join(graph))])
        return Piece(
            model,
            tuple((name, names[name]) for name in inputs),
            tuple((name, names[name]) for name in outputs),
        )


def _makers(nodes: Iterable[Node]) -> dict[str, Node]:
    """Returns the node of each value; what a node leaves out is called nothing and is no value."""
    return {name: node for node in nodes for name in node.outputs if name}


def _node(payload: memoryview) -> Node:
    inputs = wire.texts(payload, wire.NODE_INPUT)
    captured = _captured(payload)
    return Node(
        payload,
        (*inputs, *captured),
        tuple(wire.texts(payload, wire.NODE_OUTPUT)),
        wire.text(payload, wire.NODE_OPERATOR),
        bool(captured),
    )


def _captured(node: memoryview) -> list[str]:
    """Returns what the graphs inside `node` may read of the graph around them: all they name."""
    names: list[str] = []
    for number, _, attribute in wire.fields(node):
        if number != wire.NODE_ATTRIBUTE:
            continue
        for kind, _, graph in wire.fields(attribute):
            if kind not in (wire.ATTRIBUTE_GRAPH, wire.ATTRIBUTE_GRAPHS):
                continue
            for field, _, inner in wire.fields(graph):
                if field == wire.GRAPH_NODE:
                    names += wire.texts(inner, wire.NODE_INPUT) + _captured(inner)
    return names


def _renamed(node: Node, names: dict[str, str]) -> bytes:
    """Returns the bytes of `node` with its values called as `names` says."""
    edited = bytearray()
    inputs, outputs = iter(node.inputs), iter(node.outputs)
    for number, raw, _ in wire.fields(node.payload):
        if number in (wire.NODE_INPUT, wire.NODE_OUTPUT):
            name = next(inputs if number == wire.NODE_INPUT else outputs)
            edited += wire.delimited(number, names[name].encode())
        elif number not in _UNTOLD:
            edited += raw
    return bytes(edited)


def _retitled(tensor: memoryview, name: str) -> bytes:
    """Returns the bytes of a constant under another name."""
    kept = b"".join(raw for number, raw, _ in wire.fields(tensor) if number != wire.TENSOR_NAME)
    return kept + wire.delimited(wire.TENSOR_NAME, name.encode())
