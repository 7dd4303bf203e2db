"""ONNX files that ONNX Runtime's own tools quantised: their scales are tuned, and no integer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from foreign_files import with_weights
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from edgezo_export.adapters.base import adapt
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_export.onnx_reader import read_onnx
from edgezo_export.trainable import find_weights
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model, load

#: With a convolution, which has integers of its own, where those of `MatMulNBits` have none.
NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[{rows}, 2, 4, 8] x) => (float[{rows}, 3] scores)
{{
    conv = Conv<pads=[1,1,1,1]>(x, kernel, kernel_bias)
    active = Relu(conv)
    flat = Flatten(active)
    hidden = MatMul(flat, w)
    shifted = Add(hidden, shift)
    scores = MatMul(shifted, head)
}}
"""
WEIGHTS_ONLY = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 64] x) => (float[N, 3] scores)
{
    w = DequantizeLinear<axis=0>(integers, w_scale, zero)
    turned = Transpose<perm=[1,0]>(w)
    scores = MatMul(x, turned)
}
"""
RANDOM = np.random.default_rng(0)


def net(path: Path, rows: str = "N") -> Path:
    shapes = {"kernel": (4, 2, 3, 3), "kernel_bias": (4,), "w": (128, 40), "shift": (40,)}
    shapes["head"] = (40, 3)
    weights = {n: (RANDOM.normal(size=s) / 6).astype(np.float32) for n, s in shapes.items()}
    onnx.save(with_weights(NET.format(rows=rows), weights), path)
    return path


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        draws = (RANDOM.normal(size=(4, 2, 4, 8)).astype(np.float32) for _ in range(8))
        self._samples: Iterator[dict[str, np.ndarray]] = ({"x": draw} for draw in draws)

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self._samples, None)


def nbits(plain: Path, out: Path, block: int, level: int | None = None) -> None:
    quantizer = MatMulNBitsQuantizer(
        onnx.load(plain), block_size=block, is_symmetric=block == 32, accuracy_level=level
    )
    quantizer.process()
    wrapped: Any = quantizer.model
    onnx.save(wrapped.model, out)


def static(plain: Path, out: Path, per_channel: bool, form: QuantFormat = QuantFormat.QDQ) -> None:
    types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    quantize_static(plain, out, Samples(), quant_format=form, per_channel=per_channel, **types)  # pyright: ignore[reportArgumentType]


def dynamic(plain: Path, out: Path, per_channel: bool) -> None:
    quantize_dynamic(plain, out, per_channel=per_channel, weight_type=QuantType.QUInt8)


CASES: dict[str, tuple[Callable[[Path, Path], None], set[str]]] = {
    "int4 in blocks of 32": (
        lambda plain, out: nbits(plain, out, 32),
        {"w_scales", "head_scales"},
    ),
    "int4 in blocks of 128": (
        lambda plain, out: nbits(plain, out, 128),
        {"w_scales", "head_scales"},
    ),
    "static, channels": (
        lambda plain, out: static(plain, out, True),
        {"kernel_scale", "w_scale", "shift_scale", "head_scale"},
    ),
    "static, tensors": (
        lambda plain, out: static(plain, out, False),
        {"kernel_scale", "w_scale", "shift_scale", "head_scale"},
    ),
    "dynamic, channels": (
        lambda plain, out: dynamic(plain, out, True),
        {"kernel_scale", "w_scale", "head_scale"},
    ),
    "dynamic, tensors": (
        lambda plain, out: dynamic(plain, out, False),
        {"kernel_scale", "w_scale", "head_scale"},
    ),
}


def theirs(model: ModelProto, x: np.ndarray, optimised: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(["scores"], {"x": x})[0])


def ours(model: Model, x: np.ndarray) -> np.ndarray:
    batch = ArrayBatch({"x": x}, np.zeros((len(x), 3), np.float32), RowLoss())
    return model.forward(batch)["scores"]


def with_value(path: Path, name: str, value: np.ndarray) -> ModelProto:
    """Returns the file's model with another value of a constant."""
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def change(view: np.ndarray) -> None:
    factors = np.random.default_rng(1).uniform(0.5, 1.5, view.shape)
    view[...] = view * factors.astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_each_scale_does_what_it_does_in_the_file(case: str, tmp_path: Path) -> None:
    quantize, names = CASES[case]
    path = tmp_path / "quantized.onnx"
    quantize(net(tmp_path / "plain.onnx"), path)
    onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    model = load(tmp_path / "b.edgezo", tune="scales")
    assert set(model.arena.views) >= names
    assert {p.kind for p in model.arena.parameters} == {"scale"}
    assert {p.dtype for p in model.bundle.manifest.parameters} == {"float32"}
    x = RANDOM.normal(size=(3, 2, 4, 8)).astype(np.float32)
    before = ours(model, x).copy()
    np.testing.assert_allclose(before, theirs(onnx.load(path), x), atol=1e-6)
    for name, view in model.arena.views.items():
        kept = view.copy()
        change(view)
        found = ours(model, x).copy()
        assert not np.array_equal(found, before) or name not in names
        np.testing.assert_allclose(found, theirs(with_value(path, name, view), x), atol=1e-6)
        view[...] = kept


def test_weights_alone_in_integers_are_multiplied_as_the_file_says(tmp_path: Path) -> None:
    """ONNX Runtime's own optimisation of such a file rounds the activations as well."""
    weights = {
        "integers": RANDOM.integers(-100, 100, (3, 64)).astype(np.int8),
        "w_scale": np.full(3, 0.01, np.float32),
        "zero": np.zeros(3, np.int8),
    }
    path = tmp_path / "weights.onnx"
    onnx.save(with_weights(WEIGHTS_ONLY, weights), path)
    onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    model = load(tmp_path / "b.edgezo", tune="scales")
    x = RANDOM.normal(size=(3, 64)).astype(np.float32)
    change(model.arena.views["w_scale"])
    changed = with_value(path, "w_scale", model.arena.views["w_scale"])
    np.testing.assert_allclose(ours(model, x), theirs(changed, x, optimised=False), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_lora_has_no_place_beside_integers_of_a_file(case: str, tmp_path: Path) -> None:
    CASES[case][0](net(tmp_path / "plain.onnx"), tmp_path / "quantized.onnx")
    onnx_to_bundle(tmp_path / "quantized.onnx", tmp_path / "b.edgezo", loss="mse")
    with pytest.raises(InputError, match="quantised already: tune the scales with --tune scales"):
        adapt(open_bundle(tmp_path / "b.edgezo"), {"kind": "lora"})


def reasons(path: Path) -> dict[str, str]:
    """Returns why each float constant of a file is none that could be tuned."""
    model = read_onnx(path)
    found = find_weights(model, model.graph.outputs)
    return {w.name: w.reason for w in found if w.dtype == "float32"}


def test_scales_that_stay_are_named_with_the_reason(tmp_path: Path) -> None:
    plain, path = net(tmp_path / "plain.onnx"), tmp_path / "quantized.onnx"
    nbits(plain, path, 32, level=4)
    assert "accuracy level 4" in reasons(path)["w_scales"]
    assert not reasons(path)["kernel"]
    static(plain, path, False)
    assert "a scale of activations" in reasons(path)["x_scale"]
    assert not reasons(path)["w_scale"]
    static(plain, path, False, QuantFormat.QOperator)
    assert "a scale inside QLinearMatMul" in reasons(path)["w_scale"]
    with pytest.raises(InputError, match="has no weight that can be tuned"):
        onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")


def test_a_fixed_batch_with_a_range_of_its_own_is_refused(tmp_path: Path) -> None:
    dynamic(net(tmp_path / "plain.onnx", rows="1"), tmp_path / "quantized.onnx", False)
    with pytest.raises(InputError, match="the range of a whole batch, and its batch size is fixed"):
        onnx_to_bundle(tmp_path / "quantized.onnx", tmp_path / "b.edgezo", loss="mse")
