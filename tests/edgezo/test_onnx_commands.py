"""ONNX files through the commands: export, info, train, eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, refused
from foreign_files import SOFTMAX, classifier, save

from edgezo_runtime.bundle import open_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ONNX file, its labels, its bundle and data."""
    folder = tmp_path_factory.mktemp("onnx")
    save(classifier(SOFTMAX, "prob"), folder / "model.onnx")
    (folder / "labels.txt").write_text("cat\ndog\nowl\n")
    image = np.random.default_rng(0).normal(size=(24, 2, 6, 6)).astype(np.float32)
    np.savez(folder / "data.npz", image=image, label=np.array(["cat", "dog", "owl"] * 8))
    fields = answer(
        "export", folder / "model.onnx", "--out", folder / "b.edgezo",
        "--labels", folder / "labels.txt",
    )  # fmt: skip
    assert (fields["trained"], fields["constant"]) == (6, 5) and fields["difference"] <= 1e-5
    return folder


def answer(*words: object) -> dict[str, Any]:
    done = called(*words, "--json")
    assert done.status == 0, done.err
    return json.loads(done.out.splitlines()[-1])


def test_train_and_eval(folder: Path, tmp_path: Path) -> None:
    data = folder / "data.npz"
    before = answer("eval", folder / "b.edgezo", "--data", data)
    trained = answer(
        "train", folder / "b.edgezo", "--data", data, "--eval-data", data, "--out",
        tmp_path / "run", "--tune", "head*", "--steps", 40, "--lr", 0.05, "--method", "es",
    )  # fmt: skip
    assert trained["loss"] < before["loss"]
    after = answer("eval", tmp_path / "run", "--data", data)
    assert {k: after[k] for k in ("loss", "accuracy")} == {
        k: trained[k] for k in ("loss", "accuracy")
    }


def test_info_of_a_file_and_of_its_bundle(folder: Path) -> None:
    of_file = answer("info", folder / "model.onnx", "--tune", "head*", "--parameters")
    of_bundle = answer("info", folder / "b.edgezo", "--tune", "head*")
    for key in ("parameters", "by_kind", "by_dtype", "weights_mb", "run_mb", "tune_mb"):
        assert of_file[key] == of_bundle[key]
    assert of_file["parameters"] == 72 + 4 + 4 + 4 + 12 + 3
    assert set(of_file["tune_mb"]) == {"full", "head*", "norm", "bitfit"}
    assert of_file["constants"]["a running mean of BatchNormalization"] == 1
    kinds = {row["name"]: row["kind"] for row in of_file["list"]}
    assert kinds["head"] == "linear" and kinds["head_bias"] == "bias"
    assert kinds["variance"] == "constant: a running variance of BatchNormalization"
    assert "running variance" in called("info", folder / "model.onnx").out


def test_an_adapter_in_the_same_command(folder: Path, tmp_path: Path) -> None:
    flags = ("--tune", "lora", "--rank", 2, "--target", "head")
    once, twice = tmp_path / "once.edgezo", tmp_path / "twice.edgezo"
    answer("export", folder / "model.onnx", "--out", once, *flags, "--labels", "cat,dog,owl")
    answer("export", folder / "b.edgezo", "--out", twice, *flags)
    assert open_bundle(once).manifest == open_bundle(twice).manifest
    assert set(answer("info", once)["tune_mb"]) == {"lora"}


def test_refusals(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    model, out = folder / "model.onnx", tmp_path / "b"
    refused(called("export", tmp_path / "text.onnx", "--out", out), 2, "not an ONNX file")
    refused(called("export", tmp_path / "none.onnx", "--out", out), 2, "there is no")
    refused(called("info", tmp_path / "text.onnx"), 2, "not an ONNX file")
    refused(called("info", model, "--tune", "none"), 2, "matches no parameter")
    refused(called("export", model, "--out", out, "--labels", "x.txt"), 2, "x.txt")
    refused(called("export", model, "--out", out, "--output", "y"), 2, "one of 'prob'")
    refused(called("export", folder, "--out", out, "--loss", "mse"), 2, "for .onnx files")
    for flags, sentence in (
        (("--via", "torch", "--dtype", "float16"), "--via and --dtype are for checkpoints"),
        (("--quantize", "int4"), "--quantize is for checkpoints and bundles"),
        (("--task", "classify"), "--task is for models of text"),
        (("--tune", "head"), "needs no other graph"),
    ):
        refused(called("export", model, "--out", out, *flags), 2, sentence)
    made = ("export", folder / "b.edgezo", "--tune", "lora", "--target", "head", "--out", out)
    refused(called(*made, "--dtype", "float16"), 2, "--dtype is for checkpoints")
    refused(called(*made, "--task", "classify"), 2, "--task is for checkpoints")
    words = ("eval", folder / "b.edgezo", "--data", folder / "data.npz")
    refused(called(*words, "--template", "{text}"), 2, "takes arrays")
    refused(called("generate", folder / "b.edgezo", "hello"), 2, "takes arrays")
