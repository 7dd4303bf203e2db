"""Protobuf's wire format, as far as editing an ONNX graph needs it without the `onnx` package."""

from __future__ import annotations

from collections.abc import Iterator

# Field numbers of onnx.proto.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 11, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 6, 11
VALUE_NAME = 1
TENSOR_NAME = 8

_TENSOR_EXTERNAL = 13
#: Which fields of a message hold which messages, down to the tensors.
_WITHIN = {
    "model": {MODEL_GRAPH: "graph", 25: "function"},
    "graph": {GRAPH_NODE: "node", GRAPH_INITIALIZER: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        5: "tensor",
        10: "tensor",
        22: "sparse",
        23: "sparse",
        ATTRIBUTE_GRAPH: "graph",
        ATTRIBUTE_GRAPHS: "graph",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10  # bytes: 64 bits, seven in each


def fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yields each field of a message: its number, all its bytes, and its payload's."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, end = _read_varint(message, at)
        elif wire_type == _BYTES:
            size, at = _read_varint(message, at)
            end = at + size
        elif wire_type in _FIXED_SIZES:
            end = at + _FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"byte {start} begins no field")
        if end > len(message):
            raise ValueError(f"the field at byte {start} is cut")
        yield number, message[start:end], message[at:end]
        at = end


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError(f"the number at byte {at} is cut, or too long")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """Returns a field that holds a whole number."""
    return _varint(field << 3 | _VARINT) + _varint(value)


def delimited(field: int, payload: bytes) -> bytes:
    """Returns a field that holds bytes: a text or a message."""
    return _varint(field << 3 | _BYTES) + _varint(len(payload)) + payload


def texts(message: memoryview, field: int) -> list[str]:
    """Returns the texts of a repeated field, in order."""
    return [bytes(payload).decode() for n, _, payload in fields(message) if n == field]


def text(message: memoryview, field: int) -> str:
    """Returns the text of a field that must be there; raises ValueError if it is not."""
    found = texts(message, field)
    if not found:
        raise ValueError(f"a message lacks field {field}")
    return found[-1]


def main_graph(model: bytes) -> memoryview:
    """Returns the graph of an ONNX file; raises ValueError if it holds none."""
    for number, _, payload in fields(memoryview(model)):
        if number == MODEL_GRAPH:
            return payload
    raise ValueError("it holds no graph")


def with_main_graph(model: bytes, graph: bytes) -> bytes:
    """Returns an ONNX file with `graph` in the place of its own."""
    edited = bytearray()
    for number, raw, _ in fields(memoryview(model)):
        edited += delimited(MODEL_GRAPH, graph) if number == MODEL_GRAPH else raw
    return bytes(edited)


def initializers(model: bytes) -> set[str]:
    """Returns the names of the constants of an ONNX file."""
    return _texts_of_graph(model, GRAPH_INITIALIZER, TENSOR_NAME)


def op_types(model: bytes) -> set[str]:
    """Returns the operators of an ONNX file's main graph."""
    return _texts_of_graph(model, GRAPH_NODE, NODE_OPERATOR)


def reads_files(model: bytes) -> bool:
    """Whether a tensor of an ONNX file has its data in another file; raises ValueError if damaged.

    ONNX Runtime opens no file but what the entry ``location`` of a tensor names.
    """
    waiting = [("model", memoryview(model))] if b"location" in model else []
    while waiting:
        kind, message = waiting.pop()
        for number, _, payload in fields(message):
            if kind == "tensor" and number == _TENSOR_EXTERNAL:
                return True
            inner = _WITHIN.get(kind, {}).get(number)
            waiting += [(inner, payload)] if inner else []
    return False


def _texts_of_graph(model: bytes, part: int, field: int) -> set[str]:
    """Returns the text `field` of each `part` of the main graph."""
    graphs = [payload for n, _, payload in fields(memoryview(model)) if n == MODEL_GRAPH]
    return {
        text(payload, field) for graph in graphs for n, _, payload in fields(graph) if n == part
    }
