"""Adapters in models that are not causal: PEFT loads what is written, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from test_lora import outputs
from tiny_families import VOCABULARY, tiny_family

from edgezo_export.adapters.base import adapt
from edgezo_export.verify import GraphRunner, mapped_weights, reference, sample_batch
from edgezo_runtime import adapter_init, peft
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.weights import Weights

Folder = Callable[[str], Path]


def adapted(folder: Path, **adapter: Any) -> tuple[Bundle, dict[str, np.ndarray]]:
    """Returns a bundle with an adapter, and random values of its tensors."""
    bundle = adapt(open_bundle(folder), adapter)
    rng = np.random.default_rng(0)
    added = [p for p in bundle.manifest.parameters if p.init]
    return bundle, {p.name: rng.standard_normal(p.shape, np.float32) / 2 for p in added}


def ours(bundle: Bundle, first: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> list:
    weights = mapped_weights(open_bundle(bundle.folder)) | first
    return GraphRunner(bundle, bundle.read_graph(), weights)(batch)


@pytest.mark.parametrize("target", [None, ["all-linear"]])
@pytest.mark.parametrize("name", ["bert", "roberta_head", "gpt2_head", "llama_head", "t5_gated"])
def test_lora(name: str, target: list[str] | None, family_bundle: Folder, tmp_path: Path) -> None:
    bundle, first = adapted(family_bundle(name), kind="lora", rank=4, target=target)
    peft.write_adapter(tmp_path, bundle, first)
    model = PeftModel.from_pretrained(tiny_family(name), str(tmp_path)).eval()
    inner: Any = model.base_model.model
    pad = inner.config.pad_token_id
    batch = sample_batch(VOCABULARY, 3, 11, form=bundle.manifest.form, pad=pad)
    plain = reference(tiny_family(name), batch)
    expected = reference(inner, batch)
    for found, want, base in zip(ours(bundle, first, batch), expected, plain, strict=True):
        assert np.abs(want - base).max() > 0.1
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_a_prompt_for_the_encoder(name: str, family_bundle: Folder, tmp_path: Path) -> None:
    bundle, first = adapted(family_bundle(name), kind="prompt", virtual_tokens=4)
    peft.write_adapter(tmp_path, bundle, first)
    model = PeftModel.from_pretrained(tiny_family(name), str(tmp_path)).eval()
    batch = sample_batch(VOCABULARY, 3, 11, form=bundle.manifest.form)
    text = {
        key: torch.from_numpy(batch[key])
        for key in ("input_ids", "attention_mask", "decoder_input_ids")
    }
    with torch.no_grad():
        logits = model(**text).logits
    expected = logits.reshape(-1, VOCABULARY)[batch["positions"]][:, batch["candidates"]].numpy()
    (_, plain), (_, found) = (
        ours(b, f, batch) for b, f in ((open_bundle(bundle.folder), {}), (bundle, first))
    )
    assert np.abs(found - plain).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "prefix"), ("bert_head", "prompt"), ("gpt2_head", "prefix"), ("t5", "prompt")],
)
def test_how_it_begins(name: str, kind: str, family_bundle: Folder) -> None:
    """As tokens drawn at random, in the runtime's own session."""
    bundle = adapt(open_bundle(family_bundle(name)), {"kind": kind})
    weights = Weights(bundle)
    first = adapter_init.draw(weights.arena.parameters, 3, weights.frozen(), bundle)
    batch = sample_batch(VOCABULARY, 3, 11, form=bundle.manifest.form)
    plain = outputs(open_bundle(bundle.folder), {}, batch)
    for found, base in zip(outputs(bundle, first, batch), plain, strict=True):
        assert 1e-3 < np.abs(found - base).max() < 100
    longer = {
        key: np.pad(batch[key], ((0, 0), (0, 3)), constant_values=9 if key == "input_ids" else 0)
        for key in ("input_ids", "attention_mask")
    }
    if name != "t5":
        rows, times = np.divmod(batch["positions"], 11)
        longer["positions"] = rows * 14 + times
    for found, wide in zip(
        outputs(bundle, first, batch), outputs(bundle, first, batch | longer), strict=True
    ):
        np.testing.assert_allclose(wide, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_of_a_classifier_stay_here(
    kind: str, family_bundle: Folder, tmp_path: Path
) -> None:
    bundle, first = adapted(family_bundle("bert_head"), kind=kind)
    peft.write_adapter(tmp_path, bundle, first)
    assert [path.name for path in tmp_path.iterdir()] == [peft.ADAPTER]
    assert peft.why_not(bundle, None) == "in a model that writes no text"


def test_a_prefix_has_no_place_in_t5(family_bundle: Folder) -> None:
    with pytest.raises(InputError, match=r"an encoder and a decoder: tune it with lora or prompt"):
        adapted(family_bundle("t5"), kind="prefix")
