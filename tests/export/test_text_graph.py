"""The exported text graph against transformers, at shapes the exporter never saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_checkpoints import MODELS, VOCABULARY, tiny_model

from edgezo_export.text_graph import INPUTS, OUTPUTS, TextGraph, _logsumexp
from edgezo_export.verify import GraphRunner, reference, sample_batch
from edgezo_runtime.bundle import open_bundle


@pytest.mark.parametrize("name", MODELS)
def test_graph_agrees_with_transformers_at_any_shape(
    name: str, bundle_folder: Callable[[str], Path]
) -> None:
    runner = GraphRunner(open_bundle(bundle_folder(name)))
    model = tiny_model(name)
    for batch, length in [(1, 1), (1, 9), (5, 1), (4, 33), (2, 64)]:
        inputs = sample_batch(VOCABULARY, batch, max(length, 2), seed=length)
        for ours, theirs in zip(runner(inputs), reference(model, inputs), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_one_row_one_answer_one_candidate(name: str, bundle_folder: Callable[[str], Path]) -> None:
    runner = GraphRunner(open_bundle(bundle_folder(name)))
    inputs = {
        "input_ids": np.array([[7]]),
        "attention_mask": np.array([[1]]),
        "positions": np.array([0]),
        "targets": np.array([3]),
        "candidates": np.array([11]),
    }
    logprobs, candidates = runner(inputs)
    assert logprobs.shape == (1,)
    assert candidates.shape == (1, 1)
    for ours, theirs in zip(
        (logprobs, candidates), reference(tiny_model(name), inputs), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name: str, bundle_folder: Callable[[str], Path]) -> None:
    runner = GraphRunner(open_bundle(bundle_folder(name)))
    inputs = sample_batch(VOCABULARY, 3, 8)
    rows, times = np.divmod(inputs["positions"], 8)
    padding = ((0, 0), (0, 5))
    wider = inputs | {
        "input_ids": np.pad(inputs["input_ids"], padding, constant_values=9),
        "attention_mask": np.pad(inputs["attention_mask"], padding),
        "positions": rows * 13 + times,
    }
    for narrow, wide in zip(runner(inputs), runner(wider), strict=True):
        np.testing.assert_allclose(wide, narrow, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_inputs_under_their_checkpoint_keys(
    name: str, bundle_folder: Callable[[str], Path]
) -> None:
    graph = onnx.load(bundle_folder(name) / "graph.onnx").graph
    expected = {key: tuple(value.shape) for key, value in tiny_model(name).named_parameters()}
    shapes = {
        value.name: tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim)
        for value in graph.input
    }
    assert list(shapes) == [*INPUTS, *expected]
    assert {key: shapes[key] for key in expected} == expected
    assert [value.name for value in graph.output] == list(OUTPUTS)
    assert shapes["input_ids"] == ("batch", "length")
    assert sum(len(tensor.raw_data) for tensor in graph.initializer) < 1000


TIED = {
    "llama_tied": "model.embed_tokens.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "opt_post_norm": "model.decoder.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "qwen2": "model.embed_tokens.weight",
}


@pytest.mark.parametrize("name", MODELS)
def test_tied_weights_appear_once(name: str, bundle_folder: Callable[[str], Path]) -> None:
    parameters = open_bundle(bundle_folder(name)).manifest.parameters
    aliases = {p.name: p.aliases for p in parameters if p.aliases}
    assert aliases == ({TIED[name]: ("lm_head.weight",)} if name in TIED else {})
    assert ("lm_head.weight" in {p.name for p in parameters}) == (name not in TIED)


def test_kinds_follow_the_modules(bundle_folder: Callable[[str], Path]) -> None:
    kinds = {p.name: p.kind for p in open_bundle(bundle_folder("opt")).manifest.parameters}
    assert kinds["model.decoder.embed_positions.weight"] == "embedding"
    assert kinds["model.decoder.layers.1.fc1.weight"] == "linear"
    assert kinds["model.decoder.layers.1.fc1.bias"] == "bias"
    assert kinds["model.decoder.final_layer_norm.weight"] == "norm"
    assert kinds["model.decoder.final_layer_norm.bias"] == "bias"


def test_full_logits_never_exist() -> None:
    model = tiny_model("llama_tied")
    seen: list[torch.Size] = []
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    inputs = {k: torch.from_numpy(v) for k, v in sample_batch(VOCABULARY, 3, 8).items()}
    TextGraph(model)(**inputs)
    assert seen == [(6, VOCABULARY)]
    model(inputs["input_ids"])
    assert seen[1:] == [(3, 8, VOCABULARY)]  # the wrapper leaves no hook behind


@pytest.mark.parametrize("vocabulary", [96, 97, 4099, 50272, 50257])
def test_logsumexp_in_two_levels(vocabulary: int) -> None:
    logits = torch.randn((4, vocabulary), generator=torch.Generator().manual_seed(0)) * 9
    expected = logits.double().logsumexp(dim=1)
    torch.testing.assert_close(_logsumexp(logits).double(), expected, rtol=0, atol=1e-5)
