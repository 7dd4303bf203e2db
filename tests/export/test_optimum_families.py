"""Masked language models and classifiers by way of optimum, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_families import FORMS
from test_optimum import optimum_folder
from tiny_families import VOCABULARY, tiny_family

from edgezo_export.huggingface import checkpoint_to_bundle
from edgezo_export.verify import GraphRunner, reference, sample_batch
from edgezo_runtime.bundle import WEIGHTS, open_bundle
from edgezo_runtime.errors import InputError

Folder = Callable[[str], Path]


def assert_is(folder: Path, name: str) -> None:
    """Compares a bundle with the tiny model `name`: its weights, and what it computes."""
    model = tiny_family(name)
    weights = load_file(folder / WEIGHTS)
    expected = {key: value.detach().numpy() for key, value in model.named_parameters()}
    assert list(expected) == [p.name for p in open_bundle(folder).manifest.parameters]
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value)
    runner = GraphRunner(open_bundle(folder))
    assert runner.form == FORMS[name]
    for rows, length in [(1, 2), (4, 33)]:
        batch = sample_batch(
            VOCABULARY, rows, length, length, runner.form, model.config.pad_token_id
        )
        for ours, theirs in zip(runner(batch), reference(model, batch), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "bert_head", "roberta_head", "gpt2_head"])
def test_optimum_exports_it(name: str, family_checkpoint: Folder, tmp_path: Path) -> None:
    source = family_checkpoint(name)
    assert_is(checkpoint_to_bundle(source, tmp_path / "b.edgezo", via="optimum"), name)


@pytest.mark.parametrize(("name", "task"), [("bert", "fill-mask"), ("llama_head", None)])
def test_folders_that_optimum_wrote(name: str, task: str | None, tmp_path: Path) -> None:
    """With constants folded, as `optimum-cli export onnx` does, and without the checkpoint."""
    source = optimum_folder(tiny_family(name), tmp_path, task or "text-classification")
    assert_is(checkpoint_to_bundle(source, tmp_path / "b.edgezo"), name)


def test_t5_is_not_read(family_checkpoint: Folder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="T5 are exported via torch only"):
        checkpoint_to_bundle(family_checkpoint("t5"), tmp_path / "b.edgezo", via="optimum")
