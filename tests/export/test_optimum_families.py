"""Masked language models, classifiers and T5 by way of optimum, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_families import FORMS
from test_optimum import optimum_folder
from tiny_checkpoints import rows_gathered
from tiny_families import FAMILIES, VOCABULARY, tiny_family

from edgezo_export.encoder_decoder import DECODER_FILE, ENCODER_FILE
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


@pytest.mark.parametrize("name", FAMILIES)
def test_optimum_exports_it(
    name: str, family_checkpoint: Folder, family_bundle: Folder, tmp_path: Path
) -> None:
    out = checkpoint_to_bundle(family_checkpoint(name), tmp_path / "b.edgezo", via="optimum")
    assert_is(out, name)
    ours, theirs = open_bundle(out).manifest, open_bundle(family_bundle(name)).manifest
    assert ours.parameters == theirs.parameters
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
    assert rows_gathered(out) == rows_gathered(family_bundle(name))


@pytest.mark.parametrize(("name", "task"), [("bert", "fill-mask"), ("llama_head", None)])
def test_folders_that_optimum_wrote(name: str, task: str | None, tmp_path: Path) -> None:
    """With constants folded, as `optimum-cli export onnx` does, and without the checkpoint."""
    source = optimum_folder(tiny_family(name), tmp_path, task or "text-classification")
    assert_is(checkpoint_to_bundle(source, tmp_path / "b.edgezo"), name)


def test_the_halves_of_t5_that_optimum_wrote(tmp_path: Path) -> None:
    """As `optimum-cli` does by default: folded, and with caches that the decoder gives."""
    source = optimum_folder(tiny_family("t5"), tmp_path, "text2text-generation-with-past")
    assert_is(checkpoint_to_bundle(source, tmp_path / "b.edgezo"), "t5")
    (source / ENCODER_FILE).write_bytes((source / DECODER_FILE).read_bytes())
    with pytest.raises(InputError, match="do not fit together, for want of 'attention_mask'"):
        checkpoint_to_bundle(source, tmp_path / "other.edgezo")
    assert not (tmp_path / "other.edgezo").exists()
