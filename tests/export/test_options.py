"""Options that share a prompt: scored without reading it again, as the text graph scores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import MODELS, VOCABULARY

from edgezo_runtime.arena import Term
from edgezo_runtime.batch import Batch, OptionLoss, TokenLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.generation import GenerationSession
from edgezo_runtime.noise import Direction
from edgezo_runtime.option_graph import option_graph
from edgezo_runtime.options import OptionSession, Shared
from edgezo_runtime.session import Session
from edgezo_runtime.weights import Weights

PROMPTS = (21, 4, 30)
OPTIONS = ((3, 1, 6), (2, 2), (5, 4, 1, 2))


def options_batch(seed: int = 0) -> Batch:
    """Rows of options after a prompt; two of them begin alike."""
    rng = np.random.default_rng(seed)
    texts, targets = [], []
    for prompt, lengths in zip(PROMPTS, OPTIONS, strict=True):
        tokens = rng.integers(3, VOCABULARY, prompt)
        answers = [rng.integers(3, VOCABULARY, length) for length in lengths]
        answers[1][0] = answers[0][0]
        texts += [np.concatenate([tokens, answer[:-1]]) for answer in answers]
        targets += answers
    length = max(map(len, texts))
    ids = np.array([np.pad(text, (0, length - len(text))) for text in texts])
    ends = [index * length + len(text) for index, text in enumerate(texts)]
    places = [np.arange(e - len(t), e) for e, t in zip(ends, targets, strict=True)]
    counts = np.array([len(lengths) for lengths in OPTIONS])
    sizes = [len(answer) for answer in targets]
    return Batch(
        ids,
        (np.arange(length) < np.array([[len(text)] for text in texts])).astype(np.int64),
        np.concatenate(places),
        np.concatenate(targets),
        np.zeros(1, np.int64),
        OptionLoss(np.repeat(np.arange(len(sizes)), sizes), np.zeros(3, np.int64), counts),
    )


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_text_graph_s(name: str, bundle_folder: Callable[[str], Path]) -> None:
    bundle = open_bundle(bundle_folder(name))
    weights = Weights(bundle)
    weights.load()
    plain = Session(bundle, weights.arrays(), weights.arena.views.keys(), weights.device)
    prompts = GenerationSession(weights, weights.device)
    options = OptionSession.over(weights, weights.device, prompts)
    assert options is not None
    before = None
    for number in range(2):
        batch = options_batch(number)
        shared = Shared.of(batch)
        assert shared is not None
        found, expected = options.score(shared), plain.forward(batch)["logprobs"]
        np.testing.assert_allclose(found["logprobs"], expected, rtol=0, atol=3e-5)
        # The weights that are tuned are those that are read.
        weights.arena.add(Term(Direction(0, 1), np.float32(0.01)))
        weights.settle()
        assert before is None or not np.array_equal(before, expected)
        before = expected


def test_what_is_shared() -> None:
    batch = options_batch()
    shared = Shared.of(batch)
    assert shared is not None
    assert shared.prompt_mask.sum(axis=1).tolist() == [20, 3, 29]  # the last token asks
    assert shared.prompts[1, :-3].tolist() == [0] * 26
    assert shared.rows.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert shared.mask.sum(axis=1).tolist() == [3, 1, 6, 2, 2, 5, 4, 1, 2]
    asked = shared.tokens.reshape(-1)[shared.positions]
    np.testing.assert_array_equal(asked, batch.input_ids.reshape(-1)[batch.positions])
    # Nothing is shared where it would not save much, or where nothing is a choice.
    assert Shared.of(batch, gain=9.0) is None
    assert Shared.of(dataclasses.replace(batch, objective=TokenLoss(9))) is None
    ids = batch.input_ids.copy()
    ids[1, 0] += 1
    assert Shared.of(dataclasses.replace(batch, input_ids=ids)) is None


def test_an_unknown_graph_is_not_edited(bundle_folder: Callable[[str], Path]) -> None:
    bundle = open_bundle(bundle_folder(MODELS[0]))
    with pytest.raises(ValueError, match="no node that takes the last token"):
        option_graph(bundle.read_graph())
