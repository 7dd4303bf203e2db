"""A prefix put into a graph computes what transformers does with past keys and values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from peft import PeftModel
from test_lora import outputs
from tiny_checkpoints import VOCABULARY
from transformers import AutoModelForCausalLM, DynamicCache

from edgezo_export.adapters.base import adapt
from edgezo_export.adapters.prefix import add_prefix
from edgezo_export.verify import sample_batch
from edgezo_runtime import adapter_init
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.noise import Purpose, random_words
from edgezo_runtime.peft_prefix import write_prefix
from edgezo_runtime.weights import Weights

BUNDLES = Callable[[str], Path]
NAMES = ("opt", "llama_tied", "gpt2", "qwen2")


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_computes_what_transformers_does(name: str, bundle_folder: BUNDLES) -> None:
    bundle = adapt(open_bundle(bundle_folder(name)), {"kind": "prefix", "virtual_tokens": 3})
    added = [p for p in bundle.manifest.parameters if p.init]
    assert [p.name for p in added] == [
        f"prefix.{layer}.{what}" for layer in (0, 1) for what in ("keys", "values")
    ]
    heads = 4 if name in ("opt", "gpt2") else 2  # Llama's four query heads share two key heads
    assert all(p.shape == (1, heads, 3, 8) for p in added)
    generator = np.random.default_rng(2)
    first = {p.name: generator.standard_normal(p.shape, np.float32) for p in added}
    batch = sample_batch(VOCABULARY, 3, 11)
    model = AutoModelForCausalLM.from_pretrained(bundle.folder, attn_implementation="eager").eval()
    past = DynamicCache()
    for layer in (0, 1):
        keys, values = (
            torch.from_numpy(first[f"prefix.{layer}.{what}"]).expand(3, -1, -1, -1)
            for what in ("keys", "values")
        )
        past.update(keys, values, layer)
    ids, mask = (torch.from_numpy(batch[n]) for n in ("input_ids", "attention_mask"))
    with torch.no_grad():
        logits = model(
            ids,
            attention_mask=torch.cat([torch.ones((3, 3), dtype=torch.int64), mask], dim=1),
            position_ids=torch.arange(11).expand(3, -1),  # as in MeZO: not after the prefix
            past_key_values=past,
            use_cache=True,
        ).logits
    rows = logits.reshape(-1, VOCABULARY)[batch["positions"]]
    expected = [
        rows.log_softmax(1).gather(1, torch.from_numpy(batch["targets"])[:, None])[:, 0].numpy(),
        rows[:, batch["candidates"]].numpy(),
    ]
    plain = outputs(open_bundle(bundle.folder), {}, batch)
    for ours, want, base in zip(outputs(bundle, first, batch), expected, plain, strict=True):
        assert np.abs(want - base).max() > 0.1
        np.testing.assert_allclose(ours, want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_as_keys_and_values_of_tokens(name: str, bundle_folder: BUNDLES) -> None:
    bundle = adapt(open_bundle(bundle_folder(name)), {"kind": "prefix"})
    weights = Weights(bundle)
    first = adapter_init.draw(weights.arena.parameters, 9, weights.frozen(), bundle)
    words = random_words(9, Purpose.ADAPTER_INIT, 0, 5)[0]
    tokens = torch.from_numpy(words.astype(np.int64) % VOCABULARY)
    model = AutoModelForCausalLM.from_pretrained(bundle.folder, attn_implementation="eager")
    with torch.no_grad():
        past = model(tokens[None], use_cache=True).past_key_values
    assert list(first) == [p.name for p in weights.arena.parameters]
    for layer in (0, 1):
        for what, cached in zip(("keys", "values"), past[layer], strict=True):
            np.testing.assert_allclose(
                first[f"prefix.{layer}.{what}"], cached.numpy(), atol=1e-4, rtol=1e-5
            )


def test_peft_computes_the_same(bundle_folder: BUNDLES, tmp_path: Path) -> None:
    folder = bundle_folder("llama_tied")  # two query heads share a key head
    bundle = adapt(open_bundle(folder), {"kind": "prefix", "virtual_tokens": 7})
    generator = np.random.default_rng(3)
    added = [p for p in bundle.manifest.parameters if p.init]
    first = {p.name: generator.standard_normal(p.shape, np.float32) for p in added}
    write_prefix(tmp_path, bundle, first)
    base = AutoModelForCausalLM.from_pretrained(bundle.folder, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    batch = sample_batch(VOCABULARY, 3, 11)
    ids, mask = (torch.from_numpy(batch[n]) for n in ("input_ids", "attention_mask"))
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    rows = logits.reshape(-1, VOCABULARY)[batch["positions"]]
    ours = outputs(bundle, first, batch)[1]
    np.testing.assert_allclose(ours, rows[:, batch["candidates"]].numpy(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "opt"}, "opt has no plain rotary positions"),
        ({"model_type": "gpt2"}, "gpt2 has no plain rotary positions"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "llama has no plain rotary"),
        ({"model_type": "mistral", "sliding_window": 4}, "mistral slides its attention's window"),
        (
            {"model_type": "qwen2", "sliding_window": 4, "use_sliding_window": True},
            "qwen2 slides its attention's window",
        ),
    ],
)
def test_what_peft_would_compute_otherwise(
    config: dict, reason: str, bundle_folder: BUNDLES, tmp_path: Path
) -> None:
    bundle = adapt(open_bundle(bundle_folder("llama_tied")), {"kind": "prefix"})
    tensors = {p.name: np.zeros(p.shape, np.float32) for p in bundle.manifest.parameters if p.init}
    own = json.loads((bundle.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | config))
    with pytest.raises(InputError, match=reason):
        write_prefix(tmp_path, dataclasses.replace(bundle, folder=tmp_path), tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_attention_that_is_not_known_is_refused(bundle_folder: BUNDLES) -> None:
    with pytest.raises(InputError, match="virtual_tokens is 0"):
        adapt(open_bundle(bundle_folder("opt")), {"kind": "prefix", "virtual_tokens": 0})
    shape = "float[b, 2, n, n]"
    head = '<ir_version: 10, opset_import: ["" : 18]> g (float[b, 2, n, 4] q, float[b, 2, 4, n] k)'
    body = "{ s = MatMul(q, k) c = Tanh(s) y = Softmax(c) }"
    known = ir.from_onnx_text(f"{head} => ({shape} y) <{shape} s, {shape} c> {body}")
    with pytest.raises(InputError, match=r"attention of 'y'.*looks for the MatMul of queries"):
        add_prefix(known, [])
    with pytest.raises(InputError, match="no attention"):
        add_prefix(ir.from_onnx_text(f"{head} => ({shape} s) {{ s = MatMul(q, k) }}"), [])
