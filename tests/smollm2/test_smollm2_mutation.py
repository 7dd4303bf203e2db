"""The real default model: each weight reaches the outputs, and a replay gives a run's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgezo
from edgezo.demo.default_model import cache_folder
from edgezo.replay import replay
from edgezo_runtime.batch import Batch, CandidateLoss, Outputs
from edgezo_runtime.bundle import is_bundle
from edgezo_runtime.model import Model

FOLDER = cache_folder() / "smollm2.edgezo"
pytestmark = pytest.mark.skipif(
    not is_bundle(FOLDER), reason=f"{FOLDER} is not there; `edgezo demo --steps 1` makes it"
)


@pytest.fixture(scope="module")
def model() -> Model:
    return edgezo.load(FOLDER)


@pytest.fixture(scope="module")
def batch(model: Model) -> Batch:
    ids = np.array([model.tokenizer.encode("Book a table for two, please.")[:8]], np.int64)
    last = np.array([ids.size - 1])
    candidates = np.arange(0, 4000, 250)
    return Batch(ids, np.ones_like(ids), last, candidates[:1], candidates, CandidateLoss(last * 0))


def flat(outputs: Outputs) -> np.ndarray:
    return np.concatenate([outputs["logprobs"].ravel(), outputs["candidate_logits"].ravel()])


def test_each_parameter_moves_the_outputs(model: Model, batch: Batch) -> None:
    before = flat(model.forward(batch))
    for name, view in model.arena.views.items():
        kept = view.copy()
        view *= np.float32(1.25)
        moved = flat(model.forward(batch))
        view[...] = kept
        assert (moved != before).any(), name
    np.testing.assert_array_equal(flat(model.forward(batch)), before)


def test_all_parameters_changed_equal_a_fresh_session(
    model: Model, batch: Batch, tmp_path: Path
) -> None:
    for view in model.arena.views.values():
        view *= np.float32(1.01)
    moved = flat(model.forward(batch))
    path = tmp_path / "model.safetensors"
    model.weights.save(path)
    model.weights.load()
    fresh = edgezo.load(FOLDER, threads=model.device.threads, weights=path)
    np.testing.assert_array_equal(flat(fresh.forward(batch)), moved)


def test_replay_gives_the_run_s_bytes(model: Model, batch: Batch, tmp_path: Path) -> None:
    model.weights.load()
    tuner = edgezo.Tuner(model, lr=1e-5, eps=1e-3, seed=11)
    for _ in range(12):
        tuner.step(batch)
    run = tuner.save(tmp_path / "run")
    told = replay(run, FOLDER, tmp_path / "tuned.edgezo", threads=model.device.threads + 1)
    assert told.steps == 12
    tuned = (tmp_path / "tuned.edgezo" / "model.safetensors").read_bytes()
    assert tuned == (run / "model.safetensors").read_bytes()
