"""A bundle of an embedding, two layers and a head, with its gradient and its tangent graph."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import parser, shape_inference
from runtime_helpers import write_bundle

from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, open_bundle

WORDS = 5000  # the embedding is larger than a block of the noise
WIDTH = 8
GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
layered (int64[rows, 3] tokens, int64[rows] targets, float[5000, 8] embed__weight,
    float[8, 8] layers__0__weight, float[8] layers__0__bias,
    float[8, 8] layers__1__weight, float[8] layers__1__bias, float[8, 3] head__weight
) => (float[rows] losses)
{
    one = Constant<value_ints=[1]>()
    words = Gather(embed__weight, tokens)
    start = ReduceMean<keepdims=0>(words, one)
    a = MatMul(start, layers__0__weight)
    b = Add(a, layers__0__bias)
    c = Tanh(b)
    middle = Add(start, c)
    d = MatMul(middle, layers__1__weight)
    e = Add(d, layers__1__bias)
    f = Tanh(e)
    end = Add(middle, f)
    logits = MatMul(end, head__weight)
    logprobs = LogSoftmax<axis=1>(logits)
    right = Unsqueeze(targets, one)
    chosen = GatherElements<axis=1>(logprobs, right)
    flat = Squeeze(chosen, one)
    losses = Neg(flat)
}
"""
SHAPES = {
    "embed.weight": (WORDS, WIDTH),
    "layers.0.weight": (WIDTH, WIDTH),
    "layers.0.bias": (WIDTH,),
    "layers.1.weight": (WIDTH, WIDTH),
    "layers.1.bias": (WIDTH,),
    "head.weight": (WIDTH, 3),
}


def write_layered(folder: Path) -> Path:
    """Writes the bundle into folders within `folder`, and returns the one that has all graphs."""
    pytest.importorskip("onnx_ir")
    from edgezo_export.gradients.bundle import add_to_bundle

    rng = np.random.default_rng(0)
    tensors = {n: (rng.normal(size=s) / 2).astype(np.float32) for n, s in SHAPES.items()}
    plain = write_bundle(folder / "plain.edgezo", tensors)
    model = parser.parse_model(GRAPH)  # whose names have no dots
    for port in model.graph.input:
        port.name = port.name.replace("__", ".")
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    graph = shape_inference.infer_shapes(model).SerializeToString()
    (plain / "graph.onnx").write_bytes(graph)
    manifest = json.loads((plain / "edgezo.json").read_text())
    manifest["inputs"] = [
        {"name": "tokens", "dtype": "int64", "shape": ["rows", 3]},
        {"name": "targets", "dtype": "int64", "shape": ["rows"]},
    ]
    manifest["outputs"] = [{"name": "losses", "dtype": "float32", "shape": ["rows"]}]
    manifest["context_length"], manifest["task"] = None, {"name": "arrays"}
    manifest["files"]["graph.onnx"] = hashlib.sha256(graph).hexdigest()
    (plain / "edgezo.json").write_text(json.dumps(manifest))
    add_to_bundle(open_bundle(plain), folder / "gradients.edgezo", GRADIENTS)
    add_to_bundle(open_bundle(folder / "gradients.edgezo"), folder / "both.edgezo", TANGENTS)
    return folder / "both.edgezo"


def rows_for_layered(rows: int, seed: int, *, words: int = WORDS) -> ArrayBatch:
    """Returns a batch of random rows; no two have a word in common unless there are few `words`."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(words, (rows, 3), replace=words < 3 * rows)
    return ArrayBatch({"tokens": tokens.astype(np.int64)}, np.arange(rows) % 3, RowLoss())
