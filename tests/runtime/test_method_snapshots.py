"""Snapshots of the weights and the state of every tuning method."""

from __future__ import annotations

from pathlib import Path

from method_cases import RATE, SPECS, every_method, make, short
from runtime_helpers import NoNumber, Quadratic, contents, make_arena, write_bundle

from edgezo_runtime import snapshot
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.journal import NAME, JournalWriter, read
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights


def bundle_with(folder: Path) -> Path:
    arena = make_arena(SPECS)
    return write_bundle(folder, {name: view.copy() for name, view in arena.views.items()})


@every_method
def test_resume_from_a_snapshot_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    """The next steps too: they take state and the last records from before it."""
    opened = open_bundle(bundle_with(tmp_path / "b.edgezo"))
    weights = Weights(opened)
    weights.load()
    header = describe(weights, short(name, weights.arena))
    (tmp_path / "run").mkdir()
    tuning = Tuning(weights, JournalWriter(tmp_path / "run" / NAME, header), tmp_path / "run")
    loss = Quadratic(weights.arena)
    for number in range(1, 13):
        tuning.step(loss if number != 4 else NoNumber(), RATE)
        if number == 7:
            snapshot.write(tmp_path / "run", tuning.journal.records, weights, tuning.method.state)
    journal = read(tmp_path / "run" / NAME)
    other = Weights(opened)
    resumed = Tuning(other, MemoryJournal(journal.header), tmp_path / "run")
    resumed.journal.records.extend(journal.records[:9])
    replayed: list[int] = []
    resumed.catch_up(progress=replayed.append)
    assert replayed == [8, 9]
    for _ in range(3):
        resumed.step(Quadratic(other.arena), RATE)
    assert resumed.journal.records == journal.records
    assert contents(other.arena) == contents(weights.arena)


def test_a_snapshot_of_other_steps_is_passed_over(tmp_path: Path) -> None:
    """The journal was put back from a copy, and other steps were taken since."""
    weights = Weights(open_bundle(bundle_with(tmp_path / "b.edgezo")))
    weights.load()
    header = describe(weights, make("mezo", weights.arena, 1, {}))
    tuning = Tuning(weights, MemoryJournal(header), tmp_path)
    loss = Quadratic(weights.arena)
    for number in range(1, 9):
        tuning.step(loss, RATE)
        if number in (3, 8):
            snapshot.write(tmp_path, tuning.journal.records, weights)
    tuning.journal.cut(5)
    tuning.catch_up()
    for _ in range(4):
        tuning.step(loss, RATE * 2)
    expected = contents(weights.arena)
    replayed: list[int] = []
    tuning.catch_up(progress=replayed.append)
    assert replayed == [4, 5, 6, 7, 8, 9] and contents(weights.arena) == expected
    snapshot.write(tmp_path, tuning.journal.records[:6], weights)
    kept = sorted(path.stem for path in (tmp_path / "snapshots").glob("step-*.json"))
    assert kept == ["step-00000003", "step-00000006"]


def test_a_snapshot_with_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    opened = open_bundle(bundle_with(tmp_path / "b.edgezo"))
    weights = Weights(opened)
    weights.load()
    tuning = Tuning(
        weights, MemoryJournal(describe(weights, make("zo-adam", weights.arena, 1, {}))), tmp_path
    )
    for number in range(1, 5):
        tuning.step(Quadratic(weights.arena), RATE)
        if number > 2:
            snapshot.write(tmp_path, tuning.journal.records, weights, tuning.method.state)
    expected = contents(weights.arena)
    for damage, steps in ((0, []), (1, [4]), (2, [1, 2, 3, 4])):
        for path in sorted((tmp_path / "snapshots").glob("state-*"), reverse=True)[:damage]:
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ damage]))
        replayed: list[int] = []
        tuning.catch_up(progress=replayed.append)
        assert replayed == steps and contents(weights.arena) == expected
    assert all((array != 0).any() for array in tuning.method.state.values())
