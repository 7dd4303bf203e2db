"""Hidden states of a graph that does not return them: what its last projection reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from edgezo_runtime import wire
from edgezo_runtime.bundle import GRAPH, LEAN, Bundle, Port
from edgezo_runtime.errors import InputError

_PROJECTIONS = ("MatMul", "MatMulNBits", "Gemm")
_QUESTIONS = ("positions", "targets", "candidates")


@dataclass(frozen=True)
class Revealed:
    """A bundle whose graph returns what its last projection reads.

    Attributes:
        bundle: with one more output.
        read: its name.
        output: what the projection leads to.
        weight: the parameter that the projection multiplies with, or rows of it; None if there is
            no such one parameter.
        bias: the parameter that is added to the products; None likewise.
    """

    bundle: Bundle
    read: str
    output: str
    weight: str | None
    bias: str | None


@dataclass(frozen=True)
class _Projection:
    """What a projection reads, and all that is multiplied with it and added to it."""

    read: str
    weights: set[str]
    added: set[str]


def reveal(bundle: Bundle, output: str) -> Revealed:
    """Returns `bundle` with one more output: what the projection to `output` reads.

    Of a text graph these are the last hidden states at the answers' positions, (answers, hidden):
    positions are gathered before the projection. No file is changed.

    Args:
        bundle: its graph is edited in memory.
        output: of the graph, which a linear layer ends in.

    Raises:
        InputError: no linear layer leads to the output, or the graph is damaged.
    """
    model = bundle.read_graph()
    data = {port.name for port in bundle.manifest.inputs} - {*_QUESTIONS}
    try:
        found = _projection(model, output, data)
    except ValueError as error:
        raise InputError(f"the graph of {bundle.folder} is damaged: {error}") from error
    if found is None:
        raise InputError(
            f"the graph of {bundle.folder} has no linear layer before its output {output!r}, whose "
            "features could be taken"
        )
    manifest = bundle.manifest
    outputs = (*manifest.outputs, Port(found.read, "float32", ("answers", "hidden")))
    graphs = {**bundle.adapted, GRAPH: _with_output(model, found.read)}
    files = {name: digest for name, digest in manifest.files.items() if name != LEAN}
    revealed = dataclasses.replace(manifest, outputs=outputs, files=files)
    edited = dataclasses.replace(bundle, manifest=revealed, adapted=graphs)
    parameters = {parameter.name for parameter in manifest.parameters}
    weight, bias = _only(found.weights & parameters), _only(found.added & parameters)
    return Revealed(edited, found.read, output, weight, bias)


def _only(names: set[str]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None


def _projection(model: bytes, output: str, data: set[str]) -> _Projection | None:
    """Returns the last projection before `output`."""
    makers: dict[str, tuple[str, list[str]]] = {}
    late = set(data)  # what depends on the data
    for number, _, node in wire.fields(wire.main_graph(model)):
        if number == wire.GRAPH_NODE:
            inputs = wire.texts(node, wire.NODE_INPUT)
            made = wire.texts(node, wire.NODE_OUTPUT)
            makers |= dict.fromkeys(made, (wire.text(node, wire.NODE_OPERATOR), inputs))
            if not late.isdisjoint(inputs):
                late.update(made)
    name: str | None = output
    added: list[str] = []
    while name in makers:
        operator, inputs = makers[name]
        name = next((each for each in inputs if each in late), None)
        others = [each for each in inputs if each != name]
        if operator in _PROJECTIONS and name is not None:
            if operator == "Gemm":
                others, added = others[:1], added + others[1:]
            return _Projection(name, _ancestors(others, makers), _ancestors(added, makers))
        if operator == "Add":
            added += others
    return None


def _ancestors(names: list[str], makers: Mapping[str, tuple[str, list[str]]]) -> set[str]:
    """Returns `names` and all that they are made of."""
    found, open_ = set(names), list(names)
    while open_:
        for each in makers.get(open_.pop(), ("", []))[1]:
            if each not in found:
                found.add(each)
                open_.append(each)
    return found


def _with_output(model: bytes, name: str) -> bytes:
    output = wire.delimited(wire.VALUE_NAME, name.encode())  # ONNX Runtime infers its type
    graph = bytes(wire.main_graph(model)) + wire.delimited(wire.GRAPH_OUTPUT, output)
    return wire.with_main_graph(model, graph)
