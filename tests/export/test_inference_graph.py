"""`model.onnx` of each kind of model: a text to what transformers gives, arrays to the file's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from foreign_files import SOFTMAX, classifier, save
from tiny_families import VOCABULARY, tiny_family

from edgezo_export.inference_graph import MODEL, write_inference_graph
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime.bundle import WEIGHTS, open_bundle
from edgezo_runtime.ort import onnxruntime

Folder = Callable[[str], Path]


def written(bundle: Path, folder: Path) -> Path:
    """Writes a bundle's weights and its `model.onnx` into `folder`."""
    shutil.copyfile(bundle / WEIGHTS, folder / WEIGHTS)
    write_inference_graph(open_bundle(bundle), folder)
    return folder / MODEL


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {node.name for node in session.get_inputs()} == feeds.keys()
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("name", ["bert", "bert_head", "roberta_head", "gpt2_head", "t5"])
def test_logits_are_those_of_transformers(name: str, family_bundle: Folder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = {
        "input_ids": rng.integers(5, VOCABULARY, (3, 9)),
        "attention_mask": (np.arange(9) < np.array([[9], [4], [6]])).astype(np.int64),
    }
    if name == "t5":
        feeds["decoder_input_ids"] = rng.integers(5, VOCABULARY, (3, 4))
    found = run(written(family_bundle(name), tmp_path), feeds)
    assert found.keys() == {"logits"}
    model = tiny_family(name)
    for row in range(3):  # each alone, so that transformers needs no padding
        length = int(feeds["attention_mask"][row].sum())
        text = {"input_ids": torch.from_numpy(feeds["input_ids"][row : row + 1, :length])}
        if name == "t5":
            text["decoder_input_ids"] = torch.from_numpy(feeds["decoder_input_ids"][row : row + 1])
        with torch.no_grad():
            expected = model(**text).logits.numpy()[0]
        ours = found["logits"][row]
        ours = ours[:length] if name == "bert" else ours
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("end", [("", "scores"), (SOFTMAX, "prob")])
def test_a_tuned_file_is_a_file_again(end: tuple[str, str], tmp_path: Path) -> None:
    source = save(classifier(*end), tmp_path / "source.onnx")
    onnx_to_bundle(source, tmp_path / "b.edgezo")
    again = written(tmp_path / "b.edgezo", tmp_path)
    feeds = {"image": np.random.default_rng(1).normal(size=(3, 2, 6, 6)).astype(np.float32)}
    ours, theirs = run(again, feeds), run(source, feeds)
    assert ours.keys() == theirs.keys() == {end[1]}
    np.testing.assert_allclose(ours[end[1]], theirs[end[1]], rtol=1e-5, atol=1e-6)
    ports = [[v.name for v in onnx.load(path).graph.input] for path in (again, source)]
    assert ports[0] == ports[1] == ["image"]
