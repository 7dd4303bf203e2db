"""LoRA and a prefix in the graph of an ONNX file that has nothing to do with text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_files import attention, classifier, save, with_weights

from edgezo_export.adapters.base import adapt
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime import adapter_init
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model
from edgezo_runtime.weights import Weights


def adapted(folder: Path, opset: int, **settings: object) -> Model:
    """Returns the attention with an adapter that begins as a run's does."""
    onnx_to_bundle(save(attention(opset), folder / "m.onnx"), folder / "b.edgezo")
    bundle = adapt(open_bundle(folder / "b.edgezo"), settings)
    weights = Weights(bundle)
    weights.begin(adapter_init.draw(weights.arena.parameters, 3, weights.frozen(), bundle))
    weights.load()
    return Model(weights)


def attended(weights: dict[str, np.ndarray], x: np.ndarray, *prefix: np.ndarray) -> np.ndarray:
    """Returns the scores, with `prefix` keys and values (heads, virtual tokens, size) in front."""
    q, k, v = (
        (x @ weights[name]).reshape(*x.shape[:2], 2, 4).swapaxes(1, 2)
        for name in ("wq", "wk", "wv")
    )
    if prefix:
        k, v = (
            np.concatenate([np.broadcast_to(p, (len(x), *p.shape)), own], axis=2)
            for p, own in zip(prefix, (k, v), strict=True)
        )
    scores = q @ k.swapaxes(2, 3) / 2
    scores = np.exp(scores - scores.max(axis=3, keepdims=True))
    mixed = scores / scores.sum(axis=3, keepdims=True) @ v
    return mixed.swapaxes(1, 2).reshape(len(x), 48) @ weights["head"]


def run(model: Model, x: np.ndarray) -> np.ndarray:
    return model.forward(ArrayBatch({"x": x}, np.zeros(len(x), np.int64), RowLoss()))["scores"]


@pytest.mark.parametrize("opset", [12, 17])
def test_a_prefix(opset: int, tmp_path: Path) -> None:
    model = adapted(tmp_path, opset, kind="prefix", virtual_tokens=3)
    keys, values = (model.arena.views[f"prefix.0.{what}"] for what in ("keys", "values"))
    assert keys.shape == values.shape == (1, 2, 3, 4)
    assert 0 < np.abs(keys).max() <= 0.5 and len(np.unique(keys)) > 20
    assert not values.any()
    x = np.random.default_rng(1).normal(size=(5, 6, 8)).astype(np.float32)
    values[...] = np.random.default_rng(2).normal(size=values.shape)
    expected = attended(dict(model.weights.frozen()), x, keys[0], values[0])
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-4)


def test_lora(tmp_path: Path) -> None:
    model = adapted(tmp_path, 12, kind="lora", rank=2, alpha=6.0, target=("wq", "wv"))
    x = np.random.default_rng(1).normal(size=(5, 6, 8)).astype(np.float32)
    weights = dict(model.weights.frozen())
    np.testing.assert_allclose(run(model, x), attended(weights, x), rtol=1e-4, atol=1e-4)
    for view in model.arena.views.values():
        view[...] = np.random.default_rng(2).normal(size=view.shape) / 4
    for name in ("wq", "wv"):  # the file's matrices are (in, out)
        a, b = (model.arena.views[f"{name}.lora_{part}.weight"] for part in "AB")
        weights[name] = weights[name] + 3 * (b @ a).T
    np.testing.assert_allclose(run(model, x), attended(weights, x), rtol=1e-4, atol=1e-4)


def test_what_has_no_place_for_them(tmp_path: Path) -> None:
    convolutions = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2, 6] x) => (float[N, 2, 6] y) { y = Conv<pads = [1, 1]>(x, w) }"""
    path = save(with_weights(convolutions, {"w": np.ones((2, 2, 3), np.float32)}), tmp_path / "m")
    onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    with pytest.raises(InputError, match="no linear layer for LoRA"):
        adapt(open_bundle(tmp_path / "b.edgezo"), {"kind": "lora"})
    with pytest.raises(InputError, match="no attention that edgezo knows"):
        adapt(open_bundle(tmp_path / "b.edgezo"), {"kind": "prefix"})
    onnx_to_bundle(save(classifier(), tmp_path / "c"), tmp_path / "c.edgezo")
    with pytest.raises(InputError, match="such as head, or all-linear"):
        adapt(open_bundle(tmp_path / "c.edgezo"), {"kind": "lora"})
