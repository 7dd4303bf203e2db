"""A tiny language model as a bundle, and data to tune it on, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edgezo_runs import labelled, succeed, train_words, words, write_rows
from helpers_text import write_tokenizer
from shared_folders import shared

import edgezo
from edgezo_runtime.batch import BaseBatch


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a tokenizer, as a Hugging Face folder."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    kept = (folder / "config.json").read_bytes()
    write_tokenizer(folder)
    (folder / "config.json").write_bytes(kept)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a bundle."""
    from edgezo_export.huggingface import checkpoint_to_bundle

    def make(out: Path) -> None:
        checkpoint_to_bundle(tiny_checkpoint, out)

    return shared(tmp_path_factory, "tiny.edgezo", make)


@pytest.fixture(scope="session")
def derived_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its graphs of gradients and of tangents."""
    from edgezo_export.gradients.bundle import add_to_bundle
    from edgezo_runtime.bundle import TANGENTS, open_bundle

    def make(out: Path) -> None:
        gradients = tmp_path_factory.mktemp("gradients") / "tiny.edgezo"
        add_to_bundle(open_bundle(tiny_bundle), gradients)
        add_to_bundle(open_bundle(gradients), out, TANGENTS)

    return shared(tmp_path_factory, "derived.edgezo", make)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JSONL files."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", labelled(120))
    write_rows(folder / "dev.jsonl", labelled(60, first=500))
    write_rows(folder / "text.jsonl", ({"text": words(i, 3 + i % 20)} for i in range(60)))
    write_rows(
        folder / "completion.jsonl",
        ({"prompt": words(i, 3 + i % 5), "completion": " " + words(i + 1, 2)} for i in range(60)),
    )
    return folder


@pytest.fixture(scope="session")
def reference(tiny_bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 210 steps that nothing interrupted."""
    out = tmp_path_factory.mktemp("reference") / "run"
    succeed(*train_words(tiny_bundle, data, out))
    return out


@pytest.fixture
def model(tiny_bundle: Path) -> edgezo.Model:
    """The tiny model, loaded."""
    return edgezo.load(tiny_bundle, threads=1)


@pytest.fixture
def batches(model: edgezo.Model, data: Path) -> Iterator[BaseBatch]:
    """Batches of the training rows, without end."""
    return edgezo.batches(data / "train.jsonl", model, batch_size=4, epochs=None)
