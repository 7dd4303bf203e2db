"""edgezo as a library: somebody's own loop, evaluation, generation, settings."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import contents, labelled, result_of, succeed, train_words, write_rows

import edgezo
from edgezo.callbacks import Callback
from edgezo.data import read_rows
from edgezo.replay import replay
from edgezo.run_folder import RunFolder
from edgezo.settings import Settings
from edgezo.tasks import make_task
from edgezo.tasks.base import Task
from edgezo.train import resume, train
from edgezo_runtime import journal, safetensors_file
from edgezo_runtime.batch import BaseBatch, Batch, CandidateLoss


def task_of(model: edgezo.Model, path: Path) -> tuple[Task, Any]:
    rows = read_rows(path)
    task = make_task(None, rows, model.tokenizer, model.context_length)
    return task, task.encode_rows(rows)


def settings_for(bundle: Path, data: Path, out: Path, **changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "bundle": str(bundle),
        "data": str(data / "train.jsonl"),
        "eval_data": str(data / "dev.jsonl"),
        "out": str(out),
        "steps": 12,
        "batch_size": 4,
        "lr": 1e-3,
        "threads": 1,
    }
    return Settings.from_dict(fields | changes, "the test")


# The loop


def test_the_example_of_the_design(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    model = edgezo.load(str(tiny_bundle))
    tuner = edgezo.Tuner(model, method="mezo", lr=1e-3, eps=1e-3, seed=0)
    losses = []
    path = str(data / "train.jsonl")
    for batch in edgezo.batches(path, model, task="classify", batch_size=16):
        step = tuner.step(batch)
        assert math.isfinite(step.loss) and math.isfinite(step.projected_grad)
        assert not step.skipped and step.number == tuner.step_index
        assert step.lr == pytest.approx(1e-3)
        losses.append(step.loss)
    assert len(losses) == math.ceil(120 / 16)
    run = tuner.save(str(tmp_path / "run"))
    assert replay(run, tiny_bundle, tmp_path / "tuned.edgezo").steps == len(losses)
    tuned = (tmp_path / "tuned.edgezo" / "model.safetensors").read_bytes()
    assert tuned == result_of(run)[0] != (tiny_bundle / "model.safetensors").read_bytes()


def test_tuning_lowers_the_loss(
    model: edgezo.Model, data: Path, batches: Iterator[BaseBatch]
) -> None:
    task, examples = task_of(model, data / "dev.jsonl")
    before = edgezo.evaluate(model, task, examples)
    tuner = edgezo.Tuner(model, lr=1e-3)
    for _ in range(100):
        tuner.step(next(batches))
    after = edgezo.evaluate(model, task, examples)
    assert after.loss < before.loss
    assert after.accuracy is not None and before.accuracy is not None
    assert after.accuracy >= before.accuracy


def test_an_own_learning_rate_is_recorded(
    model: edgezo.Model, batches: Iterator[BaseBatch], tmp_path: Path
) -> None:
    tuner = edgezo.Tuner(model, lr=1e-3, run=tmp_path / "run")
    for lr in (None, 5e-4, 0.0):
        tuner.step(next(batches), lr=lr)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(edgezo.InputError, match="lr is"):
            tuner.step(next(batches), lr=bad)
    tuner.save()
    tuner.close()
    rates = [float(r.lr) for r in journal.read(tmp_path / "run" / "journal.ezj").records]
    assert rates == pytest.approx([1e-3, 5e-4, 0.0])


def test_evaluation_between_steps_sees_unperturbed_weights(
    model: edgezo.Model, data: Path, batches: Iterator[BaseBatch], tmp_path: Path
) -> None:
    task, examples = task_of(model, data / "dev.jsonl")
    tuner = edgezo.Tuner(model, lr=1e-3, run=tmp_path / "run")
    seen = {}
    for _ in range(6):
        tuner.step(next(batches))
        if tuner.step_index in (2, 5):
            found = edgezo.evaluate(model, task, examples)
            seen[tuner.step_index] = (found.loss, edgezo.generate(model, "a film", 5))
    tuner.save()
    tuner.close()
    for step, expected in seen.items():
        out = tmp_path / f"{step}.edgezo"
        replay(tmp_path / "run", model.bundle.folder, out, at_step=step)
        fresh = edgezo.load(out, threads=1)
        found = edgezo.evaluate(fresh, task, examples)
        assert (found.loss, edgezo.generate(fresh, "a film", 5)) == expected
    quiet = edgezo.Tuner(edgezo.load(model.bundle.folder, threads=1), lr=1e-3)
    again = edgezo.batches(data / "train.jsonl", quiet.model, batch_size=4, epochs=None)
    for _ in range(6):
        quiet.step(next(again))
    quiet.save(tmp_path / "quiet")  # looking changed nothing
    assert result_of(tmp_path / "quiet") == result_of(tmp_path / "run")


def test_saving_again(model: edgezo.Model, batches: Iterator[BaseBatch], tmp_path: Path) -> None:
    tuner = edgezo.Tuner(model, lr=1e-3)
    early = None
    for count in (3, 2, 0):
        for _ in range(count):
            tuner.step(next(batches))
        tuner.save(tmp_path / "run")
        assert len(journal.read(tmp_path / "run" / "journal.ezj").records) == tuner.step_index
        early = early or result_of(tmp_path / "run")
    replay(tmp_path / "run", model.bundle.folder, tmp_path / "3.edgezo", at_step=3)
    assert early is not None
    assert (tmp_path / "3.edgezo" / "model.safetensors").read_bytes() == early[0]

    before = contents(tmp_path / "run")
    other = edgezo.Tuner(edgezo.load(model.bundle.folder, threads=1), lr=1e-3, seed=1)
    other.step(next(batches))
    with pytest.raises(edgezo.InputError, match="already holds a run"):
        other.save(tmp_path / "run")
    with pytest.raises(edgezo.InputError, match="needs a folder"):
        other.save()
    assert contents(tmp_path / "run") == before


def test_a_saved_run_can_be_used(
    model: edgezo.Model, data: Path, batches: Iterator[BaseBatch], tmp_path: Path
) -> None:
    for name, kept in (("memory", None), ("disk", tmp_path / "disk")):
        fresh = edgezo.load(model.bundle.folder, threads=1)
        tuner = edgezo.Tuner(fresh, lr=1e-3, run=kept)
        tuner.step(next(batches))
        run = tuner.save(tmp_path / name)
        tuner.close()
        told = succeed("eval", run, "--data", data / "dev.jsonl", "--threads", 1, "--json").json
        task, examples = task_of(fresh, data / "dev.jsonl")
        assert told["loss"] == edgezo.evaluate(fresh, task, examples).loss
        succeed("generate", run, "a film", "--max-tokens", 3)
        assert succeed("info", run, "--json").json["steps_done"] == 1


def test_a_run_on_disk_goes_on(model: edgezo.Model, data: Path, tmp_path: Path) -> None:
    bundle = model.bundle.folder
    for name, stops in (("whole", ()), ("parts", (4, 9))):
        tuner = edgezo.Tuner(edgezo.load(bundle, threads=1), lr=1e-3, run=tmp_path / name)
        for number, batch in enumerate(
            edgezo.batches(data / "train.jsonl", model, batch_size=8), start=1
        ):
            tuner.step(batch)
            if number in stops:
                if number == 4:
                    tuner.snapshot()
                tuner.close()
                fresh = edgezo.load(bundle, threads=1)
                tuner = edgezo.Tuner.resume(fresh, tmp_path / name)
                assert tuner.step_index == number
        tuner.save()
        tuner.close()
    assert result_of(tmp_path / "parts") == result_of(tmp_path / "whole")


def test_a_tuned_model_begins_no_other_run(
    model: edgezo.Model, batches: Iterator[BaseBatch]
) -> None:
    tuner = edgezo.Tuner(model, lr=1e-3)
    tuner.step(next(batches))
    with pytest.raises(edgezo.InputError, match="load the bundle again"):
        edgezo.Tuner(model, lr=1e-3)
    tuner._tuning.catch_up()  # rebuilt is not the base either
    with pytest.raises(edgezo.InputError, match="load the bundle again"):
        edgezo.Tuner(model, lr=1e-3)


def test_weight_decay_shrinks_matrices_alone(
    tiny_bundle: Path, batches: Iterator[BaseBatch]
) -> None:
    batch, views = next(batches), []
    for decay in (0.0, 2.0):
        model = edgezo.load(tiny_bundle, threads=1)
        edgezo.Tuner(model, lr=1e-2, weight_decay=decay).step(batch)
        views.append(model.weights.arrays())
    factor = np.float32(1 - float(np.float32(1e-2)) * 2.0)
    for name, plain in views[0].items():
        expected = plain * factor if plain.ndim >= 2 else plain
        np.testing.assert_array_equal(views[1][name], expected, name)


# A part of the weights


def test_tuning_a_pattern(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = edgezo.load(tiny_bundle, threads=1, tune="*.mlp.*, *norm*")
    tuner = edgezo.Tuner(model, lr=1e-3)
    for batch in edgezo.batches(data / "train.jsonl", model, batch_size=8):
        tuner.step(batch)
    run = tuner.save(tmp_path / "run")
    base = edgezo.load(tiny_bundle, threads=1).weights.arrays()
    entries = safetensors_file.read_header(run / "model.safetensors")
    assert set(entries) == set(base)
    for name, entry in entries.items():
        tuned = np.asarray(safetensors_file.map_tensor(run / "model.safetensors", entry))
        equal = tuned.tobytes() == base[name].tobytes()
        assert equal == (".mlp." not in name and "norm" not in name), name
    replay(run, tiny_bundle, tmp_path / "tuned.edgezo")
    replayed = (tmp_path / "tuned.edgezo" / "model.safetensors").read_bytes()
    assert replayed == result_of(run)[0]

    theirs = AutoModelForCausalLM.from_pretrained(run).eval()
    ids = np.array([model.tokenizer.encode("a good film with a bad story")], np.int64)
    count = ids.shape[1]
    batch = Batch(
        ids,
        np.ones_like(ids),
        np.arange(count),
        np.zeros(count, np.int64),
        np.arange(512),
        CandidateLoss(np.zeros(count, np.int64)),
    )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits[0].numpy()
    for ours in (model, edgezo.load(tmp_path / "tuned.edgezo", threads=1)):
        np.testing.assert_allclose(ours.forward(batch)["candidate_logits"], expected, atol=1e-4)


def test_a_pattern_s_run_from_the_command_line(
    tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    flags = ("--tune", "*.self_attn.*", "--steps", 15, "--snapshot-every", 4)
    succeed(*train_words(tiny_bundle, data, tmp_path / "run", *flags))
    whole = result_of(tmp_path / "run")
    stopped = shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    (stopped / "model.safetensors").unlink()
    (stopped / "journal.ezj").write_bytes(whole[1][:-50])
    succeed("resume", stopped)
    assert result_of(stopped) == whole


# Callbacks


class Watcher(Callback):
    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.steps: list[int] = []
        self.evals: list[tuple[int, edgezo.Metrics]] = []
        self.replayed: list[tuple[int, int]] = []

    def on_replay(self, done: int, total: int) -> None:
        self.replayed.append((done, total))

    def on_step(self, step: edgezo.Step, seconds: float) -> None:
        assert seconds > 0
        self.steps.append(step.number)

    def on_eval(self, step: int, metrics: edgezo.Metrics) -> None:
        self.evals.append((step, metrics))

    def should_stop(self) -> bool:
        return self.steps[-1] == self.stop_after


def test_callbacks_watch_and_stop_a_run(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    watcher = Watcher(stop_after=6)
    result = train(settings_for(tiny_bundle, data, out, eval_every=4), watcher)
    assert (result.steps, result.finished, result.metrics) == (6, False, watcher.evals[0][1])
    assert watcher.steps == list(range(1, 7)) and [step for step, _ in watcher.evals] == [4]
    second = Watcher()
    result = resume(out, second)
    assert result.finished and result.steps == 12 and result.metrics
    assert second.replayed == [(n, 12) for n in range(1, 7)]
    assert second.steps == list(range(7, 13)) and [step for step, _ in second.evals] == [8, 12]
    whole = train(settings_for(tiny_bundle, data, tmp_path / "whole", eval_every=4))
    assert result_of(out) == result_of(tmp_path / "whole")
    assert whole.metrics and whole.metrics.to_json() == result.metrics.to_json()

    def metrics(run: Path) -> list[dict[str, Any]]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]

    assert metrics(out) == metrics(tmp_path / "whole")


def test_a_callback_that_raises_stops_the_run_which_goes_on(
    tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    class Faulty(Watcher):
        def on_step(self, step: edgezo.Step, seconds: float) -> None:
            if step.number == 5:
                raise LookupError

    out = tmp_path / "run"
    with pytest.raises(LookupError):
        train(settings_for(tiny_bundle, data, out), Faulty())
    resume(out)
    train(settings_for(tiny_bundle, data, tmp_path / "whole"))
    assert result_of(out) == result_of(tmp_path / "whole")


@pytest.mark.parametrize("name", ["text", "completion"])
def test_other_tasks_train_and_resume(
    tiny_bundle: Path, data: Path, tmp_path: Path, name: str
) -> None:
    own = tmp_path / "data"
    own.mkdir()
    for file in ("train.jsonl", "dev.jsonl"):
        shutil.copyfile(data / f"{name}.jsonl", own / file)
    for run, stop in (("whole", None), ("stopped", 7)):
        settings = settings_for(tiny_bundle, own, tmp_path / run, lr=1e-4)
        result = train(settings, Watcher(stop))
        if stop:
            result = resume(tmp_path / run)
        assert result.metrics and result.metrics.perplexity
    assert result_of(tmp_path / "whole") == result_of(tmp_path / "stopped")


# Settings


def test_flags_override_the_file_which_overrides_the_defaults(
    tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"bundle: {tiny_bundle}\ndata: {data / 'train.jsonl'}\nout: {tmp_path / 'run'}\n"
        "lr: 1e-4\nsteps: 30\nbatch-size: 4\nseed: 18446744073709551615\nschedule: constant\n"
        "method: mezo\n"
    )
    flags = {"steps": 3, "seed": None, "schedule": "cosine"}
    settings = Settings.resolve(flags, config)
    assert (settings.lr, settings.steps, settings.batch_size) == (1e-4, 3, 4)
    assert (settings.seed, settings.schedule, settings.eps) == (2**64 - 1, "cosine", None)
    succeed("train", "--config", config, "--steps", 3, "--schedule", "cosine", "--threads", 1)
    kept = RunFolder(tmp_path / "run").read_settings()
    options = {"median_clip": 0.0, "distribution": "binomial"}
    expected = settings.to_dict() | {"threads": 1, "tune": "full", "eps": 1e-3, "options": options}
    expected |= {"start": "base", "objective": "loss"}
    assert kept == expected
    header = journal.read(tmp_path / "run" / "journal.ezj").header
    assert header["seed"] == 2**64 - 1
    assert header["lr"] == {"lr": 1e-4, "schedule": "cosine", "steps": 3}


def test_label_words_by_label(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": int(row["label"] == "positive")} for row in labelled(12)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    headers = []
    for index, given in enumerate(("0=bad,1=good", "1=good, 0=bad", {0: "bad", 1: "good"})):
        config = {"bundle": str(tiny_bundle), "data": str(data), "steps": 1, "threads": 1}
        out = str(tmp_path / str(index))
        settings = Settings.from_dict(config | {"out": out, "label_words": given}, "the test")
        train(settings)
        header = journal.read(tmp_path / str(index) / "journal.ezj").header
        headers.append(dict(zip(header["task"]["labels"], header["task"]["words"], strict=True)))
    assert headers == [{"0": "bad", "1": "good"}] * 3
