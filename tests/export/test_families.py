"""Masked language models, sequence classifiers and T5: their graphs against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from tiny_families import CONTEXT, FAMILIES, LABELS, VOCABULARY, tiny_family

from edgezo_export.huggingface import checkpoint_to_bundle
from edgezo_export.verify import (
    GraphRunner,
    check_mutations,
    check_parity,
    reference,
    sample_batch,
)
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import EdgezoError, InputError

Folder = Callable[[str], Path]
FORMS = {
    "bert": {"kind": "masked"},
    "roberta": {"kind": "masked"},
    "bert_head": {"kind": "head", "position": 0, "labels": list(LABELS)},
    "roberta_head": {"kind": "head", "position": 0, "labels": list(LABELS)},
    "gpt2_head": {"kind": "head", "position": -1, "labels": list(LABELS)},
    "llama_head": {"kind": "head", "position": -1, "labels": list(LABELS)},
    "opt_head": {"kind": "head", "position": -1, "labels": list(LABELS)},
    "qwen2_head": {"kind": "head", "position": -1, "labels": list(LABELS)},
    "t5": {"kind": "seq2seq", "decoder_start": 0},
    "t5_gated": {"kind": "seq2seq", "decoder_start": 0},
}


def edited(source: Path, folder: Path, **changes: object) -> Path:
    """Copies a checkpoint and changes its config; None removes a key."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_graph_agrees_with_transformers_at_any_shape(name: str, family_bundle: Folder) -> None:
    runner = GraphRunner(open_bundle(family_bundle(name)))
    model = tiny_family(name)
    for batch, length in [(1, 2), (4, 33), (2, CONTEXT)]:
        inputs = sample_batch(
            VOCABULARY, batch, length, length, runner.form, model.config.pad_token_id
        )
        for ours, theirs in zip(runner(inputs), reference(model, inputs), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_and_no_other_is_an_input(name: str, family_bundle: Folder) -> None:
    bundle = open_bundle(family_bundle(name))
    shapes = {p.name: p.shape for p in bundle.manifest.parameters}
    assert shapes == {key: tuple(v.shape) for key, v in tiny_family(name).named_parameters()}
    check_mutations(GraphRunner(bundle), VOCABULARY)
    graph = onnx.load(bundle.graph).graph
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(np.prod(t.dims, dtype=int) for t in floats) < 32
    assert bundle.manifest.form == FORMS[name]
    assert bundle.manifest.context_length == CONTEXT


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_nothing(name: str, family_bundle: Folder) -> None:
    runner = GraphRunner(open_bundle(family_bundle(name)))
    inputs = sample_batch(VOCABULARY, 3, 8, form=runner.form)
    padding = ((0, 0), (0, 5))
    wider = inputs | {
        "input_ids": np.pad(inputs["input_ids"], padding, constant_values=9),
        "attention_mask": np.pad(inputs["attention_mask"], padding),
    }
    read = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    rows, times = np.divmod(inputs["positions"], inputs[read].shape[1])
    wider |= {read: np.pad(inputs[read], padding, constant_values=9)}
    wider["positions"] = rows * wider[read].shape[1] + times
    for narrow, wide in zip(runner(inputs), runner(wider), strict=True):
        np.testing.assert_allclose(wide, narrow, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta_head", "t5_gated"])
def test_other_weights_fail_the_comparison(name: str, family_bundle: Folder) -> None:
    runner = GraphRunner(open_bundle(family_bundle(name)))
    last = runner.parameters[-1].name
    runner.bind(last, runner.weights[last] * np.float32(1.01))
    with pytest.raises(EdgezoError, match="differs from transformers"):
        check_parity(runner, tiny_family(name))


def test_only_the_answers_rows_pass_the_last_block(family_bundle: Folder) -> None:
    graph = onnx.load(family_bundle("bert") / "graph.onnx").graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.value_info
    }
    wide = [shapes[name] for node in graph.node for name in node.output if node.op_type == "Erf"]
    assert wide == [["batch", "length", 48], ["answers", 48], ["answers", 32]]


def test_tied_weights_appear_once(family_bundle: Folder) -> None:
    aliases = {
        name: {p.name: p.aliases for p in open_bundle(family_bundle(name)).manifest.parameters}
        for name in ("bert", "roberta", "t5", "t5_gated")
    }
    assert aliases["bert"]["bert.embeddings.word_embeddings.weight"] == (
        "cls.predictions.decoder.weight",
    )
    assert aliases["bert"]["cls.predictions.bias"] == ("cls.predictions.decoder.bias",)
    assert aliases["roberta"]["lm_head.bias"] == ("lm_head.decoder.bias",)
    assert aliases["t5"]["shared.weight"][-1] == "lm_head.weight"
    assert aliases["t5_gated"]["lm_head.weight"] == ()


def test_first_names_of_layer_norms_and_unused_heads(
    family_checkpoint: Folder, family_bundle: Folder, tmp_path: Path
) -> None:
    """As in bert-base-uncased: gamma and beta, a pooler, and a head for pairs of sentences."""
    source = shutil.copytree(family_checkpoint("bert"), tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    old = {
        key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for key, value in weights.items()
    }
    assert old.keys() != weights.keys()
    old["bert.pooler.dense.weight"] = np.ones((32, 32), np.float32)
    old["cls.seq_relationship.bias"] = np.ones(2, np.float32)
    save_file(old, source / "model.safetensors", metadata={"format": "pt"})
    out = checkpoint_to_bundle(source, tmp_path / "b.edgezo")
    ours, theirs = (load_file(p / "model.safetensors") for p in (out, family_bundle("bert")))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
        ("bert_head", {"id2label": {"0": "x"}, "label2id": {"x": 0}}, "has 1 labels"),
        ("gpt2_head", {"problem_type": "multi_label_classification"}, "choose one of two or more"),
        ("t5", {"decoder_start_token_id": None}, "names no decoder_start_token_id"),
    ],
)
def test_refused_checkpoints(
    name: str,
    changes: dict[str, object],
    message: str,
    family_checkpoint: Folder,
    tmp_path: Path,
) -> None:
    source = edited(family_checkpoint(name), tmp_path / "source", **changes)
    if "id2label" in changes:
        weights = load_file(source / "model.safetensors")
        cut = {key: v[:1].copy() if key.startswith("cl") else v for key, v in weights.items()}
        save_file(cut, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        checkpoint_to_bundle(source, tmp_path / "b.edgezo")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_head_without_a_padding_token(family_checkpoint: Folder, tmp_path: Path) -> None:
    """transformers refuses batches of such a model; edgezo knows each row's last token."""
    source = edited(family_checkpoint("gpt2_head"), tmp_path / "source", pad_token_id=None)
    assert checkpoint_to_bundle(source, tmp_path / "b.edgezo").is_dir()
