"""What a Tuner refuses: weights of another one, steps after its end, settings of a wrong kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edgezo_runs import result_of

import edgezo
from edgezo.replay import replay
from edgezo_runtime.batch import BaseBatch


@pytest.fixture
def model(tiny_bundle: Path) -> edgezo.Model:
    return edgezo.load(tiny_bundle, threads=1)


@pytest.fixture
def batches(model: edgezo.Model, data: Path) -> Iterator[BaseBatch]:
    return edgezo.batches(data / "train.jsonl", model, batch_size=4, epochs=None)


def test_a_model_follows_the_tuner_that_was_made_last(
    model: edgezo.Model, batches: Iterator[BaseBatch], tmp_path: Path
) -> None:
    first = edgezo.Tuner(model, lr=1e-3, seed=1)
    second = edgezo.Tuner(model, lr=1e-3, seed=2)
    second.step(next(batches))
    with pytest.raises(edgezo.InputError, match="follow another run by now"):
        first.step(next(batches))
    with pytest.raises(edgezo.InputError, match="follow another run by now"):
        first.save(tmp_path / "first")
    assert not (tmp_path / "first").exists()
    second.save(tmp_path / "second")
    replay(tmp_path / "second", model.bundle.folder, tmp_path / "tuned.edgezo")
    tuned = (tmp_path / "tuned.edgezo" / "model.safetensors").read_bytes()
    assert tuned == result_of(tmp_path / "second")[0]

    resumed = edgezo.Tuner.resume(model, tmp_path / "second")
    with pytest.raises(edgezo.InputError, match="follow another run by now"):
        second.step(next(batches))
    resumed.step(next(batches))
    resumed.close()
