"""A bundle of arrays: two layers and the cross-entropy of three classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser, shape_inference
from runtime_helpers import write_array_bundle

from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.model import Model

GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
classifier (float[rows, 8] x, int64[rows] targets, float[8, 16] first, float[16] bias,
    float[16, 3] second) => (float[rows] losses)
{
    before = MatMul(x, first)
    hidden = Add(before, bias)
    active = Relu(hidden)
    logits = MatMul(active, second)
    losses = SoftmaxCrossEntropyLoss<reduction="none">(logits, targets)
}
"""


def write_classifier(folder: Path) -> Path:
    """Writes the bundle into `folder`, which it returns."""
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.normal(size=shape) / 2).astype(np.float32)
        for name, shape in (("first", (8, 16)), ("bias", (16,)), ("second", (16, 3)))
    }
    graph = shape_inference.infer_shapes(parser.parse_model(GRAPH)).SerializeToString()
    inputs = {"x": ("float32", ("rows", 8)), "targets": ("int64", ("rows",))}
    return write_array_bundle(folder, tensors, graph, inputs)


def rows_for_classifier(rows: int, seed: int) -> ArrayBatch:
    """Returns a batch of random rows."""
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.normal(size=(rows, 8)).astype(np.float32)}
    return ArrayBatch(inputs, np.arange(rows) % 3, RowLoss())


def check_recorded_runs(model: Model, oracle: Model) -> None:
    """Checks losses while shapes come back, and rows and weights change between.

    A shape is recorded when it comes for the second time and repeated from then on.
    """
    for turn in range(5):
        for rows in (5, 2, 7):
            batch = rows_for_classifier(rows, turn)
            assert model.loss(batch) == pytest.approx(oracle.loss(batch), abs=1e-5)
            for one in (model, oracle):
                view = one.arena.views["bias"]
                view += np.float32(0.25)
                assert one.loss(batch) == one.loss(batch)
            assert model.loss(batch) == pytest.approx(oracle.loss(batch), abs=1e-5)
