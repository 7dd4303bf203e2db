"""Batches of the same rows with different padding, and a check that a prefix cache serves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from edgezo_runtime.batch import BaseBatch, Batch, TokenLoss
from edgezo_runtime.model import Model

TOKENS = [np.random.default_rng(n).integers(3, 300, n) for n in (4, 9, 6, 6, 11, 5)]


def text_batch(rows: Sequence[np.ndarray], padding: int = 0, decoder: bool = False) -> Batch:
    """Returns a batch that asks for one token after each row."""
    length = max(map(len, rows)) + padding
    ids, mask = np.zeros((2, len(rows), length), np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    ends = np.array([row * length + len(tokens) - 1 for row, tokens in enumerate(rows)])
    targets, asked = np.ones(len(rows), np.int64), np.array([0, 1])
    decoded = ids[:, :3] if decoder else None
    positions = np.arange(len(rows)) * 3 if decoder else ends
    return Batch(ids, mask, positions, targets, asked, TokenLoss(len(rows)), decoded)


def check_the_same(
    model: Model, path: Path, first: list[BaseBatch], others: list[BaseBatch]
) -> None:
    """Checks that a cache of the rows of `first` serves `others`, made of the same rows."""
    expected = [model.forward(batch) for batch in others]
    with model.cached_prefix(path, lambda: first):
        prefix = model._resident._prefix
        assert prefix is not None
        with mock.patch.object(prefix, "run", side_effect=AssertionError("it ran")):
            found = [model.forward(batch) for batch in others]
    for ours, theirs in zip(found, expected, strict=True):
        for name, array in theirs.items():
            assert np.isfinite(array).all()
            np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=2e-5)


def check_rows_of_text(model: Model, path: Path) -> None:
    """Checks `model`, whose lower layers are frozen, on batches of tokens."""
    decoder = model.form["kind"] == "seq2seq"
    first = [text_batch(TOKENS[at : at + 2], decoder=decoder) for at in (0, 2, 4)]
    others = [
        text_batch([TOKENS[4], TOKENS[0], TOKENS[2]], 3, decoder),
        text_batch([TOKENS[0]], 0, decoder),
        text_batch([TOKENS[5], TOKENS[1]], 1, decoder),
    ]
    check_the_same(model, path, [*first], [*others])
