"""The generation graph beside transformers' own generation, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_checkpoints import MODELS, VOCABULARY, misread, tiny_model

from edgezo_export.verify_generation import (
    check_reach,
    check_reading,
    open_generation,
    verify_generation,
)
from edgezo_runtime.bundle import GENERATE, open_bundle
from edgezo_runtime.errors import EdgezoError, InputError


@pytest.mark.parametrize("name", MODELS)
def test_it_agrees_with_transformers(name: str, bundle_folder: Callable[[str], Path]) -> None:
    assert verify_generation(bundle_folder(name), tiny_model(name)) < 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_no_layers_sizes_are_made_of_those_below(
    name: str, bundle_folder: Callable[[str], Path]
) -> None:
    """Sizes that nest from layer to layer make the export of a deep model take for ever."""
    for file in ("graph.onnx", "generate.onnx"):
        graph = onnx.load(bundle_folder(name) / file).graph
        sizes = {
            d.dim_param
            for value in (*graph.value_info, *graph.output)
            for d in value.type.tensor_type.shape.dim
        }
        assert len(sizes) <= 8, sorted(sizes)
        # "Max(0, s53 - Max(0, s53 - new))", the end of a slice of the mask, is the longest known.
        assert max(map(len, sizes)) < 40, sorted(sizes, key=len)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(
    name: str, bundle_folder: Callable[[str], Path]
) -> None:
    session, _ = open_generation(open_bundle(bundle_folder(name)))
    tokens = np.random.default_rng(4).integers(3, VOCABULARY, (3, 9))
    mask = (np.arange(9) >= np.array([[0], [4], [8]])).astype(np.int64)
    model: Any = tiny_model(name)
    theirs = model.generate(
        torch.from_numpy(tokens * mask),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    cache = session.start(3)
    chosen = [session.read(cache, tokens * mask, mask).argmax(axis=1)]
    while len(chosen) < 20:
        chosen.append(session.read(cache, chosen[-1][:, None]).argmax(axis=1))
    np.testing.assert_array_equal(np.stack(chosen, axis=1), theirs[:, 9:].numpy())


@pytest.mark.parametrize("name", MODELS)
def test_a_text_may_be_read_in_pieces(name: str, bundle_folder: Callable[[str], Path]) -> None:
    session, _ = open_generation(open_bundle(bundle_folder(name)))
    tokens = np.random.default_rng(5).integers(3, VOCABULARY, (2, 64))
    whole = session.read(session.start(2), tokens)
    cache = session.start(2)
    for start, end in ((0, 1), (1, 30), (30, 31), (31, 64)):
        pieces = session.read(cache, tokens[:, start:end])
    assert cache.mask.shape == tokens.shape
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_the_text_graphs_parameters(
    name: str, bundle_folder: Callable[[str], Path]
) -> None:
    folder = bundle_folder(name)
    graphs = [onnx.load(folder / file).graph for file in ("graph.onnx", "generate.onnx")]
    parameters = [p.name for p in open_bundle(folder).manifest.parameters]
    for graph in graphs:
        assert [value.name for value in graph.input][-len(parameters) :] == parameters
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*graphs[1].input, *graphs[1].output)
        if value.name not in parameters
    }
    config = tiny_model(name).config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    cache = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert shapes == {
        "input_ids": ["batch", "new"],
        "attention_mask": ["batch", "past + new"],
        **{f"past_key_values.{part}": ["batch", heads, "past", 8] for part in cache},
        "logits": ["batch", VOCABULARY],
        **{f"present.{part}": ["batch", heads, "past + new", 8] for part in cache},
    }
    assert sum(len(tensor.raw_data) for tensor in graphs[1].initializer) < 5000  # GPT-2 has a mask


def test_other_weights_fail_the_comparison(bundle_folder: Callable[[str], Path]) -> None:
    session, weights = open_generation(open_bundle(bundle_folder("llama_tied")))
    norm = weights.arrays()["model.norm.weight"]
    session.bind("model.norm.weight", norm * np.float32(1.01))
    with pytest.raises(EdgezoError, match="differs from transformers"):
        check_reading(session, tiny_model("llama_tied"))


@pytest.mark.parametrize("part", ["fc1.bias", "self_attn.q_proj.weight"])
def test_a_dead_weight_is_named(part: str, bundle_folder: Callable[[str], Path]) -> None:
    bundle = open_bundle(bundle_folder("opt"))
    _, weights = open_generation(bundle)
    dead, other = (f"model.decoder.layers.{i}.{part}" for i in (1, 0))
    with pytest.raises(InputError, match=dead):
        check_reach(misread(bundle.read_graph(GENERATE), dead, other), weights.arrays(), VOCABULARY)


@pytest.mark.parametrize("name", ["llama_tied", "qwen2_window", "mistral_window"])
def test_keys_and_values_are_not_copied_for_each_query_head(
    name: str, bundle_folder: Callable[[str], Path]
) -> None:
    graph = onnx.load(bundle_folder(name) / "generate.onnx").graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
    assert max(ranks.values()) == 4  # repeating them takes an axis more
    scores = [node.input[0] for node in graph.node if node.op_type == "Softmax"]
    assert [ranks[score] for score in scores] == [4, 4]
