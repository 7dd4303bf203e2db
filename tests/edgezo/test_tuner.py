"""What a Tuner refuses: weights of another one, steps after its end, settings of a wrong kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import result_of

import edgezo
from edgezo.replay import replay
from edgezo_runtime import journal
from edgezo_runtime.batch import BaseBatch


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


@pytest.mark.parametrize("step", [-1, 4, 2.5, "2"])
def test_saving_at_a_step_that_was_not_taken(
    model: edgezo.Model, batches: Iterator[BaseBatch], tmp_path: Path, step: Any
) -> None:
    tuner = edgezo.Tuner(model, lr=1e-3)
    for _ in range(3):
        tuner.step(next(batches))
    with pytest.raises(edgezo.InputError, match=r"at_step is .*whole number from 0 to 3"):
        tuner.save(tmp_path / "run", at_step=step)
    assert not (tmp_path / "run").exists()
    numbers: tuple[Any, ...] = (0, np.int64(2))
    for taken in numbers:
        tuner.save(tmp_path / "run", at_step=taken)
        replay(tmp_path / "run", model.bundle.folder, tmp_path / f"{taken}", at_step=int(taken))
        replayed = (tmp_path / f"{taken}" / "model.safetensors").read_bytes()
        assert replayed == result_of(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"rows": np.ones(3)}, "notes cannot be written.*ndarray is neither text nor a number"),
        (3, "notes cannot be written"),
        ({"base": "x"}, "notes has 'base', which the journal has of its own"),
        ({"seed": 99}, "'seed'"),
        ({"probe": {}}, "'probe'"),
    ],
)
def test_notes_that_a_journal_cannot_hold(
    model: edgezo.Model, tmp_path: Path, notes: Any, message: str
) -> None:
    with pytest.raises(edgezo.InputError, match=message):
        edgezo.Tuner(model, notes=notes, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numpy_s_numbers_are_numbers(
    model: edgezo.Model, batches: Iterator[BaseBatch], tmp_path: Path
) -> None:
    seed, lr = np.uint64(3), np.float32(1e-3)
    notes = {"score": np.float32(0.5), 1: (np.int64(2), "two")}
    tuner = edgezo.Tuner(model, lr=lr, seed=seed, notes=notes)  # type: ignore[arg-type]
    tuner.step(next(batches))
    tuner.save(tmp_path / "run")
    tuner.save(tmp_path / "run")
    header = journal.read(tmp_path / "run" / "journal.ezj").header
    assert header == tuner.header
    assert (header["score"], header["1"], header["seed"]) == (0.5, [2, "two"], 3)


def test_a_closed_tuner(model: edgezo.Model, batches: Iterator[BaseBatch], tmp_path: Path) -> None:
    kept = edgezo.Tuner(model, lr=1e-3, run=tmp_path / "kept")
    kept.step(next(batches))
    kept.close()
    kept.close()
    asked = (lambda: kept.step(next(batches)), kept.save, kept.snapshot)
    for ask in asked:
        with pytest.raises(edgezo.InputError, match=r"this tuner is closed: .*Tuner.resume"):
            ask()
    with contextlib.closing(edgezo.Tuner.resume(model, tmp_path / "kept")) as tuner:
        assert tuner.step(next(batches)).number == 2

    other = edgezo.Tuner(edgezo.load(model.bundle.folder, threads=1), lr=1e-3)
    other.step(next(batches))
    other.close()
    with pytest.raises(edgezo.InputError, match="this tuner is closed"):
        other.step(next(batches))
    assert other.save(tmp_path / "other") == tmp_path / "other"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": "1e-3"}, "lr is '1e-3'; use a number"),
        ({"lr": "auto"}, "lr is 'auto'; use a number"),
        ({"options": 3}, "options is 3; give a mapping"),
        ({"steps": "5", "schedule": "linear"}, "steps is '5'; use a whole number"),
        ({"seed": "a"}, "seed is 'a'; use a whole number"),
        ({"probe": []}, "probe has no batches"),
        ({"probe": [None]}, "a batch is of type NoneType"),
    ],
)
def test_settings_of_a_wrong_kind(model: edgezo.Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(edgezo.InputError, match=message):
        edgezo.Tuner(model, **given)


def test_what_is_no_batch(model: edgezo.Model, batches: Iterator[BaseBatch]) -> None:
    tuner = edgezo.Tuner(model, lr=1e-3)
    nothing: Any = None
    with pytest.raises(edgezo.InputError, match="type NoneType: take batches"):
        tuner.step(nothing)
    rate: Any = "a"
    with pytest.raises(edgezo.InputError, match="lr is 'a'"):
        tuner.step(next(batches), lr=rate)
    assert tuner.step_index == 0
