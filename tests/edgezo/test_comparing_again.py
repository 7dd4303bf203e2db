"""Comparisons and searches that are gone on with, or asked for in a wrong way."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edgezo_runs import called, refused, write_rows

from edgezo.callbacks import Callback
from edgezo.compare import Run, compare, plan
from edgezo_runtime.errors import InputError


@pytest.fixture
def rows(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(data / "dev.jsonl", tmp_path / "rows.jsonl"))


def runs_of(bundle: Path, rows: Path, out: Path, seeds: tuple[int, ...] = (0,), **more: Any) -> Any:
    task = {"data": str(rows), "eval_data": str(rows)}
    settings = {"steps": 2, "batch_size": 4, "threads": 1, **more}
    return plan(str(bundle), {"mine": task}, {"mezo": {}}, seeds, settings, out)


@contextlib.contextmanager
def unseen(run: Run) -> Iterator[Callback]:
    yield Callback()


def test_data_that_changed_since(tiny_bundle: Path, rows: Path, tmp_path: Path) -> None:
    """Kept rows would be of other data than new ones."""
    runs = runs_of(tiny_bundle, rows, tmp_path / "out")
    kept = list(compare(runs, tmp_path / "out", unseen))
    assert list(compare(runs, tmp_path / "out", unseen)) == kept
    rows.write_text(rows.read_text("utf-8") * 2, "utf-8")
    with pytest.raises(InputError, match=r"rows\.jsonl is not what it was when .* began"):
        list(compare(runs, tmp_path / "out", unseen))


def test_a_bundle_that_changed_since(tiny_bundle: Path, rows: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "own.edgezo"))
    runs = runs_of(bundle, rows, tmp_path / "out")
    list(compare(runs[:1], tmp_path / "out", unseen))
    (bundle / "edgezo.json").write_text((bundle / "edgezo.json").read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(InputError, match=r"own\.edgezo is not what it was when .* began"):
        list(compare(runs, tmp_path / "out", unseen))


@pytest.mark.parametrize("other", ["bundle", "data", "prompt"])
def test_another_file_in_the_place_of_one(
    tiny_bundle: Path, rows: Path, tmp_path: Path, other: str
) -> None:
    """Kept rows would be shown as those of what was not run."""
    out, prompt = tmp_path / "out", tmp_path / "mine.yaml"
    prompt.write_text('template: "{text} is"\n', "utf-8")
    done = list(compare(runs_of(tiny_bundle, rows, out, prompt=str(prompt)), out, unseen))
    moved = Path(shutil.copy(rows, tmp_path / "moved.jsonl"))
    again = runs_of(tiny_bundle, moved, out, prompt=str(prompt))
    assert list(compare(again, out, unseen)) == done  # the same rows, wherever they lie
    bundle = tiny_bundle
    if other == "bundle":
        bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "own.edgezo"))
        text = (bundle / "edgezo.json").read_text("utf-8")
        (bundle / "edgezo.json").write_text(text + "\n", "utf-8")
    elif other == "data":
        moved.write_text(moved.read_text("utf-8") * 2, "utf-8")
    else:
        prompt.write_text('template: "{text} was"\n', "utf-8")
    with pytest.raises(InputError, match=rf"{other}: .* is not what it was when .* began"):
        list(compare(runs_of(bundle, moved, out, prompt=str(prompt)), out, unseen))


def test_a_row_counts_the_rows_that_it_was_trained_on(
    tiny_bundle: Path, rows: Path, tmp_path: Path
) -> None:
    task = {"data": str(rows), "eval_data": str(rows), "test_data": str(rows), "examples": 6}
    task |= {"test_examples": 4}
    settings = {"steps": 2, "batch_size": 2, "threads": 1}
    runs = plan(str(tiny_bundle), {"mine": task}, {"mezo": {}}, [0], settings, tmp_path / "out")
    found = {row["method"]: row["examples"] for row in compare(runs, tmp_path / "out", unseen)}
    assert found["mezo"] == 6


def test_a_judged_run_keeps_no_weights(derived_bundle: Path, rows: Path, tmp_path: Path) -> None:
    task = {"data": str(rows), "eval_data": str(rows)}
    settings = {"steps": 2, "batch_size": 4, "threads": 1}
    for keep in (True, False):
        out = tmp_path / f"out-{keep}"
        runs = plan(str(derived_bundle), {"mine": task}, {"adamw": {}}, [0], settings, out)
        assert len(list(compare(runs, out, unseen, keep_weights=keep))) == 2
        files = {path.name for path in (out / "mine" / "adamw" / "seed-0").iterdir()}
        assert {"journal.ezj", "metrics.jsonl"} <= files
        assert ({"model.safetensors", "snapshots"} <= files) is keep
        assert ({"model.safetensors", "snapshots"} & files == set()) is not keep


def test_data_of_a_search_that_changed_since(tiny_bundle: Path, rows: Path, tmp_path: Path) -> None:
    words = ["search", tiny_bundle, "--data", rows, "--eval-data", rows, "--method", "mezo"]
    words += ["--lr", "1e-6", "--steps", 2, "--batch-size", 4, "--out", tmp_path / "out"]
    assert called(*words).status == called(*words).status == 0
    rows.write_text(rows.read_text("utf-8") * 2, "utf-8")
    refused(called(*words), 2, "rows.jsonl is not what it was when")


def test_a_seed_given_twice_is_one_run(tiny_bundle: Path, rows: Path, tmp_path: Path) -> None:
    runs = runs_of(tiny_bundle, rows, tmp_path / "out", (1, 0, 1))
    assert [run.settings.seed for run in runs if run.baseline is None] == [1, 0]


def test_an_adapter_that_cannot_be_had_is_told_first(
    tiny_bundle: Path, rows: Path, tmp_path: Path
) -> None:
    runs = runs_of(tiny_bundle, rows, tmp_path / "out", tune="lora")
    with pytest.raises(InputError, match="has no lora adapter"):
        next(compare(runs, tmp_path / "out", unseen))
    assert not (tmp_path / "out").exists()


def test_a_probe_that_a_task_has_nothing_for(tiny_bundle: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"word {i}:", "completion": " good"} for i in range(8)]
    rows = write_rows(tmp_path / "pairs.jsonl", pairs)
    words = ["--data", f"pairs={rows}:{rows}", "--linear-probe", "--methods", "mezo", "--steps", 1]
    done = called("compare", tiny_bundle, *words, "--batch-size", 2, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "task pairs has neither labels nor options: no linear-probe" in done.err


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        (["..={}:{}"], "'..' is to name a folder of the comparison"),
        (["a={}:{}", "a={}:{}"], "--data names two tasks a"),
    ],
)
def test_names_of_tasks(
    tiny_bundle: Path, rows: Path, tmp_path: Path, tasks: list[str], told: str
) -> None:
    words = [word for task in tasks for word in ("--data", task.format(rows, rows))]
    out = tmp_path / "out"
    done = called("compare", tiny_bundle, *words, "--methods", "mezo", "--steps", 1, "--out", out)
    refused(done, 2, told)
    assert not out.exists()
