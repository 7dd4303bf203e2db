"""Losses that come as ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_files import classifier, images, plain, save, with_weights

from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import load

CUSTOM = """
<ir_version: 8, opset_import: ["" : {opset}]>
loss (float[N, 3] out, float[N, 3] wanted) => (float{shape} value)
{{
    difference = Sub(out, wanted)
    size = Abs(difference)
    value = {reduce}(size)
}}
"""


@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("scalar", [False, True])
def test_a_loss_of_one_s_own(tmp_path: Path, opset: int, scalar: bool) -> None:
    reduce = "ReduceMean<keepdims=0>" if scalar else "ReduceMean<axes=[1], keepdims=0>"
    text = CUSTOM.format(opset=opset, shape="" if scalar else "[N]", reduce=reduce)
    loss = save(with_weights(text, {}), tmp_path / "loss.onnx")
    path = save(classifier(), tmp_path / "model.onnx")
    onnx_to_bundle(path, tmp_path / "b.edgezo", loss=str(loss))
    model = load(tmp_path / "b.edgezo", threads=1)
    targets = np.ones((3, 3), np.float32)
    outputs = model.forward(ArrayBatch({"image": images()}, targets, RowLoss()))
    expected = np.abs(plain(path, {"image": images()}) - 1)
    wanted = np.full(3, expected.mean()) if scalar else expected.mean(axis=1)
    np.testing.assert_allclose(outputs["losses"], wanted, rtol=1e-5)


def test_a_loss_newer_than_the_model(tmp_path: Path) -> None:
    text = CUSTOM.format(opset=14, shape="", reduce="ReduceMean<keepdims=0>")
    loss = save(with_weights(text, {}), tmp_path / "loss.onnx")
    path = save(classifier(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="has opset 14, the model 12"):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss=str(loss))


MISFITS = {
    "other classes": (
        "(float[N, 5] o, float[N, 5] t) => (float[N] l)",
        "d = Sub(o, t) l = ReduceMean<axes=[1], keepdims=0>(d)",
        r"must take output 'scores', float32 \[3, 3\], and targets.* Got: 3 Expected: 5",
    ),
    "other targets": (
        "(float[N, 3] o, float[N, 5] t) => (float[N] l)",
        "d = Sub(o, t) l = ReduceMean<axes=[1], keepdims=0>(d)",
        r"must take output 'scores', .* targets, of which float32 \[3, 5\] were tried",
    ),
    "whole numbers": (
        "(int64[N, 3] o, float[N, 3] t) => (float[N] l)",
        "c = Cast<to=1>(o) d = Sub(c, t) l = ReduceMean<axes=[1], keepdims=0>(d)",
        "must take output 'scores', float32",
    ),
    "texts": (
        "(float[N, 3] o, string[N] t) => (float[N] l)",
        "l = ReduceMean<axes=[1], keepdims=0>(o)",
        "takes string: edgezo feeds",
    ),
    "one for each class": (
        "(float[N, 3] o, float[N, 3] t) => (float[N, 3] l)",
        "l = Sub(o, t)",
        r"gives shape \[3, 3\] for 3 rows: it must give one loss, or one for each row",
    ),
    "one for each class of all rows": (
        "(float[N, 3] o, float[N, 3] t) => (float[3] l)",
        "d = Sub(o, t) l = ReduceMean<axes=[0], keepdims=0>(d)",
        r"gives shape \[3\] for 1 rows: it must give one loss, or one for each row",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_the_loss_s_fault(tmp_path: Path, case: str) -> None:
    ports, nodes, sentence = MISFITS[case]
    text = f'<ir_version: 8, opset_import: ["" : 12]> loss {ports} {{ {nodes} }}'
    loss = save(with_weights(text, {}), tmp_path / "mine.onnx")
    path = save(classifier(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=rf"mine\.onnx {sentence}"):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss=str(loss))


def test_a_loss_of_whole_numbers(tmp_path: Path) -> None:
    ports = "(float[1, 3] o, int64[1] t) => (int64[1, 1] wrong)"
    nodes = "c = ArgMax<axis=1, keepdims=0>(o) e = Equal(c, t) n = Not(e) wrong = Cast<to=7>(n)"
    text = f'<ir_version: 8, opset_import: ["" : 12]> loss {ports} {{ {nodes} }}'
    loss = save(with_weights(text, {}), tmp_path / "mine.onnx")
    path = save(classifier(), tmp_path / "model.onnx")
    onnx_to_bundle(path, tmp_path / "b.edgezo", loss=str(loss))
    labels = np.array([0, 1, 2])
    outputs = load(tmp_path / "b.edgezo", threads=1).forward(
        ArrayBatch({"image": images()}, labels, RowLoss())
    )
    wrong = plain(path, {"image": images()}).argmax(axis=1) != labels
    np.testing.assert_array_equal(outputs["losses"], wrong)
