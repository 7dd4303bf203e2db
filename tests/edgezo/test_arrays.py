"""Bundles of ONNX files: data of arrays, training, evaluation, resume, from Python and commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_files import classifier, save, with_weights

import edgezo
from edgezo.data.arrays import ArrayRows, arrays_from, read_arrays, stacked
from edgezo.run_folder import RunFolder
from edgezo.settings import Settings
from edgezo.tasks import Arrays, Prompt, read_data, task_of
from edgezo.train import train
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime.batch import ArrayBatch
from edgezo_runtime.bundle import Port
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods import FORWARD_ONLY

NAMES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    path = save(classifier(), folder / "model.onnx")
    onnx_to_bundle(path, folder / "b.edgezo", labels=NAMES)
    return folder / "b.edgezo"


@pytest.fixture(scope="module")
def model(bundle: Path) -> edgezo.Model:
    return edgezo.load(bundle, threads=1)


def columns(rows: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Images whose mean brightness says the class."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    noise = rng.normal(size=(rows, 2, 6, 6)) * 0.3
    image = noise + (label - 1).reshape(-1, 1, 1, 1)
    return {"image": image.astype(np.float32), "label": label}


def lines(path: Path, data: dict[str, np.ndarray]) -> Path:
    keys = list(data)
    rows = zip(*(data[key].tolist() for key in keys), strict=True)
    path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    return path


def encode(model: edgezo.Model, data: Any) -> list[Any]:
    rows = read_data(data, model)
    return list(task_of(model, rows, Prompt()).encode_rows(rows))


def test_npz_and_lines_and_memory_are_one(model: edgezo.Model, tmp_path: Path) -> None:
    data = columns(7)
    np.savez(tmp_path / "d.npz", **data)  # type: ignore[arg-type]
    named = data | {"label": np.array(NAMES)[data["label"]]}
    task = Arrays(model.bundle.manifest)
    batches = [
        task.collate(encode(model, source))
        for source in (data, named, tmp_path / "d.npz", lines(tmp_path / "d.jsonl", named))
    ]
    for batch in batches:
        assert isinstance(batch, ArrayBatch)
        np.testing.assert_array_equal(batch.inputs["image"], data["image"])
        np.testing.assert_array_equal(batch.targets, data["label"])
        assert model.loss(batch) == model.loss(batches[0])


def test_training_raises_accuracy_and_a_resumed_run_goes_on(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **columns(90))  # type: ignore[arg-type]
    np.savez(tmp_path / "dev.npz", **columns(60, seed=1))  # type: ignore[arg-type]
    settings = Settings(
        str(bundle), str(tmp_path / "train.npz"), str(tmp_path / "run"),
        eval_data=str(tmp_path / "dev.npz"), method="es", steps=120, lr=0.05, threads=1,
    )  # fmt: skip
    model = edgezo.load(bundle, threads=1)
    rows = read_arrays(tmp_path / "dev.npz")
    task = task_of(model, rows, Prompt())
    before = edgezo.evaluate(model, task, task.encode_rows(rows))
    result = train(settings)
    assert result.metrics and result.metrics.accuracy and before.accuracy is not None
    assert result.metrics.accuracy > before.accuracy + 0.2
    assert result.metrics.loss < before.loss and result.metrics.perplexity is None
    tuned = edgezo.load(bundle, threads=1, weights=tmp_path / "run" / "model.safetensors")
    again = edgezo.evaluate(tuned, task, task.encode_rows(rows))
    assert again.to_json() == result.metrics.to_json()


def test_the_recipe_learns(bundle: Path, tmp_path: Path) -> None:
    """The rate of a language model would leave so small a network where it is."""
    np.savez(tmp_path / "train.npz", **columns(90))  # type: ignore[arg-type]
    data = str(tmp_path / "train.npz")
    asked = Settings(str(bundle), data, str(tmp_path / "run"), eval_data=data, steps=300, threads=1)
    found = train(asked).metrics
    slow = dataclasses.replace(asked, out=str(tmp_path / "slow"), lr=FORWARD_ONLY["mezo"].full_lr)
    still = train(slow).metrics
    assert found is not None and still is not None
    assert found.loss < 0.5 * still.loss
    assert RunFolder(tmp_path / "run").read_settings()["lr"] > 1e-4


def test_the_recipe_learns_by_scales(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[N, 64] x) => (float[N, 3] scores)
    {
        w = DequantizeLinear<axis=1>(integers, w_scale, zero)
        hidden = MatMul(x, w)
        scores = MatMul(hidden, head)
    }
    """
    rng = np.random.default_rng(0)
    weights = {
        "integers": rng.integers(-127, 128, (64, 40), np.int8),
        "w_scale": np.full(40, 0.002, np.float32),
        "zero": np.zeros(40, np.int8),
        "head": rng.normal(size=(40, 3)).astype(np.float32),
    }
    onnx_to_bundle(save(with_weights(text, weights), tmp_path / "m.onnx"), tmp_path / "b.edgezo")
    x = rng.normal(size=(90, 64)).astype(np.float32)
    turned = weights["integers"] * rng.uniform(0, 0.004, 40) @ weights["head"]
    np.savez(tmp_path / "d.npz", x=x, label=(x @ turned).argmax(axis=1))
    data, out = str(tmp_path / "d.npz"), str(tmp_path / "run")
    found = train(
        Settings(str(tmp_path / "b.edgezo"), data, out, eval_data=data, tune="scales", threads=1)
    )
    model, rows = edgezo.load(tmp_path / "b.edgezo", threads=1), read_arrays(data)
    task = task_of(model, rows, Prompt())
    before = edgezo.evaluate(model, task, task.encode_rows(rows))
    assert found.metrics is not None
    assert found.metrics.loss < 0.1 * before.loss


def test_batches_and_tuner(bundle: Path) -> None:
    model = edgezo.load(bundle, tune="head*", threads=1)
    tuner = edgezo.Tuner(model, lr=1e-2)
    steps = [tuner.step(b) for b in edgezo.batches(columns(), model, batch_size=8, epochs=4)]
    assert len(steps) == 32 and steps[-1].loss < steps[0].loss


def test_regression_of_rows_with_a_shared_input(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    scaled (float[2, N, 3] x, float[1] scale) => (float[N, 2] out)
    {
        last = ReduceSum<keepdims=0>(x, axis)
        product = MatMul(last, w)
        out = Mul(product, scale)
    }
    """
    weights = {"w": np.ones((3, 2), np.float32), "axis": np.array([0])}
    path = save(with_weights(text, weights), tmp_path / "m.onnx")
    onnx_to_bundle(path, tmp_path / "b.edgezo", loss="mse")
    model = edgezo.load(tmp_path / "b.edgezo", threads=1)
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    scale, target = np.array([2], np.float32), np.zeros((5, 2), np.float32)
    batch = Arrays(model.bundle.manifest).collate(
        encode(model, {"x": x, "scale": scale, "target": target})
    )
    out = 2 * x.sum(axis=1) @ np.ones((3, 2))
    np.testing.assert_allclose(model.forward(batch)["out"], out, rtol=1e-5)
    assert model.loss(batch) == pytest.approx((out**2).mean(), rel=1e-5)
    data = {"x": x, "scale": np.repeat(scale[None], 5, 0), "target": target}
    same = encode(model, lines(tmp_path / "d.jsonl", data))
    assert model.loss(Arrays(model.bundle.manifest).collate(same)) == model.loss(batch)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({"image": None, "other": np.zeros(3)}, 'no "image", which the model takes'),
    "no label": ({"label": None}, 'neither "label" nor "target"'),
    "text": ({"image": np.array(["a"] * 6)}, "something that is no number"),
    "shape": ({"image": np.zeros((6, 2, 6, 5))}, r"\[6, 2, 6, 5\], the model takes \[rows, 2, 6"),
    "rank": ({"image": np.zeros((6, 2))}, "has shape"),
    "rows": ({"image": np.zeros((5, 2, 6, 6))}, "5 rows .* and 6 answers"),
    "nan": ({"image": np.full((6, 2, 6, 6), np.nan)}, "NaN"),
    "too large": ({"image": np.full((6, 2, 6, 6), 1e300)}, "too large"),
    "label beyond": ({"label": np.array([0, 1, 2, 3, 0, 0])}, 'label "3"; give one of "cat"'),
    "label negative": ({"label": np.full(6, -1)}, 'label "-1"'),
    "label unknown": ({"label": np.array(["cat"] * 5 + ["cow"])}, 'row 5 .* label "cow"'),
    "label fraction": ({"label": np.full(6, 0.5)}, 'label "0.5"'),
    "label matrix": ({"label": np.zeros((6, 2), int)}, "one class a row"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(model: edgezo.Model, case: str) -> None:
    change, sentence = BAD[case]
    data = {k: v for k, v in (columns(6) | change).items() if v is not None}
    with pytest.raises(InputError, match=sentence):
        encode(model, data)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": [[1, 2], [3]]}, r"line 2: \"image\" is ragged"),
        ({"image": [[1.0]]}, r"line 2: \"image\" has shape \[1, 1\]"),
        ({"image": "pixels"}, "line 2.*no number"),
        ({"image": [10**400]}, "line 2.*a number too large"),
        ({"image": [[{}]]}, "line 2.*no number"),
        ({"label": "cow"}, 'line 2 has label "cow"'),
        ({"extra": 1}, 'line 1 has "extra"'),
    ],
)
def test_bad_lines(model: edgezo.Model, tmp_path: Path, change: Any, sentence: str) -> None:
    path = lines(tmp_path / "d.jsonl", columns(2))
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + json.dumps(json.loads(second) | change))
    with pytest.raises(InputError, match=sentence):
        encode(model, path)


def test_damaged_archives(model: edgezo.Model, tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", image=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="plain arrays"):
        read_arrays(tmp_path / "pickle.npz")
    np.savez_compressed(tmp_path / "d.npz", **columns(6))  # type: ignore[arg-type]
    whole = (tmp_path / "d.npz").read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.npz").write_bytes(whole[:end])
        with pytest.raises(InputError):
            read_arrays(tmp_path / "cut.npz")
    with pytest.raises(InputError, match="does not exist"):
        read_arrays(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot be read"):
        (tmp_path / "folder.npz").mkdir()
        read_arrays(tmp_path / "folder.npz")


def test_what_is_called_an_archive_and_is_none(model: edgezo.Model, tmp_path: Path) -> None:
    lines(tmp_path / "text.npz", columns(2))
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("text", "one"):
        with pytest.raises(InputError, match=r"is not an \.npz file, .*numpy\.savez"):
            read_arrays(tmp_path / f"{name}.npz")


def test_large_integers_are_numbers() -> None:
    port = Port("x", "float32", ("rows", 2))
    rows = ArrayRows({"x": [[10**20, 0.5]]}, ("line 1",), None, "", lists=True)
    np.testing.assert_array_equal(stacked(rows, port, "x"), np.array([[1e20, 0.5]], np.float32))
    whole = Port("x", "int64", ("rows", 2))
    with pytest.raises(InputError, match="holds numbers beyond int64"):
        stacked(ArrayRows({"x": [[10**20, 1]]}, ("line 1",), None, "", lists=True), whole, "x")


def test_text_settings_are_refused(model: edgezo.Model) -> None:
    with pytest.raises(InputError, match="takes arrays"):
        task_of(model, arrays_from(columns(6)), Prompt(template="{text}"))
    with pytest.raises(InputError, match="mapping of column names"):
        read_data([{"image": 1}], model)
