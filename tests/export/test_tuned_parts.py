"""`--tune head`, `norm` and `bitfit` change what they say in real models, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers_text import write_tokenizer
from safetensors.numpy import load_file
from tiny_checkpoints import MODELS, VOCABULARY, tiny_model
from tiny_families import VOCABULARY as FAMILY_VOCABULARY
from tiny_families import tiny_family
from transformers import PreTrainedModel

import edgezo
from edgezo_export.verify import sample_batch
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import WEIGHTS
from edgezo_runtime.errors import InputError

Folder = Callable[[str], Path]
HEADS = {"llama_untied": "lm_head", "opt_head": "score", "llama_head": "score"}


def named_by_torch(model: PreTrainedModel, name: str, what: str) -> set[str]:
    """Returns the parameters that `what` is, read off the modules of transformers."""
    if what == "bitfit":
        return {key for key, _ in model.named_parameters() if key.endswith("bias")}
    paths = [HEADS.get(name, "classifier")]
    if what == "norm":
        paths = [path for path, module in model.named_modules() if "Norm" in type(module).__name__]
    return {
        f"{path}.{leaf}"
        for path in paths
        for leaf, _ in model.get_submodule(path).named_parameters()
    }


@pytest.fixture
def any_bundle(bundle_folder: Folder, family_bundle: Folder, tmp_path: Path) -> Folder:
    """Returns a tiny bundle; those without a tokenizer get one, which nothing here reads."""

    def folder(name: str) -> Path:
        if name not in MODELS:
            return family_bundle(name)
        bundle = shutil.copytree(bundle_folder(name), tmp_path / f"{name}.edgezo")
        tokenizer = write_tokenizer(tmp_path / "tokenizer") / "tokenizer.json"
        shutil.copyfile(tokenizer, bundle / "tokenizer.json")
        return bundle

    return folder


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("llama_untied", "head"),
        ("llama_untied", "norm"),
        ("llama_head", "head"),
        ("opt", "norm"),
        ("opt", "bitfit"),
        ("opt_head", "head"),
        ("bert_head", "head"),
        ("bert_head", "norm"),
        ("bert_head", "bitfit"),
        ("t5_gated", "norm"),
    ],
)
def test_steps_change_what_is_said_alone(
    name: str, what: str, any_bundle: Folder, tmp_path: Path
) -> None:
    base = any_bundle(name)
    model = edgezo.load(base, tune=what, threads=1)
    torch_model = tiny_model(name) if name in MODELS else tiny_family(name)
    expected = named_by_torch(torch_model, name, what)
    assert expected and set(model.arena.views) == expected  # in memory to be written, too
    words = VOCABULARY if name in MODELS else FAMILY_VOCABULARY
    form = model.bundle.manifest.form
    batch = Batch(**sample_batch(words, 3, 9, form=form), objective=TokenLoss(3))
    tuner = edgezo.Tuner(model, method="mezo", lr=1e-3)
    for _ in range(2):
        tuner.step(batch)
    tuned = load_file(tuner.save(tmp_path / "run") / WEIGHTS)
    before = load_file(base / WEIGHTS)
    assert tuned.keys() == before.keys()
    changed = {key for key, value in before.items() if not np.array_equal(tuned[key], value)}
    assert changed == expected


@pytest.mark.parametrize(
    ("name", "what", "sentence"),
    [
        ("llama_tied", "bitfit", "--tune bitfit needs biases, and this model has none: try"),
        ("t5", "bitfit", "--tune bitfit needs biases, and this model has none: try"),
        ("opt", "head", "tied to 'model.decoder.embed_tokens.weight', so tuning it tunes the"),
    ],
)
def test_what_a_model_has_not(name: str, what: str, sentence: str, any_bundle: Folder) -> None:
    with pytest.raises(InputError, match=sentence):
        edgezo.load(any_bundle(name), tune=what)
