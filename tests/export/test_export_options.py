"""The dtype, the task and the front end that an export is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers_text import write_tokenizer
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from tiny_checkpoints import tiny_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import edgezo
from edgezo.cli import cli, export
from edgezo.generate import generate
from edgezo.tasks.make import TASKS
from edgezo_export.convert_dtype import converted, widened
from edgezo_export.huggingface import checkpoint_to_bundle
from edgezo_export.verify import GraphRunner, mapped_weights, reference, sample_batch
from edgezo_runtime import dtypes
from edgezo_runtime.bundle import WEIGHTS, open_bundle
from edgezo_runtime.errors import InputError


def with_tokenizer(source: Path, folder: Path, vocabulary: int) -> Path:
    """Copies a checkpoint, adds a tokenizer, and widens the vocabulary."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": vocabulary}
    write_tokenizer(folder, config=config)
    weights = load_file(folder / WEIGHTS)
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = np.resize(table, (vocabulary, table.shape[1]))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("via", ["torch", "optimum"])
def test_float16_runs_and_is_tuned_by_mezo(
    via: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = with_tokenizer(checkpoint("llama_tied"), tmp_path / "source", 512)
    out = tmp_path / "half.edgezo"
    arguments = [
        "export",
        str(source),
        "--out",
        str(out),
        "--dtype",
        "float16",
        "--task",
        "generate",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--via", via], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    manifest = open_bundle(out).manifest
    assert manifest.task == {"name": "generate"}
    assert {p.dtype for p in manifest.parameters} == {"float16"}
    assert {port.dtype for port in manifest.outputs} == {"float32"}
    assert via == "optimum" or "lean.onnx" in manifest.files
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"
    full = load_file(source / WEIGHTS)
    for name, value in load_file(out / WEIGHTS).items():
        np.testing.assert_array_equal(value, full[name].astype(np.float16))
    model = edgezo.load(out)
    assert generate(model, "the film", max_tokens=3) is not None
    with pytest.raises(InputError, match=r"zo-adam would lose its small updates.*as float32"):
        edgezo.Tuner(model, method="zo-adam")
    assert edgezo.Tuner(model, method="mezo").header["method"] == "mezo"


def test_float16_is_near_float32(
    bundle_folder: Callable[[str], Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    out = checkpoint_to_bundle(checkpoint("opt"), tmp_path / "half.edgezo", dtype="float16")
    inputs = sample_batch(96, 3, 9)
    expected = reference(tiny_model("opt"), inputs)
    for ours, theirs in zip(GraphRunner(open_bundle(out))(inputs), expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2)


def test_bfloat16_is_exported_and_not_run_on_the_cpu(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = with_tokenizer(checkpoint("llama_tied"), tmp_path / "source", 512)
    bundle = open_bundle(checkpoint_to_bundle(source, tmp_path / "b.edgezo", dtype="bfloat16"))
    assert {p.dtype for p in bundle.manifest.parameters} == {"bfloat16"}
    assert {port.dtype for port in bundle.manifest.outputs} == {"float32"}
    model = AutoModelForCausalLM.from_pretrained(bundle.folder, dtype="auto").eval()
    assert model.dtype == torch.bfloat16
    full = load_tensors(source / WEIGHTS)
    stored = load_tensors(bundle.weights)
    assert all(torch.equal(stored[name], full[name].bfloat16()) for name in stored)
    inputs = sample_batch(512, 3, 9)
    weights = {
        name: value.view(ml_dtypes.bfloat16) for name, value in mapped_weights(bundle).items()
    }
    # ONNX's own interpreter has every operator in every dtype.
    graph = ReferenceEvaluator(onnx.load(bundle.graph))
    expected = reference(model, inputs)
    for found, theirs in zip(graph.run(None, inputs | weights), expected, strict=True):
        ours = np.asarray(found)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=5e-2)
    with pytest.raises(
        InputError, match=r"computes in bfloat16.* on the CPU: export the model with"
    ):
        edgezo.load(bundle.folder)


def test_what_bfloat16_is_not_for(
    checkpoint: Callable[[str], Path],
    family_checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    for source, via, why in (
        (checkpoint("opt"), "optimum", "optimum does not export bfloat16"),
        (family_checkpoint("bert"), "torch", "as float32 only"),
    ):
        with pytest.raises(InputError, match=why):
            checkpoint_to_bundle(source, tmp_path / "b.edgezo", via=via, dtype="bfloat16")


def test_every_task_may_be_the_default() -> None:
    (option,) = (p for p in export.command.params if p.name == "task")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == TASKS and "chat" in TASKS


def test_torch_s_own_reason_is_quoted(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plain = LlamaForCausalLM.forward

    def forward(self: LlamaForCausalLM, input_ids: Any, **options: Any) -> Any:
        chosen = input_ids + 1 if input_ids.sum() > 40 else input_ids
        return plain(self, chosen, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    reason = "torch cannot export LlamaForCausalLM: Could not guard on data-dependent expression"
    with pytest.raises(InputError, match=reason):
        checkpoint_to_bundle(checkpoint("llama_tied"), tmp_path / "b.edgezo")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_too_large_for_float16(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint("llama_untied"), tmp_path / "source")
    weights = load_file(source / WEIGHTS)
    weights["model.norm.weight"] = weights["model.norm.weight"] + np.float32(7e4)
    save_file(weights, source / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"'model\.norm\.weight' of .* too large for float16"):
        checkpoint_to_bundle(source, tmp_path / "b.edgezo", dtype="float16")


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0, 2.0**-130]
    bits = converted(values, dtypes.FLOAT32, dtypes.BFLOAT16)
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(bits, expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(widened(bits, dtypes.BFLOAT16), expected.float().numpy())


def test_a_tokenizer_of_another_model(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = with_tokenizer(checkpoint("llama_tied"), tmp_path / "source", 100)
    with pytest.raises(InputError, match=r"does not match its model: its token .* knows 100"):
        checkpoint_to_bundle(source, tmp_path / "b.edgezo")
