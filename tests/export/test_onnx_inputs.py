"""What inputs an ONNX file takes, found by trying, or refused in a sentence of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_files import save, with_weights
from onnx import ModelProto

from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_export.probe import Probe
from edgezo_export.row_axes import ROWS, ArrayInput
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import load

RNG = np.random.default_rng(0)


def model(ports: str, nodes: str, **shapes: tuple[int, ...]) -> ModelProto:
    """Returns a model with random weights; `ports` are its inputs and outputs."""
    text = f'<ir_version: 8, opset_import: ["" : 17]>\nmodel {ports}\n{{\n{nodes}\n}}'
    weights = {n: RNG.standard_normal(shape, np.float32) for n, shape in shapes.items()}
    return with_weights(text, weights)


@pytest.mark.parametrize("rows", [3, 6, 40, 100, 126])
def test_a_table_of_any_size(tmp_path: Path, rows: int) -> None:
    ports, nodes = "(int64[N] id) => (float[N, 3] out)", "e = Gather(table, id) out = MatMul(e, w)"
    path = save(model(ports, nodes, table=(rows, 6), w=(6, 3)), tmp_path / "m.onnx")
    exported = onnx_to_bundle(path, tmp_path / "b.edgezo")
    assert [w.trainable for w in exported.weights] == [True, True]


def test_corners_hold_the_least_and_the_largest() -> None:
    ids = ArrayInput("ids", np.dtype(np.int64), (ROWS, 4))
    found = [feeds["ids"].tolist() for feeds in Probe((ids,), 1, 32, 1).corners()]
    assert found == [[[0] * 4], [[31] * 4]]


@pytest.mark.parametrize(
    ("flags", "nodes"),
    [
        ("bool flag", "on = Identity(flag)"),
        ("bool flag", "on = Not(flag)"),
        ("bool[N, 1] flag", "on = Not(flag)"),
        ("bool flag, bool other", "no = Not(flag) on = And(no, other)"),
    ],
)
def test_a_weight_behind_a_flag(tmp_path: Path, flags: str, nodes: str) -> None:
    ports = f"(float[N, 4] x, {flags}) => (float[N, 3] out)"
    nodes += " factor = Cast<to=1>(on) y = Mul(x, factor) out = MatMul(y, w)"
    path = save(model(ports, nodes, w=(4, 3)), tmp_path / "m.onnx")
    assert [w.reason for w in onnx_to_bundle(path, tmp_path / "b.edgezo").weights] == [""]


def test_a_weight_behind_a_whole_number(tmp_path: Path) -> None:
    ports = "(float[N, 4] x, int64 off) => (float[N, 3] out)"
    nodes = "no = Cast<to=9>(off) yes = Not(no) on = Cast<to=1>(yes) y = Mul(x, on)"
    path = save(model(ports, f"{nodes} out = MatMul(y, w)", w=(4, 3)), tmp_path / "m.onnx")
    assert [w.reason for w in onnx_to_bundle(path, tmp_path / "b.edgezo").weights] == [""]


def test_a_single_fraction(tmp_path: Path) -> None:
    ports = "(float[N, 4] x, float heat) => (float[N, 3] out)"
    path = model(ports, "y = Mul(x, heat) out = MatMul(y, w)", w=(4, 3))
    onnx_to_bundle(save(path, tmp_path / "m.onnx"), tmp_path / "b.edgezo", loss="mse")
    bundle = load(tmp_path / "b.edgezo", threads=1)
    feeds = {"x": np.ones((2, 4), np.float32), "heat": np.array(0, np.float32)}
    assert bundle.loss(ArrayBatch(feeds, np.ones((2, 3), np.float32), RowLoss())) == 1


def test_an_output_whose_shape_depends_on_its_input(tmp_path: Path) -> None:
    ports = "(float[N, 4] x) => (float[N, M] out)"
    nodes = "y = MatMul(x, w) r = Relu(y) s = Squeeze(r) on = Cast<to=9>(s)"
    nodes += " out = Compress<axis=1>(y, on)"
    path = save(model(ports, nodes, w=(4, 30)), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="one shape for all rows"):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")


@pytest.mark.parametrize("name", ["label", "target"])
def test_an_input_that_has_the_name_of_the_answers(tmp_path: Path, name: str) -> None:
    ports, nodes = f"(float[N, 4] {name}) => (float[N, 3] out)", f"out = MatMul({name}, w)"
    path = save(model(ports, nodes, w=(4, 3)), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=f"input '{name}', as data calls the right answers"):
        onnx_to_bundle(path, tmp_path / "b.edgezo")


def test_an_input_of_the_file_s_own_loss_may_have_it(tmp_path: Path) -> None:
    ports = "(float[N, 4] x, float[N, 3] label) => (float[N, 3] out, float[N, 3] loss)"
    nodes = "out = MatMul(x, w) loss = Sub(out, label)"
    path = save(model(ports, nodes, w=(4, 3)), tmp_path / "m.onnx")
    onnx_to_bundle(path, tmp_path / "b.edgezo", output="out")
    assert [p.name for p in load(tmp_path / "b.edgezo").bundle.manifest.inputs] == ["x", "targets"]


@pytest.mark.parametrize(
    ("taken", "nodes", "sentence"),
    [
        ("bfloat16[N, 4]", "y = Cast<to=1>(x)", "takes bfloat16: edgezo feeds"),
        ("float8e4m3fn[N, 4]", "y = Cast<to=1>(x)", "takes float8e4m3fn: edgezo feeds"),
        ("optional(float[N, 4])", "y = OptionalGetElement(x)", "is of type optional"),
        ("seq(float[N, 4])", "y = ConcatFromSequence<axis=0>(x)", "is of type sequence"),
    ],
)
def test_inputs_that_numpy_does_not_have(
    tmp_path: Path, taken: str, nodes: str, sentence: str
) -> None:
    ports = f"({taken} x) => (float[N, 3] out)"
    file = model(ports, f"{nodes} out = MatMul(y, w)", w=(4, 3))
    file.opset_import[0].version = 19
    with pytest.raises(InputError, match=f"input 'x' of .* {sentence}"):
        onnx_to_bundle(save(file, tmp_path / "m.onnx"), tmp_path / "b.edgezo")


def test_numbers_where_classes_are_needed(tmp_path: Path) -> None:
    file = model("(float[N, 4] x) => (float[N, 1] out)", "out = MatMul(x, w)", w=(4, 1))
    with pytest.raises(InputError, match="--loss mse"):
        onnx_to_bundle(save(file, tmp_path / "m.onnx"), tmp_path / "b.edgezo")
