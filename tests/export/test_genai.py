"""Graphs of onnxruntime-genai's model builder: the checkpoint's parameters, and its logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers_text import write_tokenizer
from safetensors.numpy import load_file
from tiny_checkpoints import rows_gathered
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import edgezo
from edgezo.cli import cli
from edgezo_export.adapters.base import adapt
from edgezo_export.genai_file import genai_to_bundle
from edgezo_export.lift import ParameterNames
from edgezo_export.verify import GraphRunner, reference, sample_batch
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError

builder = pytest.importorskip("onnxruntime_genai.models.builder")
VOCABULARY = 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # heads of 16, the least that its attention takes
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL: dict[str, Any] = SIZES | {"hidden_size": 32}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "qwen2_tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "small_heads": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
}
Folders = Callable[[str], tuple[Path, Path]]


def build(source: Path, out: Path, precision: str = "fp32") -> Path:
    """Runs the builder, and returns its file."""
    cache = str(out.parent / "cache")
    builder.create_model("", str(source), str(out), precision, "cpu", cache)
    return out / "model.onnx"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Returns the folder of a tiny checkpoint, and the builder's file of it, made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def folders(name: str) -> tuple[Path, Path]:
        if name not in made:
            source = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            model = MODELS[name]()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 1:
                        parameter += 0.1 * torch.randn_like(parameter)
            write_tokenizer(source, eos_token="</s>", tokenizer_class="PreTrainedTokenizerFast")
            model.save_pretrained(source)
            made[name] = source, build(source, source.with_name(f"{source.name}-built"))
        return made[name]

    return folders


@pytest.mark.parametrize("name", ["llama", "qwen2_tied", "mistral_window"])
def test_it_is_the_checkpoint_s_bundle(name: str, built: Folders, tmp_path: Path) -> None:
    checkpoint, file = built(name)
    genai_to_bundle(file, tmp_path / "b.edgezo", {"name": "chat"})
    bundle = open_bundle(tmp_path / "b.edgezo")
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    names = ParameterNames.of(model)
    assert {p.name: p.kind for p in bundle.manifest.parameters} == names.kinds
    assert [p.name for p in bundle.manifest.parameters] == list(names.kinds)
    assert {p.name: p.aliases for p in bundle.manifest.parameters if p.aliases} == names.aliases
    stored, theirs = load_file(bundle.weights), load_file(checkpoint / "model.safetensors")
    assert all(np.array_equal(stored[key], theirs[key]) for key in names.kinds)
    assert rows_gathered(bundle.folder) == [64, 64]  # what the last attention gives, and its skip
    for batch in (sample_batch(VOCABULARY, 3, 11), sample_batch(VOCABULARY, 1, 7, seed=1)):
        for ours, want in zip(GraphRunner(bundle)(batch), reference(model, batch), strict=True):
            np.testing.assert_allclose(ours, want, rtol=0, atol=1e-4)
    assert bundle.manifest.context_length == 64 and bundle.manifest.task == {"name": "chat"}
    adapted = adapt(bundle, {"kind": "lora"})
    assert adapted.manifest.adapter["target"] == ["q_proj", "v_proj"]


def test_the_command_line(built: Folders, tmp_path: Path) -> None:
    checkpoint, file = built("llama")
    out = tmp_path / "b.edgezo"
    done = CliRunner().invoke(cli, ["export", str(file), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["difference"] < 1e-4
    model = edgezo.load(out, threads=1)
    ids = torch.tensor([model.tokenizer.encode("the film")])
    theirs: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    nameless = list(range(model.tokenizer.size, VOCABULARY))  # the tokenizer is smaller
    told = theirs.generate(ids, max_new_tokens=6, do_sample=False, suppress_tokens=nameless)
    tokens = [t for t in told[0, ids.shape[1] :].tolist() if t not in model.tokenizer.stop_ids]
    assert edgezo.generate(model, "the film", 6) == model.tokenizer.decode(tokens)
    words = ["export", str(file), "--out", str(tmp_path / "no"), "--loss", "mse"]
    assert "leave --output, --loss" in str(CliRunner().invoke(cli, words).exception)


def test_what_is_not_read(built: Folders, tmp_path: Path) -> None:
    checkpoint, file = built("llama")
    small = build(checkpoint, tmp_path / "int4", "int4")
    with pytest.raises(InputError, match=r"weight_Q4', uint8.* built with -p fp32"):
        genai_to_bundle(small, tmp_path / "b.edgezo")
    folder = shutil.copytree(file.parent, tmp_path / "copy")
    (folder / "genai_config.json").write_text('{"model": {"vocab_size": 512}}', "utf-8")
    with pytest.raises(InputError, match="context_length"):
        genai_to_bundle(folder / "model.onnx", tmp_path / "b.edgezo")
    shutil.copyfile(file.parent / "genai_config.json", folder / "genai_config.json")
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.attribute[:]
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(InputError, match="no graph that the model builder writes"):
        genai_to_bundle(folder / "model.onnx", tmp_path / "b.edgezo")
    assert not (tmp_path / "b.edgezo").exists()


def test_a_file_that_its_own_runtime_refuses(built: Folders, tmp_path: Path) -> None:
    _, file = built("small_heads")  # of 8
    with pytest.raises(InputError, match=r"does not run in ONNX Runtime.*multiple of 16"):
        genai_to_bundle(file, tmp_path / "b.edgezo")
    assert not (tmp_path / "b.edgezo").exists()
