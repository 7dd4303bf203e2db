"""What a graph computes inside, on a few tokens, without the adapter in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgezo_runtime import dtypes, wire
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.ort import onnxruntime

#: Ends the name of the value in the graph that a parameter begins as.
SOURCE = ".source"


def activations(
    bundle: Bundle, weights: Mapping[str, np.ndarray], tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns, for each of the prefix's tensors, the keys or values of `tokens` in its place.

    Args:
        bundle: one with a prefix, which is left out: its tensors are given no length.
        weights: the frozen ones by name.
        tokens: (length,) int64.
    """
    prefix = [p for p in bundle.manifest.parameters if p.init]
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    graph = _with_outputs(bundle.read_graph(), [p.name + SOURCE for p in prefix])
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    one = np.zeros(1, np.int64)
    feeds = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        **dict.fromkeys(("positions", "targets", "candidates"), one),
    }
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kinds[name])
        for kinds in [{p.name: dtypes.named(p.dtype).onnx for p in bundle.manifest.stored}]
        for name, array in weights.items()
    }
    values |= {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for parameter in prefix:
        _, heads, _, size = parameter.shape
        empty = np.zeros((1, heads, 0, size), np.float32)
        values[parameter.name] = ort.OrtValue.ortvalue_from_numpy(empty)
    names = [p.name for p in prefix]
    found = session.run_with_ort_values([name + SOURCE for name in names], values)
    return {
        name: np.ascontiguousarray(value.numpy()) for name, value in zip(names, found, strict=True)
    }


def _with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """Returns `model` with the values `names` as its outputs."""
    kept = bytearray()
    for field, whole, payload in wire.fields(wire.main_graph(model)):
        described = field == wire.GRAPH_VALUE_INFO
        if described and wire.text(payload, wire.VALUE_NAME) in names:
            kept += wire.delimited(wire.GRAPH_OUTPUT, bytes(payload))
        elif field != wire.GRAPH_OUTPUT:
            kept += whole
    return wire.with_main_graph(model, bytes(kept))
