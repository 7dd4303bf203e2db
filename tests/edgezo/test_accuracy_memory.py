"""benchmarks/accuracy_memory.py: rows without their memory get that of the run they tell of."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_compare import FEW, unseen

from edgezo.compare import Run, compare, plan
from edgezo.compare_rows import write_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
METHODS = {"es few": {"method": "es", "samples": 3, "lr": 1e-3, "start": "auto"}, "icl": {}}


def test_memory_of_recorded_rows(
    tiny_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("accuracy_memory")
    record = tmp_path / "accuracy.json"
    monkeypatch.setattr(script, "RECORD", record)
    rows = {"mine-16-13": "kshot/mine/16-13/train", "mine": "mine/train"}
    for name in (*rows.values(), "mine/dev"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / f"{Path(name).stem}.jsonl", tmp_path / f"{name}.jsonl")
    tasks = {
        task: {
            "data": str(tmp_path / f"{name}.jsonl"),
            "eval_data": str(tmp_path / "mine/dev.jsonl"),
        }
        for task, name in rows.items()
    }
    runs = plan(str(tiny_bundle), tasks, METHODS, [0, 1], FEW, tmp_path / "out")
    found = list(compare(runs, tmp_path / "out", unseen))
    for row in found[:3]:  # what is there stays
        row["memory_ratio"] = 0.5
    write_rows(tmp_path, found)
    for run, row in zip(runs, found, strict=True):
        made = script.run_of(row, tiny_bundle, tmp_path)
        assert (made.task, made.method, made.baseline) == (run.task, run.method, run.baseline)
        assert made.compared == row["settings"]
        for name in ("bundle", "data", "eval_data", "seed"):
            assert getattr(made.settings, name) == getattr(run.settings, name)

    measured: list[tuple[str, str]] = []
    measure = script.memory_ratio

    def counted(run: Run) -> Any:
        measured.append((run.task, run.method))
        return measure(run)

    monkeypatch.setattr(script, "memory_ratio", counted)
    words = ["--data", str(tmp_path), "--model", str(tiny_bundle)]
    train = tmp_path / "mine/train.jsonl"
    train.rename(tmp_path / "away.jsonl")
    stopped = CliRunner().invoke(script.main, words)
    assert stopped.exit_code == 1 and "5 rows are still without it" in stopped.output
    assert stopped.stderr.count(str(train)) == 3
    (tmp_path / "away.jsonl").rename(train)
    measured.clear()
    done = CliRunner().invoke(script.main, words)
    assert done.exit_code == 0, done.output
    # Runs that differ in their seed are one measurement, and what is there is not measured again.
    assert sorted(measured) == [("mine", "es few"), ("mine", "icl"), ("mine", "zero-shot")]
    written = json.loads(record.read_text("utf-8"))
    ratios: dict[tuple[str, str], set[float]] = {}
    for row, before in zip(written, found, strict=True):
        ratio = row.pop("memory_ratio")
        assert before.pop("memory_ratio") in (None, ratio) and row.items() <= before.items()
        ratios.setdefault((row["task"], row["settings_id"]), set()).add(ratio)
    assert all(len(each) == 1 and 0.2 < min(each) < 50 for each in ratios.values())
