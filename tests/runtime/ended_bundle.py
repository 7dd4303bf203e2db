"""A bundle of arrays that ends as lean graphs of language models do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser, shape_inference
from runtime_helpers import write_array_bundle

from edgezo_runtime.arena import Term
from edgezo_runtime.batch import ArrayBatch, TokenLoss
from edgezo_runtime.devices import cuda
from edgezo_runtime.devices.cuda_vocabulary import VocabularyPart
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction

WORDS, WIDTH = 301, 24
#: Of the vocabulary's product, in two pieces of any size.
GRAPH = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
ended (int64[rows] x, int64[rows] targets, TYPE[301, 24] table, TYPE[24, 24] layer)
    => (float[rows] logprobs)
{
    zero = Constant<value_ints=[0]>()
    one = Constant<value_ints=[1]>()
    two = Constant<value_ints=[2]>()
    all = Constant<value_ints=[1000000]>()
    none = Constant<value_ints=[0, 0]>()
    read = Gather(table, x)
    product = MatMul(read, layer)
    active = Relu(product)
    hidden = Add(read, active)
    column = Unsqueeze(targets, one)
    rows0 = Slice(hidden, zero, two, zero)
    wanted0 = Slice(column, zero, two, zero)
    scores0 = com.microsoft.FusedMatMul<transB=1>(rows0, table)
    wide0 = Cast<to=1>(scores0)
    every0 = LogSoftmax<axis=1>(wide0)
    found0 = GatherElements<axis=1>(every0, wanted0)
    padded0 = Pad(found0, none, , zero)
    rows1 = Slice(hidden, two, all, zero)
    wanted1 = Slice(column, two, all, zero)
    scores1 = com.microsoft.FusedMatMul<transB=1>(rows1, table)
    wide1 = Cast<to=1>(scores1)
    every1 = LogSoftmax<axis=1>(wide1)
    found1 = GatherElements<axis=1>(every1, wanted1)
    padded1 = Pad(found1, none, , zero)
    both = Concat<axis=0>(padded0, padded1)
    answers = Slice(both, zero, all, zero)
    logprobs = Squeeze(answers, one)
}
"""


def write_ended(folder: Path, dtype: str) -> Path:
    """Writes the bundle into `folder`, which it returns."""
    rng = np.random.default_rng(0)
    shapes = {"table": (WORDS, WIDTH), "layer": (WIDTH, WIDTH)}
    tensors = {n: (rng.normal(size=s) / WIDTH**0.5).astype(dtype) for n, s in shapes.items()}
    text = GRAPH.replace("TYPE", {"float32": "float", "float16": "float16"}[dtype])
    graph = shape_inference.infer_shapes(parser.parse_model(text)).SerializeToString()
    inputs = {name: ("int64", ("rows",)) for name in ("x", "targets")}
    return write_array_bundle(folder, tensors, graph, inputs, "logprobs")


def check_ended(monkeypatch: pytest.MonkeyPatch, bundle: Path, near: float) -> None:
    """Checks that a graph without its end does what it does with it, while weights change."""
    models = [load(bundle, device="cuda")]
    assert isinstance(models[0]._resident._suffix, VocabularyPart)
    monkeypatch.setattr(cuda, "take_off", lambda model: None)
    models.append(load(bundle, device="cuda"))
    for turn in range(4):
        for rows in (5, 2, 9):
            found, expected = (_results(model, rows, turn) for model in models)
            assert [np.shape(one) for one in found] == [(rows,), ()]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, atol=near)


def _results(model: Model, rows: int, turn: int) -> tuple[np.ndarray, float]:
    """Returns each row's log-probability, and the mean loss that stays on the device."""
    rng = np.random.default_rng(100 * turn + rows)
    x, targets = rng.integers(0, WORDS, (2, rows))
    batch = ArrayBatch({"x": x}, targets, TokenLoss(rows))
    model.arena.add(Term(Direction(0, turn + 1, rows), np.float32(0.01)))
    late = model.stay(batch)
    assert late is not None
    (loss,) = model.device.host(late.operands[0])
    return model.forward(batch)["logprobs"], float(loss)
