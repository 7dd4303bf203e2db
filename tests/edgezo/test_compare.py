"""Comparisons and searches: many runs, their rows, and what happens when they are stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, labelled, refused, result_of, write_rows

from edgezo.callbacks import Callback
from edgezo.cli import run_memory
from edgezo.compare import Run, compare, plan, table
from edgezo.compare_rows import FIELDS, RESULTS, ROWS, read
from edgezo.data.rows import Rows
from edgezo.run_folder import RunFolder
from edgezo.search import search
from edgezo.settings import Settings
from edgezo.train import train
from edgezo.training_data import draw
from edgezo.tuned import open_tuned
from edgezo_runtime.devices import open_device
from edgezo_runtime.errors import EdgezoError, InputError

FEW = {"steps": 4, "batch_size": 4, "threads": 1, "eval_every": 2, "eval_examples": 12}


class Nobody(Callback):
    """Watches, and stops every run after so many steps."""

    def __init__(self, steps: int = 99) -> None:
        self.steps = steps
        self.seen = 0

    def on_step(self, step: Any, seconds: float) -> None:
        self.seen = step.number

    def should_stop(self) -> bool:
        return self.seen >= self.steps


MEZO = {"mezo": {"lr": 1e-3}}
METHODS = MEZO | {"es few": {"method": "es", "samples": 3, "lr": 1e-3}}


def runs_in(
    bundle: Path, data: Path, out: Path, methods: dict[str, Any] = METHODS, **settings: Any
) -> list[Run]:
    task = {"data": str(data / "train.jsonl"), "eval_data": str(data / "dev.jsonl")}
    return plan(str(bundle), {"mine": task}, methods, [0, 1], FEW | settings, out)


@contextlib.contextmanager
def unseen(run: Run) -> Iterator[Callback]:
    yield Nobody()


def test_a_comparison(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = runs_in(tiny_bundle, data, out, {"few": {"method": "icl", "in_context": 2}} | METHODS)
    rows = list(compare(runs, out, unseen))
    shown = [row for row in rows if row["method"] == "few"]
    assert [(row["seed"], row["family"]) for row in shown] == [(0, "baseline"), (1, "baseline")]
    assert shown[0]["settings_id"] == shown[1]["settings_id"] != rows[0]["settings_id"]
    assert shown[0]["settings"]["in_context"] == 2 and "method" not in shown[0]["settings"]
    rows = [row for row in rows if row not in shown]
    assert [(r["method"], r["seed"]) for r in rows] == [
        ("zero-shot", 0), ("mezo", 0), ("mezo", 1), ("es few", 0), ("es few", 1),
    ]  # fmt: skip
    assert all(row.keys() >= set(FIELDS) for row in rows)
    assert [row for row in read(out) if row["method"] != "few"] == json.loads(json.dumps(rows))
    assert [row["forwards"] for row in rows] == [0, 8, 8, 12, 12]
    assert [row["family"] for row in rows] == ["baseline"] + ["forward-only"] * 4
    assert [row["examples"] for row in rows] == [0] + [120] * 4
    assert {row["split"] for row in rows} == {"dev"}
    assert all(0 <= row["accuracy"] <= 1 and row["memory_ratio"] is None for row in rows)
    ids = [row["settings_id"] for row in rows]
    assert ids[1] == ids[2] != ids[3] == ids[4] and ids[0] not in ids[1:]
    # The zero-shot row is an evaluation of the bundle on the rows that the runs are judged by.
    few = RunFolder(next(run for run in runs if run.method == "mezo").settings.out)
    steps = [line["step"] for line in few.read_metrics() if "eval" in line]
    assert steps == [2, 4]
    assert not few.weights.exists()
    # A run is an ordinary one: what the row says, it says itself once it is rebuilt.
    again = called("resume", few.path, "--json")
    assert again.status == 0, again.err
    assert (again.json["accuracy"], again.json["loss"]) == (rows[1]["accuracy"], rows[1]["loss"])
    heading, *lines = table(rows)
    assert len(lines) == 3 and heading[0] == "task"
    values = [100 * row["accuracy"] for row in rows[1:3]]
    expected = f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} %"
    assert lines[1][6:] == (expected, "accuracy")

    # Nothing is run again, but a new seed or a new setting is.
    def never(run: Run) -> Any:
        raise AssertionError(run)

    assert list(compare(runs, out, never)) == read(out)
    other = runs_in(tiny_bundle, data, tmp_path / "out", batch_size=3)
    assert {run.settings_id for run in other}.isdisjoint(ids)


def test_a_stopped_comparison_goes_on(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = runs_in(tiny_bundle, data, out, MEZO)

    @contextlib.contextmanager
    def stopping(run: Run) -> Iterator[Callback]:
        yield Nobody(99 if run is runs[1] else 3)

    assert [row["seed"] for row in compare(runs, out, stopping)] == [0, 0]
    with (out / RESULTS).open("a") as file:
        file.write('{"task": "torn')
    done = list(compare(runs, out, unseen))
    assert [row["seed"] for row in done] == [0, 0, 1] and len(read(out)) == 3
    whole = list(compare(runs_in(tiny_bundle, data, tmp_path / "b", MEZO), tmp_path / "b", unseen))
    for row, other in zip(done, whole, strict=True):
        assert (row["accuracy"], row["loss"]) == (other["accuracy"], other["loss"])


def test_compare_on_the_command_line(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    task = f"mine={data / 'train.jsonl'}:{data / 'dev.jsonl'}"
    flags = ("--steps", 2, "--batch-size", 2, "--eval-every", 1, "--threads", 1, "--out", out)
    words = ("compare", tiny_bundle, "--data", task, "--methods", "default,mezo", *flags)
    done = called(*words, "--eval-examples", 6, "--linear-probe")
    assert done.status == 0, done.err
    assert [line.split()[:2] for line in done.out.splitlines()[:5]] == [
        ["task", "method"], ["mine", "zero-shot"], ["mine", "linear-probe"], ["mine", "default"],
        ["mine", "mezo"],
    ]  # fmt: skip
    zero, probe, default, mezo = read(out)
    assert all(0.2 < row["memory_ratio"] < 50 for row in (zero, probe, default, mezo))
    written = json.loads((out / ROWS).read_text("utf-8"))
    assert written == [{name: row[name] for name in FIELDS} for row in read(out)]
    assert (probe["family"], probe["forwards"], probe["examples"]) == ("baseline", 60, 120)
    assert (default["settings"]["method"], default["forwards"]) == ("fzoo", 60 + 2 * 17)
    page = (out / "comparison.html").read_text("utf-8")
    assert page.count("<svg") == 3 and page.count(">linear-probe</text>") == 3
    for unit in ("forward passes", "seconds", "peak memory / that of inference"):
        assert f"<figcaption>mine: held-out accuracy, %, by {unit}</figcaption>" in page
        assert f">{unit}</text>" in page
    # The same from a file, which finds everything done.
    config = tmp_path / "plan.yaml"
    config.write_text(
        f"bundle: {tiny_bundle}\nmethods: [linear-probe, default, mezo]\nseeds: [0]\n"
        f"data: {{mine: {{data: {data / 'train.jsonl'}, eval_data: {data / 'dev.jsonl'}}}}}\n"
        "settings: {steps: 2, batch_size: 2, eval_every: 1, eval_examples: 6}\n"
    )
    again = called("compare", "--config", config, "--out", out, "--threads", 1, "--json")
    assert again.status == 0, again.err
    assert again.json["finished"] and again.json["rows"] == read(out)
    typo, shown, odd, much = (tmp_path / f"{number}.yaml" for number in range(4))
    rows = f"data: {{mine: {{data: {data / 'train.jsonl'}, eval_data: {data / 'dev.jsonl'}}}}}\n"
    typo.write_text(rows + "methods: {fast: {method: adam}}\n")
    shown.write_text(rows + "methods: {icl: {in_context: 0}}\n")
    odd.write_text(rows + "methods: {linear-probe: {in_context: 3}}\n")
    much.write_text(rows + "methods: {mezo: {}, more: {method: mezo, samples: 4}}\nseeds: 3\n")
    for wrong, part in (
        (("--data", "mine=train.jsonl"), "write TASK=TRAIN.jsonl:DEV.jsonl"),
        (("--data", task, "--methods", "adam"), "method 'adam' is unknown"),
        (("--data", task, "--methods", "mezo", "--seeds", "a"), "seed 'a' is no whole number"),
        (("--data", task), "nothing to compare: give --methods"),
        (("--data", f"{task}x", "--methods", "mezo"), "task mine has no file"),
        (("--config", typo), "method 'adam' is unknown; use one of default, mezo"),
        (("--config", shown), "in_context is 0; use a whole number from 1 on"),
        (("--config", odd), "in_context is a setting of icl, not of linear-probe"),
        (("--config", much), "method mezo has no setting 'samples'; it has weight_decay, eps"),
    ):
        refused(called("compare", tiny_bundle, *wrong, "--out", tmp_path / "no"), 2, part)


def test_baselines_of_choices(tiny_bundle: Path, tmp_path: Path) -> None:
    """They stand beside each other as those of labels do; texts have only the untuned model."""
    rows = [
        {
            "prompt": f"story {i}",
            "choices": ["a good film", "bad"][:: 1 - 2 * (i % 2)],
            "label": i % 2,
        }
        for i in range(20)
    ]
    texts = [{"text": f"good film {i}"} for i in range(12)]
    paths = [write_rows(tmp_path / f"{n}.jsonl", r) for n, r in (("c", rows), ("t", texts))]
    tasks = {path.stem: {"data": str(path), "eval_data": str(path)} for path in paths}
    runs = plan(str(tiny_bundle), tasks, {"linear-probe": {}}, [0], FEW, tmp_path / "out")
    runs += plan(str(tiny_bundle), {"c": tasks["c"]}, {"icl": {}}, [0], FEW, tmp_path / "out")[1:2]
    found = list(compare(runs, tmp_path / "out", unseen))
    assert [(row["task"], row["method"]) for row in found] == [
        ("c", "zero-shot"), ("c", "linear-probe"), ("t", "zero-shot"), ("c", "icl"),
    ]  # fmt: skip
    zero, probe, text, shown = found
    assert probe["accuracy"] == 1 and (probe["examples"], probe["forwards"]) == (20, 10)
    assert shown["examples"] == 8 and shown["accuracy"] is not None is not zero["accuracy"]
    assert text["accuracy"] is None and text["perplexity"] > 1


def test_memory_of_steps_in_parts(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    """It is held against inference of a part."""
    (_, run, *_) = runs_in(tiny_bundle, data, tmp_path / "out", micro_batch=3)
    path = run_memory.RunWorker().take_steps(run.settings.to_dict(), str(tmp_path))
    with np.load(path) as feeds:
        assert len(feeds["input_ids"]) == 3


@pytest.mark.parametrize(("after", "peak"), [(345, 245), (250, 200)])
def test_memory_of_a_card(
    tiny_bundle: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    peak: int,
) -> None:
    """What the card holds more than before the model: after inference, and after the steps.

    It may be less after them, where a probe closed the session that was inferred with.
    """
    held = iter([100, 300, after])
    monkeypatch.setattr(run_memory, "card_bytes", lambda device: next(held))
    (_, run, *_) = runs_in(tiny_bundle, data, tmp_path / "out", start="auto")
    worker = run_memory.RunWorker()
    worker.take_steps(run.settings.to_dict(), str(tmp_path))
    assert (worker.plain(), worker.peak()) == (200, peak)


@pytest.mark.cuda
def test_memory_on_a_card(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    try:
        open_device("cuda")
    except EdgezoError as error:
        pytest.skip(str(error))
    methods = {"linear-probe": {}, "default": {}}
    for run in runs_in(tiny_bundle, data, tmp_path / "out", methods, device="cuda"):
        assert 1 <= (run_memory.memory_ratio(run) or 0) < 2


def test_memory_of_a_card_that_others_use(
    tiny_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = iter([1 << 30, 1 << 31])
    monkeypatch.setattr(run_memory, "card_bytes", lambda device: next(held))
    (_, run, *_) = runs_in(tiny_bundle, data, tmp_path / "out")
    assert run_memory.memory_ratio(run) is None


def test_another_run_in_the_way(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    runs = runs_in(tiny_bundle, data, tmp_path / "out")[1:2]
    list(compare(runs, tmp_path / "out", unseen))
    other = runs_in(tiny_bundle, data, tmp_path / "out", batch_size=3)[1:2]
    with pytest.raises(Exception, match="holds a run whose batch_size is 4, not 3"):
        list(compare(other, tmp_path / "out", unseen))


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [
        ("../mine", "mezo", "'../mine' is to name a folder"),
        ("mine", "es/few", "'es/few' is to name a folder"),
        ("mine", "adamw", "has no gradient graph"),  # before the others have run for hours
    ],
)
def test_what_is_refused_before_anything_runs(
    tiny_bundle: Path, data: Path, tmp_path: Path, task: str, method: str, message: str
) -> None:
    rows = {"data": str(data / "train.jsonl"), "eval_data": str(data / "dev.jsonl")}
    methods = {"mezo": {}, method: {"method": "es"} if "/" in method else {}}
    with pytest.raises(EdgezoError, match=message):
        plan(str(tiny_bundle), {task: rows}, methods, [0], {}, tmp_path)


def test_search_halves_and_goes_on(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    settings = Settings(
        bundle=str(tiny_bundle),
        data=str(data / "train.jsonl"),
        eval_data=str(data / "dev.jsonl"),
        out=str(tmp_path / "search"),
        steps=48,
        batch_size=2,
        eval_examples=8,
        threads=1,
    )
    grid = {"lr": [1e-4, 3e38, 1e-3], "eps": [1e-3]}
    told: list[tuple[float, int, float]] = []

    @contextlib.contextmanager
    def quiet(chosen: Any, run: Settings) -> Iterator[Callback]:
        yield Nobody()

    def report(trial: Any) -> None:
        told.append((trial.chosen["lr"], trial.steps, trial.loss))

    trials = search(settings, grid, quiet, report)
    assert trials is not None
    assert [trial.chosen["lr"] for trial in trials][2] == 3e38 and trials[2].loss == math.inf
    assert [trial.steps for trial in trials[:2]] == [48, 24]
    second = {lr: loss for lr, steps, loss in told if steps == 24}
    assert second.keys() == {1e-4, 1e-3}
    assert trials[0].chosen["lr"] == min(second, key=second.__getitem__)
    # Stopping a trial between the rounds changed nothing.
    best = RunFolder(tmp_path / "search" / f"lr={trials[0].chosen['lr']},eps=0.001")
    straight = dataclasses.replace(settings, **trials[0].chosen, out=str(tmp_path / "straight"))
    metrics = train(straight).metrics
    assert metrics is not None and trials[0].metrics is not None
    assert metrics.to_json() == trials[0].metrics.to_json()
    assert result_of(tmp_path / "straight")[0] == result_of(best.path)[0]
    before = list(told)
    told.clear()
    assert search(settings, grid, quiet, report) is not None
    assert told == before


def test_search_on_the_command_line(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    rows = ("--data", data / "train.jsonl", "--threads", 1, "--batch-size", 2)
    words = ("search", tiny_bundle, *rows, "--out", tmp_path / "s", "--lr", "1e-4,1e-3")
    done = called(*words, "--steps", 4, "--eval-examples", 8)
    assert done.status == 0, done.err
    assert done.out.startswith("best: lr ") and "\nedgezo train " in done.out
    again = called(*words, "--steps", 4, "--eval-examples", 8, "--json")
    assert again.json["best"]["lr"] in (1e-4, 1e-3)
    assert again.json["command"] in done.out and "--lr " in again.json["command"]
    assert [trial["steps"] for trial in again.json["trials"]] == [4, 2]
    refused(called(*words, "--steps", 4), 2, "needs held-out rows")
    refused(called(*words, "--steps", 1, "--eval-examples", 8), 2, "too few to halve 2 choices")


def test_scores_are_of_test_rows(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    """The kept weights, chosen on the held-out rows, are judged by others, as eval does it."""
    write_rows(tmp_path / "test.jsonl", labelled(50, first=900))
    files = {"data": str(data / "train.jsonl"), "eval_data": str(data / "dev.jsonl")}
    task = files | {"test_data": str(tmp_path / "test.jsonl"), "test_examples": 40}
    own = {"default": {"samples": 4}, "icl": {"in_context": 2}}
    settings = FEW | {"keep": "best"}

    def planned(task: dict[str, Any]) -> list[Run]:
        return plan(str(tiny_bundle), {"mine": task}, own, [0], settings, tmp_path / "out")

    runs = planned(task)
    rows = list(compare(runs, tmp_path / "out", unseen, keep_weights=True))
    assert [row["method"] for row in rows] == ["zero-shot", "default", "icl"]
    assert {row["split"] for row in rows} == {"test"}
    kept = RunFolder(runs[1].settings.out)
    dev = [line["eval"]["loss"] for line in kept.read_metrics() if "eval" in line]
    assert len(dev) == 2 and rows[1]["loss"] not in dev
    model, _ = open_tuned(kept.path, None)
    assert runs[1].tested is not None
    drawn = draw(model, runs[1].tested)
    assert isinstance(drawn.held_out, Rows) and len(drawn.held_out) == 40
    write_rows(tmp_path / "drawn.jsonl", map(drawn.held_out.row, range(40)))
    for model, row in ((tiny_bundle, rows[0]), (kept.path, rows[1])):
        found = called("eval", model, "--data", tmp_path / "drawn.jsonl", "--json").json
        assert found["accuracy"] == row["accuracy"]
        assert found["loss"] == pytest.approx(row["loss"], abs=1e-6)
    # None of the rows is taken for one of a comparison without test rows.
    ids = {run.settings_id for run in planned(files)}
    assert ids.isdisjoint(run.settings_id for run in runs)
    with pytest.raises(InputError, match="task mine has no test rows to draw 40 of"):
        planned(files | {"test_examples": 40})
    with pytest.raises(InputError, match=r"task mine has no file nowhere\.jsonl"):
        planned(files | {"test_data": "nowhere.jsonl"})


def test_test_rows_take_no_second_reading_of_the_training_rows(
    tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    """They may be gone by then: what they say of the labels is in the journal of the run."""
    write_rows(tmp_path / "train.jsonl", labelled(60))
    write_rows(tmp_path / "test.jsonl", labelled(20, first=900))
    names = {"data": "train", "eval_data": "dev", "test_data": "test"}
    task = {name: str(tmp_path / f"{file}.jsonl") for name, file in names.items()}
    task["eval_data"] = str(data / "dev.jsonl")
    own = {"mezo": {"lr": 1e-3, "start": "probe"}}

    @contextlib.contextmanager
    def removing(run: Run) -> Iterator[Callback]:
        yield Nobody()
        Path(run.settings.data).unlink()

    runs = plan(str(tiny_bundle), {"mine": task}, own, [0], FEW, tmp_path / "out")
    rows = list(compare(runs, tmp_path / "out", removing, keep_weights=True))
    tuned = called("eval", runs[1].settings.out, "--data", task["test_data"], "--json").json
    assert rows[1]["loss"] == pytest.approx(tuned["loss"], abs=1e-6)
