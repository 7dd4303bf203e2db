"""A bundle's graph with its weights as constants: what plain inference would load.

A bundle's parameters are graph inputs. Plain inference has them as initializers instead, whose
values lie in `model.safetensors` as external data. The graph's file is edited as protobuf's wire
format says, so that the `onnx` package is not needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgezo_runtime import dtypes, wire
from edgezo_runtime.bundle import WEIGHTS, Bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.safetensors_file import TensorEntry, read_header

# Field numbers of onnx.proto.
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1

NAME = "constants.onnx"


@contextlib.contextmanager
def constants_model(bundle: Bundle) -> Iterator[Path]:
    """Makes a model of `bundle` with its weights as constants, in a folder that does not last.

    ONNX Runtime opens external data only in the model's own folder, and no symbolic link that leads
    out of it: the weights are hard-linked there, or copied where that cannot be.

    Raises:
        InputError: the graph or the weights are damaged.
    """
    graph = constants_graph(bundle)
    with contextlib.ExitStack() as stack:
        folder = _folder_with(bundle.weights, stack)
        model = folder / NAME
        model.write_bytes(graph)
        yield model


def constants_graph(bundle: Bundle, location: str = WEIGHTS) -> bytes:
    """Returns the graph's file with an initializer in place of each parameter.

    Args:
        bundle: whose graph and weights.
        location: path of the weights, relative to where the graph's file will lie.

    Raises:
        InputError: the graph or the weights are damaged, or lack a parameter.
    """
    entries = read_header(bundle.weights)
    names = [parameter.name for parameter in bundle.manifest.parameters]
    for name in names:
        if name not in entries:
            raise InputError(f"{bundle.weights} has no tensor {name!r}")
    initializers = b"".join(
        wire.delimited(wire.GRAPH_INITIALIZER, _tensor(entries[name], location)) for name in names
    )
    try:
        return _edited_model(bundle.graph.read_bytes(), set(names), initializers)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{bundle.graph} is not an ONNX graph: {error}") from error


def _folder_with(weights: Path, stack: contextlib.ExitStack) -> Path:
    """Returns a temporary folder that holds `weights`, linked if one can be."""
    weights = weights.resolve()
    for parent in (None, weights.parent.parent):
        try:
            with contextlib.ExitStack() as attempt:
                temporary = tempfile.TemporaryDirectory(prefix="edgezo-bench-", dir=parent)
                folder = Path(attempt.enter_context(temporary))
                os.link(weights, folder / WEIGHTS)
                stack.push(attempt.pop_all())
                return folder
        except OSError:  # another file system, one without hard links, or a read-only folder
            continue
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgezo-bench-")))
    shutil.copyfile(weights, folder / WEIGHTS)
    return folder


def _edited_model(model: bytes, parameters: set[str], initializers: bytes) -> bytes:
    edited = bytearray()
    found = False
    for number, raw, payload in wire.fields(memoryview(model)):
        if number == wire.MODEL_GRAPH:
            found = True
            edited += wire.delimited(
                wire.MODEL_GRAPH, _edited_graph(payload, parameters) + initializers
            )
        else:
            edited += raw
    if not found:
        raise ValueError("it holds no graph")
    return bytes(edited)


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
