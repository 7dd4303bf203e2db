"""Runs on a card, with a stand-in for it, whose records come one step later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest

import edgezo
from edgezo.callbacks import Callback
from edgezo.run_folder import RunFolder
from edgezo.settings import Settings
from edgezo.train import resume, train
from edgezo.tuner import Step
from edgezo_runtime.journal import NAME, read
from edgezo_runtime.methods import Method


class Watch(Callback):
    """Notes each step when it is told, and stops after one of them."""

    def __init__(self, stop: int) -> None:
        self.seen: list[int] = []
        self._left = stop

    def on_step(self, step: Step, seconds: float) -> None:
        assert not step.late
        self.seen.append(step.number)

    def should_stop(self) -> bool:
        self._left -= 1
        return self._left == 0


@pytest.mark.parametrize("method", ["mezo", "fzoo", "zo-adam"])
def test_every_step_is_told_and_kept(
    tiny_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Also by a run that is stopped; nothing but the moment differs from steps that wait."""
    cuda_stand_in.install(monkeypatch)
    fields: dict[str, Any] = {
        "bundle": str(tiny_bundle),
        "data": str(data / "train.jsonl"),
        "eval_data": str(data / "dev.jsonl"),
        "device": "cuda",
        "method": method,
        "steps": 9,
        "batch_size": 4,
        "lr": 1e-3,
        "eval_every": 5,
        "snapshot_every": 4,
        "threads": 1,
    }
    found = []
    for name, stop in (("late", 99), ("stopped", 7), ("known", 99)):
        if name == "known":
            monkeypatch.setattr(Method, "late", False)
        watch, out = Watch(stop), tmp_path / name
        result = train(Settings.from_dict({**fields, "out": str(out)}, "the test"), watch)
        assert watch.seen == [*range(1, result.steps + 1)]
        if not result.finished:
            assert result.steps == 7
            resume(out)
        lines = [
            {key: value for key, value in line.items() if key != "seconds"}
            for line in RunFolder(out).read_metrics()
        ]
        files = [(out / file).read_bytes() for file in ("journal.ezj", "model.safetensors")]
        found.append((lines, files))
    (late, files), *others = found
    assert sum("loss" in line for line in late) == 9
    for lines, same in others:
        assert same == files
        assert lines == [pytest.approx(line, rel=1e-9) if "loss" in line else line for line in late]


def test_a_tuner_keeps_a_record_when_somebody_asks(
    tiny_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stand_in.install(monkeypatch)
    model = edgezo.load(tiny_bundle, device="cuda", threads=1)
    tuner = edgezo.Tuner(model, method="mezo", run=tmp_path / "run")
    batches = edgezo.batches(data / "train.jsonl", model, batch_size=4, epochs=None)

    def kept() -> int:
        return len(read(tmp_path / "run" / NAME).records)

    steps = [tuner.step(next(batches)) for _ in range(3)]
    assert [step.late for step in steps] == [False, False, True]
    assert [step.number for step in steps] == [1, 2, 3]
    assert (tuner.step_index, kept()) == (3, 2)
    for number, ask in enumerate(
        (
            lambda: steps[-1].loss,
            lambda: tuner.skipped,
            lambda: tuner.snapshot(),
            lambda: tuner.save(at_step=2),
            lambda: tuner.save(),
            lambda: tuner.close(),
        ),
        start=3,
    ):
        assert kept() == number - 1
        ask()
        assert kept() == number
        assert not steps[-1].late and np.isfinite(steps[-1].loss)
        if number < 8:
            steps.append(tuner.step(next(batches)))
