"""Turns inputs of a graph into constants whose values lie in a file beside it.

The graph is edited as protobuf's wire format says, so that the `onnx` package is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgezo_runtime import dtypes, wire
from edgezo_runtime.safetensors_file import TensorEntry

# Field numbers of onnx.proto.
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, wire.TENSOR_NAME
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1


def with_constants(model: bytes, entries: Sequence[TensorEntry], location: str) -> bytes:
    """Returns `model` with an initializer in place of the input of each entry's name.

    Args:
        model: the bytes of an ONNX file.
        entries: names, shapes and places of the values.
        location: path of the values' file, relative to where the model's will lie.

    Raises:
        ValueError: the model is damaged, or has no such input.
    """
    names = {entry.name for entry in entries}
    initializers = b"".join(
        wire.delimited(wire.GRAPH_INITIALIZER, _tensor(entry, location)) for entry in entries
    )
    graph = _edited_graph(wire.main_graph(model), names)
    return wire.with_main_graph(model, graph + initializers)


def _edited_graph(graph: memoryview, parameters: set[str]) -> bytes:
    kept = bytearray()
    missing = set(parameters)
    for number, raw, payload in wire.fields(graph):
        if number == wire.GRAPH_INPUT:
            name = wire.text(payload, wire.VALUE_NAME)
            if name in parameters:
                missing.discard(name)
                continue
        kept += raw
    if missing:
        raise ValueError(f"it has no input {min(missing)!r}")
    return bytes(kept)


def _tensor(entry: TensorEntry, location: str) -> bytes:
    """Returns a TensorProto whose data lies where `entry` says."""
    external = {
        "location": location,
        "offset": str(entry.start),
        "length": str(entry.stop - entry.start),
    }
    return b"".join(
        (
            *(wire.number(_TENSOR_DIMS, size) for size in entry.shape),
            wire.number(_TENSOR_TYPE, dtypes.named(entry.dtype.name).onnx),
            wire.delimited(_TENSOR_NAME, entry.name.encode()),
            *(
                wire.delimited(
                    _TENSOR_EXTERNAL,
                    wire.delimited(_ENTRY_KEY, key.encode())
                    + wire.delimited(_ENTRY_VALUE, value.encode()),
                )
                for key, value in external.items()
            ),
            wire.number(_TENSOR_LOCATION, _EXTERNAL),
        )
    )
