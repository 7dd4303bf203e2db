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
from edgezo_runtime.options import OptionSession
from edgezo_runtime.session import Session
from edgezo_runtime.shared import Shared
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
    assert shared.prompt_mask.sum(axis=1).tolist() == [21, 4, 30]
    assert shared.prompts[1, :-4].tolist() == [0] * 26
    length = batch.input_ids.shape[1]
    for place, position in zip(shared.places, batch.positions, strict=True):
        text, end = divmod(position, length)
        assert read_at(shared, place) == batch.input_ids[text, : end + 1].tolist()


def read_at(shared: Shared, place: int) -> list[int]:
    """Returns the tokens that a model has read where a place is."""
    row, rest = place, []
    place -= len(shared.prompts)
    for reading in shared.readings:
        if 0 <= place < len(reading.positions):
            text, last = divmod(reading.positions[place], reading.tokens.shape[1])
            assert reading.mask[text, : last + 1].all()
            row, rest = reading.rows[text], reading.tokens[text, : last + 1].tolist()
        place -= len(reading.positions)
    return shared.prompts[row][shared.prompt_mask[row] == 1].tolist() + rest


def test_what_options_begin_with_is_read_once() -> None:
    """One text is read for the answers 1 2, 1 3 4 5 and 1 3 6, none for 7; a long one apart."""
    answers = [[1, 2], [1, 3, 4, 5], [1, 3, 6], [7], [1, 2], [*range(20, 60)]]
    texts = [[9, 9, 9, *answer[:-1]] for answer in answers]
    length = max(map(len, texts))
    ends = [index * length + len(text) for index, text in enumerate(texts)]
    places = [np.arange(e - len(a), e) for e, a in zip(ends, answers, strict=True)]
    sizes = [len(answer) for answer in answers]
    options = np.repeat(np.arange(len(answers)), sizes)
    batch = Batch(
        np.array([np.pad(text, (0, length - len(text))) for text in texts]),
        (np.arange(length) < np.array([[len(text)] for text in texts])).astype(np.int64),
        np.concatenate(places),
        np.concatenate(answers),
        np.zeros(1, np.int64),
        OptionLoss(options, np.zeros(1, np.int64), np.array([len(answers)])),
    )
    shared = Shared.of(batch)
    assert shared is not None
    read = [
        r.tokens[i, r.mask[i] == 1].tolist() for r in shared.readings for i in range(len(r.rows))
    ]
    assert read == [[*range(20, 59)], [1, 3, 4]]
    assert shared.places[:2].tolist() == shared.places[10:12].tolist()  # the same answer, twice


def test_where_nothing_is_shared() -> None:
    batch = options_batch()
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
