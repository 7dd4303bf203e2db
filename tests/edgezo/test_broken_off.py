"""Runs with true gradients that are broken off, saved and gone on with in a program."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called
from gradient_batches import OBJECTIVES, batch_of

from edgezo import Tuner
from edgezo.run_folder import METRICS, RunFolder
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.journal import read
from edgezo_runtime.model import Model, load

BATCH = batch_of(OBJECTIVES["tokens"])


class Broken(TokenLoss):
    """A loss that nobody can compute."""

    def tally(self, outputs: Any) -> Any:
        raise KeyboardInterrupt


class NoSlope(TokenLoss):
    """A loss whose derivative nobody can compute."""

    def cotangents(self, outputs: Any) -> dict[str, np.ndarray]:
        raise KeyboardInterrupt


def broken(kind: type[TokenLoss]) -> Batch:
    return dataclasses.replace(BATCH, objective=kind(1))


def weights_of(model: Model) -> dict[str, np.ndarray]:
    model.arena.settle()
    return {name: view.copy() for name, view in model.arena.views.items()}


def apart(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def take(tuner: Tuner, steps: int) -> None:
    exact = BATCH if tuner.header["method"] == "addax" else None
    for _ in range(steps):
        tuner.step(BATCH, exact=exact)


@pytest.mark.parametrize("kept", ["folder", "memory"])
def test_what_was_saved_is_gone_on_with(derived_bundle: Path, tmp_path: Path, kept: str) -> None:
    run = tmp_path / "run"
    model = load(derived_bundle, threads=1)
    given: dict[str, Any] = {"method": "adamw", "lr": 1e-3, "schedule": "linear", "steps": 20}
    tuner = Tuner(model, **given, run=run if kept == "folder" else None)
    take(tuner, 9)
    tuner.save(run)
    saved = weights_of(model)
    tuner.close()
    again = load(derived_bundle, threads=1)
    resumed = Tuner.resume(again, run)
    assert resumed.step_index == 9 and len(read(RunFolder(run).journal).records) == 9
    assert apart(weights_of(again), saved) == 0
    take(resumed, 3)
    whole = load(derived_bundle, threads=1)
    take(Tuner(whole, **given), 12)
    assert apart(weights_of(again), weights_of(whole)) == 0


def test_a_run_that_another_goes_on_with_is_not_replaced(
    derived_bundle: Path, tmp_path: Path
) -> None:
    tuner = Tuner(load(derived_bundle, threads=1), method="mezo", lr=1e-3)
    take(tuner, 2)
    tuner.save(tmp_path / "run")
    other = Tuner.resume(load(derived_bundle, threads=1), tmp_path / "run")
    take(tuner, 1)
    with pytest.raises(InputError, match="another process is writing"):
        tuner.save(tmp_path / "run")
    take(other, 3)
    other.close()
    assert len(read(tmp_path / "run" / "journal.ezj").records) == 5


@pytest.mark.parametrize("method", ["addax", "hybrid"])
def test_a_loss_that_fails_costs_no_step(derived_bundle: Path, method: str) -> None:
    """Without a gradient nothing was learnt: the perturbation is undone."""
    model = load(derived_bundle, threads=1)
    tuner = Tuner(model, method=method, lr=1e-3)
    take(tuner, 5)
    before = weights_of(model)
    for batch in (broken(Broken), broken(NoSlope)):
        exact = batch if method == "addax" else None
        with pytest.raises(KeyboardInterrupt):
            tuner.step(batch, exact=exact)
        assert tuner.step_index == 5
        model.loss(BATCH)  # whoever reads the weights finds them
        assert tuner.step_index == 5 and apart(weights_of(model), before) < 1e-6


def test_a_step_that_is_broken_off_half_way_says_what_is_lost(
    derived_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(derived_bundle, threads=1)
    base = weights_of(model)
    tuner = Tuner(model, method="adamw", lr=1e-3)
    take(tuner, 3)
    method = tuner._tuning.method
    update, left = method._update, [4]  # type: ignore[union-attr]

    def stop(*arguments: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(method, "_update", stop)
        with pytest.raises(KeyboardInterrupt):
            tuner.step(BATCH)
    with pytest.raises(EdgezoError, match=r"after step 0, .* and 3 steps are lost"):
        model.loss(BATCH)
    assert tuner.step_index == 0 and apart(weights_of(model), base) == 0
    take(tuner, 1)


def test_a_rate_that_holds_for_a_cycle_is_the_step_s(derived_bundle: Path) -> None:
    tuner = Tuner(load(derived_bundle, threads=1), method="hift-adamw", lr=1e-3)
    assert [tuner.step(BATCH, lr=lr).lr for lr in (1e-3, 0.5)] == pytest.approx([1e-3, 1e-3])


def test_no_room_for_the_state(
    derived_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a file that there is no room for would end the process."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    words = ("--data", data / "train.jsonl", "--method", "hift-adamw", "--steps", 2)
    done = called("train", derived_bundle, *words, "--out", tmp_path / "run")
    assert done.status != 0 and "No space left" in done.err and "TMPDIR" in done.err


@pytest.mark.parametrize("line", [b'{"a": 1}', b"[1]", b"5", b'{"step": "a"}', b"\xff\xfe"])
def test_metrics_that_no_run_wrote(tmp_path: Path, line: bytes) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 2}\n')
    assert RunFolder(tmp_path).read_metrics() == [{"step": 1, "loss": 2.0}]
