"""A run over a bundle: replay, resume, snapshots, and steps that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_helpers import LR, Quadratic, contents

from edgezo_runtime import snapshot
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.journal import NAME, JournalWriter, Record, read
from edgezo_runtime.methods import Mezo
from edgezo_runtime.tuning import MemoryJournal, Tuning, check_header, describe
from edgezo_runtime.weights import Weights


def tuning_of(bundle: Path, run: Path | None = None, seed: int = 4, threads: int = 1) -> Tuning:
    weights = Weights(open_bundle(bundle), device=CpuDevice(threads))
    weights.load()
    header = describe(weights, Mezo(weights.arena, seed, weight_decay=0.01))
    if run is None:
        return Tuning(weights, MemoryJournal(header))
    run.mkdir(exist_ok=True)
    return Tuning(weights, JournalWriter(run / NAME, header), run)


def bytes_of(tuning: Tuning) -> bytes:
    return contents(tuning.weights.arena)


def test_replay_from_the_base_and_the_journal(small_bundle: Path, tmp_path: Path) -> None:
    tuning = tuning_of(small_bundle, tmp_path / "run")
    loss = Quadratic(tuning.weights.arena)
    states = [bytes_of(tuning)]
    for step in range(1, 31):
        tuning.step(loss if step % 7 else lambda: float("nan"), LR)
        if step in (10, 30):
            states.append(bytes_of(tuning))
    journal = read(tmp_path / "run" / NAME)
    assert len(journal.records) == tuning.steps == 30
    other = Weights(open_bundle(small_bundle), device=CpuDevice(3))
    check_header(journal.header, other)
    for count, state in zip((0, 10, 30), states, strict=True):
        seen: list[int] = []
        again = Tuning(other, MemoryJournal(journal.header))
        again.catch_up(journal.records[:count], seen.append)
        assert bytes_of(again) == state and seen == [*range(1, count + 1)]


def test_resume_continues_to_the_same_bytes(small_bundle: Path, tmp_path: Path) -> None:
    whole = tuning_of(small_bundle)
    loss = Quadratic(whole.weights.arena)
    for _ in range(12):
        whole.step(loss, LR)
    run = tmp_path / "run"
    first = tuning_of(small_bundle, run)
    loss = Quadratic(first.weights.arena)
    for step in range(1, 9):
        first.step(loss, LR)
        if step in (3, 6):
            snapshot.write(run, first.journal.records, first.weights)
    del first  # killed: nothing is closed or saved
    path = run / NAME
    path.write_bytes(path.read_bytes()[:-5])  # in the middle of step 8's record
    weights = Weights(open_bundle(small_bundle))
    writer = JournalWriter(path)
    check_header(writer.header, weights)
    second = Tuning(weights, writer, run)
    replayed: list[int] = []
    second.catch_up(progress=replayed.append)
    assert replayed == [7] and second.steps == 7
    loss = Quadratic(weights.arena)
    for _ in range(5):
        second.step(loss, LR)
    assert bytes_of(second) == bytes_of(whole)


@pytest.mark.parametrize("damage", ["flip", "cut", "note", "future", "all"])
def test_a_damaged_snapshot_is_passed_over(small_bundle: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    tuning = tuning_of(small_bundle, run)
    loss = Quadratic(tuning.weights.arena)
    for _ in range(6):
        tuning.step(loss, LR)
        snapshot.write(run, tuning.journal.records, tuning.weights)
    expected = bytes_of(tuning)
    assert len(list((run / "snapshots").iterdir())) == 4  # the newest two
    newest = run / "snapshots" / "step-00000006.safetensors"
    if damage == "flip":
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(content)
    elif damage == "cut":
        newest.write_bytes(newest.read_bytes()[:100])
    elif damage == "note":
        newest.with_suffix(".json").write_text("{}")
    elif damage == "future":
        newest.with_suffix(".json").write_text(json.dumps({"step": 60, "sha256": ""}))
    else:
        for path in (run / "snapshots").iterdir():
            path.write_bytes(b"")
    replayed: list[int] = []
    tuning.catch_up(progress=replayed.append)
    assert replayed == ([1, 2, 3, 4, 5, 6] if damage == "all" else [6])
    assert bytes_of(tuning) == expected


@pytest.mark.parametrize("broken", [1, 2, "journal"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_raises_leaves_no_trace(
    small_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: int | str,
    error: type[BaseException],
) -> None:
    tuning, whole = tuning_of(small_bundle), tuning_of(small_bundle)
    loss = Quadratic(tuning.weights.arena)
    for _ in range(3):
        tuning.step(loss, LR)
        whole.step(Quadratic(whole.weights.arena), LR)
    calls = 0

    def failing() -> float:
        nonlocal calls
        calls += 1
        if calls == broken:
            raise error("no")
        return loss()

    def refuse(record: Record) -> None:
        raise error("no")

    with monkeypatch.context() as patch, pytest.raises(error):
        if broken == "journal":
            patch.setattr(tuning.journal, "append", refuse)
        tuning.step(failing, LR)
    assert tuning.steps == 3
    tuning.mend()
    assert bytes_of(tuning) == bytes_of(whole)
    for one in (tuning, whole):
        one.step(Quadratic(one.weights.arena), LR)
    assert bytes_of(tuning) == bytes_of(whole)


def test_the_next_step_mends_by_itself(small_bundle: Path) -> None:
    tuning, whole = tuning_of(small_bundle), tuning_of(small_bundle)
    with pytest.raises(ZeroDivisionError):
        tuning.step(lambda: 1 / 0, LR)
    for one in (tuning, whole):
        one.step(Quadratic(one.weights.arena), LR)
    assert bytes_of(tuning) == bytes_of(whole)


def test_ten_skipped_steps_in_a_row_stop_the_run(small_bundle: Path) -> None:
    tuning = tuning_of(small_bundle)
    loss = Quadratic(tuning.weights.arena)
    for _ in range(9):
        tuning.step(lambda: float("nan"), LR)
    tuning.step(loss, LR)
    for _ in range(9):
        assert tuning.step(lambda: float("nan"), LR).record.skipped
    with pytest.raises(EdgezoError, match=r"10 steps in a row.*lower --lr"):
        tuning.step(lambda: float("nan"), LR)
    assert tuning.steps == 20
    tuning.mend()
    replayed = tuning_of(small_bundle)
    replayed.catch_up(tuning.journal.records)
    assert bytes_of(tuning) == bytes_of(replayed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "0" * 64}, "was not made from .*000000000000"),
        ({"layout": "0" * 64}, "arena layout differs"),
        ({"noise": 2}, "noise version 2, this edgezo draws 1"),
        ({"scalars": 3}, "holds 3 scalars a step, mezo needs 1"),
        ({"settings": {"distribution": "gaussian"}, "numpy": "1.0"}, "install numpy 1.0"),
        *(({key: None}, "damaged|noise version") for key in ("base", "method", "seed", "settings")),
    ],
)
def test_a_journal_of_another_run_is_refused(
    small_bundle: Path, change: dict[str, Any], message: str
) -> None:
    tuning = tuning_of(small_bundle)
    check_header(tuning.journal.header, tuning.weights)
    with pytest.raises(InputError, match=message):
        check_header(tuning.journal.header | change, tuning.weights)
    stripped = {k: v for k, v in tuning.journal.header.items() if k not in change}
    if "scalars" not in change:
        with pytest.raises(InputError):
            check_header(stripped, tuning.weights)


def test_a_tuned_subset_leaves_the_rest_alone(
    small_bundle: Path, small_tensors: dict[str, np.ndarray]
) -> None:
    weights = Weights(open_bundle(small_bundle), "a.*")
    weights.load()
    assert set(weights.arena.views) == {"a.weight", "a.bias"}
    header = describe(weights, Mezo(weights.arena, 0))
    tuning = Tuning(weights, MemoryJournal(header))
    tuning.step(Quadratic(weights.arena), LR)
    arrays = weights.arrays()
    assert list(arrays) == list(small_tensors)
    assert np.array_equal(arrays["b.weight"], small_tensors["b.weight"])
    assert not np.array_equal(arrays["a.weight"], small_tensors["a.weight"])
    with pytest.raises(InputError, match="matches no parameter"):
        Weights(open_bundle(small_bundle), "a.*,nothing")
