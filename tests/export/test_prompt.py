"""A prompt put into a graph computes what PEFT computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from test_lora import outputs
from tiny_checkpoints import VOCABULARY
from transformers import AutoModelForCausalLM

from edgezo_export.adapters.base import adapt
from edgezo_export.adapters.prompt import NAME, add_prompt
from edgezo_export.verify import sample_batch
from edgezo_runtime import adapter_init
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.weights import Weights

BUNDLES = Callable[[str], Path]


@pytest.mark.parametrize("name", ["opt", "llama_tied", "gpt2", "qwen2"])
@pytest.mark.parametrize("count", [1, 7])
def test_the_graph_computes_what_peft_does(name: str, count: int, bundle_folder: BUNDLES) -> None:
    settings = {"kind": "prompt", "virtual_tokens": count}
    bundle = adapt(open_bundle(bundle_folder(name)), settings)
    assert bundle.manifest.context_length == 64 - count
    prompt = np.random.default_rng(1).standard_normal((count, 32), np.float32)
    batch = sample_batch(VOCABULARY, 3, 11)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(bundle.folder), config).eval()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "prompt" in n).copy_(
            torch.from_numpy(prompt)
        )
        ids, mask = (torch.from_numpy(batch[n]) for n in ("input_ids", "attention_mask"))
        logits = model(ids, attention_mask=mask).logits[:, count:]
    rows = logits.reshape(-1, VOCABULARY)[batch["positions"]]
    expected = [
        rows.log_softmax(1).gather(1, torch.from_numpy(batch["targets"])[:, None])[:, 0].numpy(),
        rows[:, batch["candidates"]].numpy(),
    ]
    for ours, want in zip(outputs(bundle, {NAME: prompt}, batch), expected, strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-4, rtol=1e-5)


def test_it_begins_as_tokens(bundle_folder: BUNDLES) -> None:
    bundle = adapt(open_bundle(bundle_folder("llama_tied")), {"kind": "prompt"})
    weights = Weights(bundle)
    first = adapter_init.draw(weights.arena.parameters, 3, weights.frozen())
    table = weights.frozen()["model.embed_tokens.weight"]
    rows = [np.flatnonzero((table == row).all(axis=1)) for row in first[NAME]]
    assert len(rows) == 10 and all(len(found) == 1 for found in rows)
    assert len({int(found[0]) for found in rows}) > 5


def test_what_has_no_place_for_a_prompt(bundle_folder: BUNDLES) -> None:
    bundle = open_bundle(bundle_folder("opt"))
    with pytest.raises(InputError, match="virtual_tokens is 0"):
        adapt(bundle, {"kind": "prompt", "virtual_tokens": 0})
    with pytest.raises(InputError, match="rank is no setting of a prompt"):
        adapt(bundle, {"kind": "prompt", "rank": 4})
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, 5] x) => (float[n, 5] y) { y = Relu(x) }"""
    with pytest.raises(InputError, match="no place for a prompt"):
        add_prompt(ir.from_onnx_text(text), [])
