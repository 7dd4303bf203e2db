"""Runs that begin with the label words fitted: what changes, and that it comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from edgezo_runs import called, refused, write_rows
from safetensors.numpy import load_file

import edgezo
from edgezo.data import eval_batches, rows_from
from edgezo.head_start import can_start, fit_head
from edgezo.linear_probe import features
from edgezo.logistic import fit_from
from edgezo.tasks import make_task
from edgezo_runtime.start import FILE

MATRIX = "model.embed_tokens.weight"
FLAGS = ("--threads", 1, "--batch-size", 4, "--method", "mezo", "--lr", 1e-4, "--tune", "upper")
TEXTS = [
    f"{'good film' if i % 2 else 'bad book'} {'story ' * (i % 3)}{'music' * (i % 2)}"
    for i in range(24)
]
ROWS = [
    {"text": text, "label": "positive" if i % 2 else "negative"} for i, text in enumerate(TEXTS)
]
WORDS = "negative=bad,positive=good"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def test_the_fit_is_where_the_penalised_loss_is_least() -> None:
    rng = np.random.default_rng(0)
    inputs, labels, begun = (
        rng.normal(size=(60, 5)),
        rng.integers(0, 3, 60),
        rng.normal(size=(3, 5)),
    )
    found = fit_from(inputs, labels, begun, 0.1)
    scores = inputs @ found.T
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    slope = (chances - np.eye(3)[labels]).T @ inputs / 60 + 0.1 * (found - begun)
    assert np.abs(slope).max() < 1e-4 < np.abs(found - begun).max()
    assert np.allclose(fit_from(inputs, labels, begun, 1e6), begun, atol=1e-4)


def test_the_words_rows_change_and_nothing_else(tiny_bundle: Path) -> None:
    for tune in ("upper", "full"):  # the matrix is frozen, or trained
        model = edgezo.load(tiny_bundle, tune=tune, threads=1)
        rows = rows_from(ROWS)
        task = make_task("classify", rows, model.tokenizer, model.context_length, None, WORDS)
        examples = task.encode_rows(rows)
        assert can_start(model, task)
        before = {name: np.array(array) for name, array in model.weights.arrays().items()}
        batch = task.collate(examples)
        untuned = model.loss(batch)
        batches = list(eval_batches(task, examples, 6))
        inputs = features(model, task, examples, batches)
        head = fit_head(model, task, examples, 6)
        assert (head.start.parameter, head.forwards) == (MATRIX, 4)
        model.begin_at(head.start)
        for name, array in model.weights.arrays().items():
            changed = np.flatnonzero((array != before[name]).reshape(len(array), -1).any(axis=1))
            expected = set(task.candidates.tolist()) if name == MATRIX else set()
            assert set(changed.tolist()) == expected, name
        assert np.array_equal(model.weights.arrays()[MATRIX][head.start.rows], head.start.values)
        assert model.loss(batch) < untuned
        # The regression's own scores, but for texts that hold the words themselves.
        scores = inputs @ head.start.values.T
        assert np.isfinite(scores).all()


def test_a_run_replays_and_resumes(tiny_bundle: Path, rows: Path, tmp_path: Path) -> None:
    asked = ("train", tiny_bundle, "--data", rows, "--label-words", WORDS, *FLAGS)
    whole = called(*asked, "--steps", 6, "--start", "probe", "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err
    run = tmp_path / "whole"
    tuned = load_file(run / "model.safetensors")
    begun = load_file(run / FILE)
    assert np.array_equal(tuned[MATRIX][begun["rows"]], begun[MATRIX])
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["start"], first["forwards"]) == ("probe", 6)
    replayed = called("replay", run, "--base", tiny_bundle, "--out", tmp_path / "again")
    assert replayed.status == 0, replayed.err
    weights = (run / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    # Cut after the header and three records, as a crash leaves it.
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    (cut / "model.safetensors").unlink()
    journal = (cut / "journal.ezj").read_bytes()
    (cut / "journal.ezj").write_bytes(journal[: len(journal) - 3 * 16])
    resumed = called("resume", cut)
    assert resumed.status == 0, resumed.err
    assert (cut / "model.safetensors").read_bytes() == weights
    # Without its beginning, or with another, there is no way back.
    values = bytearray((run / FILE).read_bytes())
    values[-1] ^= 1
    (run / FILE).write_bytes(values)
    replay = ("replay", run, "--base", tiny_bundle, "--out", tmp_path / "third")
    refused(called(*replay), 2, "start.safetensors is not what the run began with")
    (run / FILE).unlink()
    refused(called(*replay), 2, "start.safetensors is missing, which the run began with")


def test_words_of_several_tokens(tiny_bundle: Path, rows: Path, tmp_path: Path) -> None:
    words = ("--label-words", "negative=bad story book,positive=bad music")
    asked = ("train", tiny_bundle, "--data", rows, *words, *FLAGS, "--steps", 1, "--out")
    refused(called(*asked, tmp_path / "a", "--start", "probe"), 2, "labels of one token each")
    done = called(*asked, tmp_path / "b", "--start", "auto")
    assert done.status == 0, done.err
    assert not (tmp_path / "b" / FILE).exists()
    assert "start: base" in (tmp_path / "b" / "settings.yaml").read_text()
