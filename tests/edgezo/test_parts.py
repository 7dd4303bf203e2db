"""Batches that go through the model in parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import result_of, words, write_rows
from foreign_files import classifier, save

from edgezo.callbacks import Callback
from edgezo.objectives import MEANS, OBJECTIVES, parted
from edgezo.settings import RunSettings, Settings
from edgezo.train import resume
from edgezo.train import train as run_training
from edgezo.training_data import prepare
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime.batch import CandidateLoss, OptionLoss, TokenLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import read
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction
from edgezo_runtime.parts import PartedBatch


@pytest.fixture(scope="module")
def model(derived_bundle: Path) -> Model:
    return load(derived_bundle, threads=1)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("train", CandidateLoss),
        ("text", TokenLoss),
        ("completion", TokenLoss),
        ("shared", OptionLoss),
    ],
)
def test_parts_add_up_to_the_whole(
    model: Model, data: Path, tmp_path: Path, file: str, kind: type
) -> None:
    path = data / f"{file}.jsonl"
    if file == "shared":  # labels that share their first token are options of several tokens
        labels = ("good film", "good story", "good music band")
        rows = ({"text": words(i, 5), "label": labels[i % 3]} for i in range(20))
        path = write_rows(tmp_path / "shared.jsonl", rows)
    settings = RunSettings(bundle="", data=str(path), out="", batch_size=7)
    found = prepare(model, settings)
    indices = np.array([3, 14, 8, 9, 1, 12, 6])
    whole = found.batch(indices)
    parts = parted(found.batch, 3, "loss")(indices)
    assert isinstance(parts, PartedBatch) and len(parts.parts) == 3
    assert isinstance(whole.objective, kind)
    assert parts.loss(model) == pytest.approx(whole.loss(model), rel=1e-6)
    slopes = [model.derivative(batch, Direction(0, 1)) for batch in (parts, whole)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)
    names = list(model.arena.views)
    expected: dict[str, np.ndarray] = {}
    loss = model.descend(whole, names, expected.__setitem__, keep=0)
    for keep in (False, True):
        sums: dict[str, np.ndarray] = {}
        assert model.descend(parts, names, sums.__setitem__, keep) == pytest.approx(loss, rel=1e-6)
        assert sums.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(sums[name], gradient, atol=2e-5 * scale, err_msg=name)


def test_parts_of_arrays_add_up_too(tmp_path: Path) -> None:
    onnx_to_bundle(save(classifier(), tmp_path / "model.onnx"), tmp_path / "b.edgezo")
    arrays = load(tmp_path / "b.edgezo", threads=1)
    noise = np.random.default_rng(0).normal(size=(10, 2, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", image=noise, label=np.arange(10) % 3)
    found = prepare(arrays, RunSettings(bundle="", data=str(tmp_path / "d.npz"), out=""))
    indices = np.array([3, 9, 8, 0, 1, 2, 6])
    parts = parted(found.batch, 3, "loss")(indices)
    assert parts.loss(arrays) == pytest.approx(found.batch(indices).loss(arrays), rel=1e-6)


def test_a_batch_that_fits_is_not_cut(model: Model, data: Path) -> None:
    found = prepare(model, RunSettings(bundle="", data=str(data / "train.jsonl"), out=""))
    batch = parted(found.batch, 8, "loss")(np.arange(8))
    assert not isinstance(batch, PartedBatch)


def test_only_means_are_cut() -> None:
    for name in set(OBJECTIVES) - {*MEANS}:
        with pytest.raises(InputError, match=f"objective {name} judges a batch as a whole"):
            parted(lambda indices: pytest.fail(), 3, name)


class _StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self._step = step
        self._done = 0

    def on_step(self, step: Any, seconds: float) -> None:
        self._done = step.number

    def should_stop(self) -> bool:
        return self._done >= self._step


@pytest.mark.parametrize("method", ["mezo", "adamw", "hift-adamw", "addax"])
def test_runs_in_parts(derived_bundle: Path, data: Path, tmp_path: Path, method: str) -> None:
    """They find what runs at once find, and stop and go on to the same bytes."""
    settings = Settings(
        bundle=str(derived_bundle),
        data=str(data / "train.jsonl"),
        eval_data=str(data / "dev.jsonl"),
        out=str(tmp_path / "whole"),
        method=method,
        steps=6,
        batch_size=8,
        lr=1e-4,
        threads=1,
    )
    parts = dataclasses.replace(settings, micro_batch=3, out=str(tmp_path / "parts"))
    whole, once = run_training(settings), run_training(parts)
    assert whole.metrics and once.metrics
    assert once.metrics.accuracy == whole.metrics.accuracy
    scalars = [
        np.array([record.scalars for record in read(result.run.journal).records])
        for result in (whole, once)
    ]
    assert read(once.run.journal).header["order"]["micro_batch"] == 3
    np.testing.assert_allclose(scalars[1], scalars[0], rtol=2e-2, atol=2e-3)
    stopped = dataclasses.replace(parts, out=str(tmp_path / "stopped"))
    assert not run_training(stopped, _StopAfter(3)).finished
    file = tmp_path / "stopped" / "settings.yaml"
    kept = file.read_text()
    file.write_text(kept.replace("micro_batch: 3", "micro_batch: 4"))
    with pytest.raises(InputError, match="order is not what it was"):
        resume(tmp_path / "stopped")
    file.write_text(kept)
    assert resume(tmp_path / "stopped").finished
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "parts")
