"""Adapters and integers in the generation graph: it computes what the text graph computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import VOCABULARY

from edgezo_export.adapters.base import adapt
from edgezo_export.quantize import quantize_bundle
from edgezo_export.quantized_linear import FORMATS
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.generation import GenerationSession
from edgezo_runtime.select import ADAPTERS
from edgezo_runtime.session import Session
from edgezo_runtime.weights import Weights

# A sliding window tells where the virtual tokens stand.
NAMES = ("llama_tied", "opt", "gpt2", "mistral_window")


def random_weights(bundle: Bundle) -> Weights:
    """Returns the weights of `bundle` with an adapter that does something."""
    generator = np.random.default_rng(0)
    weights = Weights(bundle)
    added = [p for p in bundle.manifest.parameters if p.init]
    weights.begin({p.name: generator.standard_normal(p.shape, np.float32) / 4 for p in added})
    weights.load()
    return weights


@pytest.mark.parametrize("change", [*ADAPTERS, *FORMATS])
@pytest.mark.parametrize("name", NAMES)
def test_reading_on_is_reading_anew(
    name: str, change: str, bundle_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = bundle_folder(name)
    if change in FORMATS:
        bundle = open_bundle(quantize_bundle(folder, tmp_path / "b.edgezo", change))
    else:
        bundle = adapt(open_bundle(folder), {"kind": change})
    weights = random_weights(bundle)
    whole = Session(bundle, weights.arrays(), weights.arena.views.keys(), CpuDevice(1))
    session = GenerationSession(weights, CpuDevice(1))
    mask = np.array([[1] * 6, [0, 0, 1, 1, 1, 1]])
    tokens = np.random.default_rng(1).integers(3, VOCABULARY, mask.shape) * mask
    texts = [row[kept == 1] for row, kept in zip(tokens, mask, strict=True)]
    cache = session.start(2)
    logits = session.read(cache, tokens, mask)
    for _ in range(6):
        expected = np.concatenate([next_logits(whole, text) for text in texts])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)
        chosen = expected.argmax(axis=1)[:, None]
        texts = [np.concatenate(pair) for pair in zip(texts, chosen, strict=True)]
        logits = session.read(cache, chosen)


def next_logits(session: Session, text: np.ndarray) -> np.ndarray:
    """Returns what the text graph says may follow `text`, (1, vocabulary)."""
    last, every = np.array([len(text) - 1]), np.arange(VOCABULARY)
    one = np.zeros(1, np.int64)
    batch = Batch(text[None], np.ones_like(text)[None], last, one, every, TokenLoss(1))
    return session.forward(batch)["candidate_logits"]
