"""A bundle of arrays that ends as lean graphs of language models do."""

from __future__ import annotations

from pathlib import Path
from string import Template

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
GRAPH = Template("""
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
ended (int64[rows] x, int64[rows] targets, $dtype[301, 24] table, $dtype[24, 24] layer)
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
    $pieces
    both = Concat<axis=0>(padded0, padded1)
    answers = Slice(both, zero, all, zero)
    logprobs = Squeeze(answers, one)
}
""")
#: One of them, from one row to before another.
PIECE = Template("""
    rows$n = Slice(hidden, $start, $end, zero)
    wanted$n = Slice(column, $start, $end, zero)
    scores$n = com.microsoft.FusedMatMul<transB=1>(rows$n, table)
    wide$n = Cast<to=1>(scores$n)
    every$n = LogSoftmax<axis=1>(wide$n)
    found$n = GatherElements<axis=1>(every$n, wanted$n)
    padded$n = Pad(found$n, none, , zero)
""")


def write_ended(folder: Path, dtype: str) -> Path:
    """Writes the bundle into `folder`, which it returns."""
    rng = np.random.default_rng(0)
    shapes = {"table": (WORDS, WIDTH), "layer": (WIDTH, WIDTH)}
    tensors = {n: (rng.normal(size=s) / WIDTH**0.5).astype(dtype) for n, s in shapes.items()}
    ends = enumerate([("zero", "two"), ("two", "all")])
    pieces = "".join(PIECE.substitute(n=n, start=start, end=end) for n, (start, end) in ends)
    kind = {"float32": "float", "float16": "float16"}[dtype]
    text = GRAPH.substitute(dtype=kind, pieces=pieces)
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
