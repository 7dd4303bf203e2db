"""Array graphs: any inputs, losses computed by the graph, a prefix kept for equal inputs only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser
from safetensors.numpy import save_file

from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.model import Model, load

GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
regression (float[rows, 3] x, float[rows, 1] y, float[rows, 2] targets, float[3, 4] first,
    float[4, 2] second) => (float[rows] losses, float[rows, 2] out)
<float[rows, 4] h, float[rows, 4] shifted, float[rows, 4] inverse, int64[1] axis = {1}>
{
    h = MatMul(x, first)
    inverse = Reciprocal(h)
    shifted = Add(inverse, y)
    out = MatMul(shifted, second)
    error = Sub(out, targets)
    square = Mul(error, error)
    losses = ReduceMean<keepdims=0>(square, axis)
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle without a tokenizer and without a context length."""
    rng = np.random.default_rng(0)
    tensors = {
        "first": rng.normal(size=(3, 4)).astype(np.float32),
        "second": rng.normal(size=(4, 2)).astype(np.float32),
    }
    (tmp_path / "graph.onnx").write_bytes(parser.parse_model(GRAPH).SerializeToString())
    save_file(tensors, tmp_path / "model.safetensors")
    port = {"dtype": "float32"}
    manifest = {
        "schema": 1,
        "parameters": [
            {"name": n, "shape": a.shape, "dtype": "float32", "kind": "linear", "aliases": []}
            for n, a in tensors.items()
        ],
        "inputs": [
            port | {"name": name, "shape": ["rows", size]}
            for name, size in (("x", 3), ("y", 1), ("targets", 2))
        ],
        "outputs": [
            port | {"name": "losses", "shape": ["rows"]},
            port | {"name": "out", "shape": ["rows", 2]},
        ],
        "context_length": None,
        "task": {"name": "arrays"},
        "files": {
            name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
            for name in ("graph.onnx", "model.safetensors")
        },
        "versions": {},
    }
    (tmp_path / "edgezo.json").write_text(json.dumps(manifest))
    return tmp_path


def batch(seed: int = 0, rows: int = 3) -> ArrayBatch:
    rng = np.random.default_rng(seed)
    x, y, targets = (rng.normal(size=(rows, n)).astype(np.float32) for n in (3, 1, 2))
    return ArrayBatch({"x": x, "y": y}, targets, RowLoss())


def expected(model: Model, given: ArrayBatch) -> np.ndarray:
    weights = model.weights.arrays()
    hidden = 1 / (given.inputs["x"] @ weights["first"]) + given.inputs["y"]
    return hidden @ weights["second"]


@pytest.mark.parametrize("tune", ["full", "second", "first"])
def test_outputs_and_loss(folder: Path, tune: str) -> None:
    model = load(folder, tune=tune, threads=1)
    for seed, rows in ((0, 3), (1, 3), (1, 5)):
        given = batch(seed, rows)
        outputs = model.forward(given)
        assert list(outputs) == ["losses", "out"]
        np.testing.assert_allclose(outputs["out"], expected(model, given), rtol=1e-4)
        losses = ((expected(model, given) - given.targets) ** 2).mean(axis=1)
        assert model.loss(given) == pytest.approx(losses.mean(), rel=1e-4)


def test_the_prefix_runs_again_for_other_inputs_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder, tune="second", threads=1)
    ran = []
    session = model._resident
    assert session._prefix is not None
    run = session._prefix.run
    monkeypatch.setattr(session._prefix, "run", lambda *a, **k: ran.append(1) or run(*a, **k))
    given = batch()

    def forward(**changed: np.ndarray) -> np.ndarray:
        other = ArrayBatch({**given.inputs, **changed}, given.targets, given.objective)
        found = model.forward(other)["out"]
        np.testing.assert_allclose(found, expected(model, other), rtol=1e-4)
        return found

    forward()
    model.weights.arena.views["second"][...] += 1
    forward()
    assert len(ran) == 1
    given = ArrayBatch(given.inputs, given.targets + 1, given.objective)
    forward()  # the prefix reads no targets
    assert len(ran) == 1
    forward(y=given.inputs["y"] + 1)
    assert len(ran) == 2
    forward(x=given.inputs["x"] + 1)
    assert len(ran) == 3


def test_signed_zeros_are_not_the_same(folder: Path) -> None:
    model = load(folder, tune="second", threads=1)
    given = batch()
    zeros = {"x": np.zeros((1, 3), np.float32), "y": np.zeros((1, 1), np.float32)}
    targets = given.targets[:1]
    with np.errstate(divide="ignore", invalid="ignore"):
        first = model.forward(ArrayBatch(zeros, targets, RowLoss()))["out"].copy()
        minus = {**zeros, "x": -zeros["x"]}
        fresh = load(folder, threads=1).forward(ArrayBatch(minus, targets, RowLoss()))["out"]
        again = model.forward(ArrayBatch(minus, targets, RowLoss()))["out"]
    np.testing.assert_array_equal(again, fresh)
    assert not np.array_equal(first, fresh, equal_nan=True) or np.isnan(first).all()


def test_row_losses_and_predictions() -> None:
    outputs = {
        "losses": np.array([1.0, 2.0, 6.0], np.float32),
        "scores": np.array([[0, 3, 1], [4, 0, 0], [0, 0, 9]], np.float32),
    }
    tally = RowLoss(np.array([1, 2, 2]), "scores").tally(outputs)
    assert (tally.examples, tally.units, tally.loss, tally.correct) == (3, 3, 9.0, 2)
    tally = RowLoss().tally(outputs)
    assert tally.correct is None and not tally.tokens


def test_no_text(folder: Path) -> None:
    model = load(folder, threads=1)
    with pytest.raises(InputError, match="takes arrays"):
        _ = model.tokenizer
    with pytest.raises(InputError, match="takes arrays"):
        _ = model.context_length


def test_failures_name_the_arrays(folder: Path) -> None:
    model = load(folder, threads=1)
    given = batch()
    wrong = ArrayBatch({**given.inputs, "x": np.ones((3, 7), np.float32)}, given.targets, RowLoss())
    with pytest.raises(EdgezoError, match=r"x \[3, 7\]"):
        model.forward(wrong)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": None}, "x is of type NoneType: give a NumPy array"),
        ({"x": [[1.0, 2.0, 3.0]] * 3}, "x is of type list"),
        ({"x": np.ones((4, 3), np.float32)}, "[34] rows of .* and [34] of "),
        ({"y": np.array(1, np.float32)}, r"y has shape \[\], whose axis 0 should count rows"),
    ],
)
@pytest.mark.parametrize("tune", ["full", "second"])
def test_inputs_that_the_graph_does_not_take(
    folder: Path, tune: str, changed: Any, message: str
) -> None:
    model = load(folder, tune=tune, threads=1)
    given = batch()
    model.loss(given)
    with pytest.raises(InputError, match=message):
        model.loss(ArrayBatch({**given.inputs, **changed}, given.targets, RowLoss()))


def test_no_input_is_left_from_the_batch_before(folder: Path) -> None:
    model = load(folder, threads=1)
    given = batch()
    model.loss(given)
    with pytest.raises(InputError, match="lacks x, which the model takes; it has y, targets"):
        model.loss(ArrayBatch({"y": given.inputs["y"]}, given.targets, RowLoss()))


def test_a_batch_has_rows(folder: Path) -> None:
    with pytest.raises(InputError, match="the batch has no rows"):
        load(folder, threads=1).loss(batch(rows=0))


def test_a_session_knows_its_outputs(folder: Path) -> None:
    text = (folder / "edgezo.json").read_text().replace('"losses"', '"loses"')
    (folder / "edgezo.json").write_text(text)
    with pytest.raises(InputError, match="lacks 'loses'"):
        load(folder)


@pytest.mark.parametrize("threads", ["2", 0, 1.5])
def test_a_device_has_threads(folder: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads is .*; use 1 or more"):
        load(folder, threads=threads)
