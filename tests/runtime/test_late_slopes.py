"""Numbers that stay on the card, with a stand-in for it; `test_cuda_card` has what needs one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
from classifier_bundle import write_classifier
from late_steps import (
    CASES,
    DECAY,
    OTHERS,
    RATE,
    WAITED,
    batch_of,
    begin,
    bits,
    check_descents,
    check_float16,
    check_losses,
    check_nothing_is_added,
    check_numbers,
    check_steps,
    check_waits,
    estimates,
    loss_of,
    waiting,
)
from runtime_helpers import contents
from tied_bundle import write_tied

from edgezo_runtime import snapshot
from edgezo_runtime.batch import ArrayBatch, CandidateLoss
from edgezo_runtime.devices import Device, open_device
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.journal import NAME, JournalWriter, Record, read
from edgezo_runtime.parts import PartedBatch
from edgezo_runtime.tuning import Tuning


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Device:
    cuda_stand_in.install(monkeypatch)
    return open_device("cuda", 1)


@pytest.fixture
def bundle(tmp_path: Path, card: Device) -> Path:
    return write_classifier(tmp_path)


def test_losses_are_the_host_s(card: Device) -> None:
    check_losses(card)


def test_numbers_are_the_host_s(card: Device) -> None:
    check_numbers(card)


def test_no_branch_is_taken_on_a_late_number(card: Device) -> None:
    loss = loss_of(card, np.zeros((3, 2), np.float32), CandidateLoss(np.array([0, 1, 0])))
    with pytest.raises(TypeError, match="no branch"):
        max(loss - 1.0, 0.0)
    with pytest.raises(TypeError, match="only the device knows"):
        np.float32(loss)


def test_labels_that_are_no_columns_are_refused(card: Device) -> None:
    scores = np.zeros((3, 2), np.float32)
    for labels in ([0, 1, 2], [0, -1, 1], [0, 1]):
        with pytest.raises(InputError, match="labels must be 3 numbers from 0 to 1"):
            loss_of(card, scores, CandidateLoss(np.array(labels)))


def test_terms_are_the_host_s(card: Device) -> None:
    check_descents(card)
    check_nothing_is_added(card)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_steps_are_those_that_wait(bundle: Path, name: str, settings: dict[str, Any]) -> None:
    check_steps(bundle, name, settings)


def test_weights_in_float16(card: Device, tmp_path: Path) -> None:
    check_float16(write_tied(tmp_path, "float16"))


@pytest.mark.parametrize("name", WAITED)
def test_a_step_waits_for_the_one_before(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_waits(bundle, name, monkeypatch)


@pytest.mark.parametrize(("name", "settings"), OTHERS)
def test_others_wait_as_ever(bundle: Path, name: str, settings: dict[str, Any]) -> None:
    check_steps(bundle, name, settings, late=False)


def test_a_batch_in_parts_waits(bundle: Path) -> None:
    model, tuning = begin(bundle, "cuda", "mezo", {})
    batch = PartedBatch.of([batch_of(0), batch_of(1)])
    assert not tuning.start(BatchLoss(model, batch), RATE).late


KEPT = pytest.mark.parametrize("name", ["mezo", "fzoo", "zo-adam", "mezo-adam", "mezo-svrg"])


@KEPT
def test_a_kill_loses_one_step_more_and_no_byte(bundle: Path, tmp_path: Path, name: str) -> None:
    model, whole = begin(bundle, "cuda", name, DECAY, tmp_path / "whole")
    estimates(model, whole, 9)
    known, waited = begin(bundle, "cuda", name, DECAY, tmp_path / "waited")
    estimates(known, waited, 9, waiting)
    first, tuning = begin(bundle, "cuda", name, DECAY, tmp_path / "run")
    for number in range(1, 7):
        tuning.start(BatchLoss(first, batch_of(number)), RATE)
        assert tuning.steps == number
        assert len(read(tmp_path / "run" / NAME).records) == number - 1
    assert isinstance(tuning.journal, JournalWriter)
    tuning.journal.close()  # as the system does with a process that it kills
    again, resumed = begin(bundle, "cuda", name, DECAY, tmp_path / "unused")
    resumed = Tuning(again.weights, JournalWriter(tmp_path / "run" / NAME))
    resumed.catch_up()
    assert resumed.steps == 5
    for number in range(6, 10):
        resumed.start(BatchLoss(again, batch_of(number)), RATE)
    resumed.keep()
    files = [(tmp_path / run / NAME).read_bytes() for run in ("run", "whole", "waited")]
    assert files[0] == files[1] == files[2]
    assert bits(resumed) == bits(whole) == bits(waited)


@KEPT
def test_whoever_asks_finds_the_last_step(bundle: Path, tmp_path: Path, name: str) -> None:
    """Snapshots, a look back, and a step that fails, each while a record is on its way."""
    model, tuning = begin(bundle, "cuda", name, DECAY, tmp_path / "run")
    expected, waited = begin(bundle, "cuda", name, DECAY)
    states = []
    for number in range(1, 6):
        tuning.start(BatchLoss(model, batch_of(number)), RATE)
        waited.step(waiting(expected, batch_of(number)), RATE)
        states.append(contents(expected.arena))
        assert contents(model.arena) == states[-1]  # there before its record is
        if number == 2:
            tuning.keep()
            records = tuning.journal.records
            snapshot.write(tmp_path / "run", records, model.weights, tuning.method.state)
        if number == 4:
            for step in (4, 3):
                tuning.rewind(step)
                assert tuning.steps == 4 and contents(model.arena) == states[step - 1]
    with pytest.raises(EdgezoError, match="ONNX Runtime failed"):
        tuning.start(BatchLoss(model, rows_without_columns()), RATE)
    assert tuning.steps == 5
    model.weights.settle()
    assert contents(model.arena) == states[-1]
    assert tuning.journal.records == waited.journal.records
    assert bits(tuning) == bits(waited)


def rows_without_columns() -> ArrayBatch:
    batch = batch_of(0)
    return dataclasses.replace(batch, inputs={"x": batch.inputs["x"][:, :3].copy()})


def test_a_record_that_is_not_kept_leaves_no_trace(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = begin(bundle, "cuda", "mezo", DECAY)
    estimates(model, whole, 6)
    other, tuning = begin(bundle, "cuda", "mezo", DECAY)
    append, fails = tuning.journal.append, [True]

    def failing(record: Record) -> None:
        if len(tuning.journal.records) == 3 and fails:
            fails.clear()
            raise EdgezoError("the disk is full")
        append(record)

    monkeypatch.setattr(tuning.journal, "append", failing)
    for number in range(1, 5):
        tuning.start(BatchLoss(other, batch_of(number)), RATE)
    with pytest.raises(EdgezoError, match="full"):
        tuning.start(BatchLoss(other, batch_of(5)), RATE)
    assert tuning.steps == 3  # those on their way are lost
    for number in range(4, 7):
        tuning.step(BatchLoss(other, batch_of(number)), RATE)
    assert tuning.journal.records == whole.journal.records
    assert contents(other.arena) == contents(model.arena)


def test_a_run_that_diverges_stops_with_the_same_step(bundle: Path) -> None:
    for kind in (BatchLoss, waiting):
        model, tuning = begin(bundle, "cuda", "mezo", {})
        tuning.step(kind(model, batch_of(0)), RATE)
        for _ in range(9):
            tuning.start(kind(model, batch_of(3)), RATE)
        with pytest.raises(EdgezoError, match="10 steps in a row"):
            tuning.start(kind(model, batch_of(3)), RATE)
        assert len(tuning.journal.records) == 11
        assert not tuning.step(kind(model, batch_of(0)), RATE).record.skipped
