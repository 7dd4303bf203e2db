"""A run gives the same bytes however often it is stopped, and whoever rebuilds it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgezo_runs import (
    STEPS,
    contents,
    edgezo,
    labelled,
    refused,
    result_of,
    succeed,
    train_words,
    write_rows,
)

import edgezo as package
from edgezo.callbacks import Callback
from edgezo.settings import Settings
from edgezo.train import train
from edgezo.tuner import Step, Tuner
from edgezo_runtime.batch import Batch
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.journal import encode_header, read


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    """A copy of the reference run that a test may damage."""
    return shutil.copytree(reference, tmp_path / "copy")


def unfinished(folder: Path, steps: int) -> Path:
    """Takes a finished run back to the moment after step `steps`."""
    journal = read(folder / "journal.ezj")
    data = (folder / "journal.ezj").read_bytes()
    (folder / "journal.ezj").write_bytes(data[: journal.start + 16 * steps])
    (folder / "model.safetensors").unlink()
    return folder


# Replay


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_replay_gives_the_run_s_bytes(
    reference: Path, tiny_bundle: Path, tmp_path: Path, threads: int
) -> None:
    out = tmp_path / "tuned.edgezo"
    words = ("replay", reference, "--base", tiny_bundle, "--out", out)
    told = succeed(*words, "--threads", threads, "--json").json
    assert told["steps"] == STEPS
    assert (out / "model.safetensors").read_bytes() == result_of(reference)[0]
    assert package.load(out, threads=1).bundle.manifest.files["model.safetensors"] == told["sha256"]


def test_a_journal_alone_is_enough(reference: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    mailed = tmp_path / "mailed" / "some-name"
    mailed.parent.mkdir()
    shutil.copyfile(reference / "journal.ezj", mailed)
    succeed("replay", mailed, "--base", tiny_bundle, "--out", tmp_path / "tuned.edgezo")
    assert (tmp_path / "tuned.edgezo" / "model.safetensors").read_bytes() == result_of(reference)[0]


def test_replay_at_a_step_is_the_shorter_run(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    for steps in (40, 13):
        flags = ("--schedule", "constant", "--steps", steps)
        succeed(*train_words(tiny_bundle, data, tmp_path / f"run-{steps}", *flags))
    for step, expected in (
        (13, tmp_path / "run-13" / "model.safetensors"),
        (0, tiny_bundle / "model.safetensors"),
    ):
        out = tmp_path / f"at-{step}.edgezo"
        words = ("replay", tmp_path / "run-40", "--base", tiny_bundle, "--out", out)
        succeed(*words, "--at-step", step)
        assert (out / "model.safetensors").read_bytes() == expected.read_bytes()
    words = ("replay", tmp_path / "run-40", "--base", tiny_bundle, "--out", tmp_path / "none")
    refused(edgezo(*words, "--at-step", 41), 2, "step 40", "step 41")
    assert not (tmp_path / "none").exists()


def test_replay_keeps_what_is_there(reference: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    before = contents(tmp_path)
    refused(edgezo("replay", reference, "--base", tiny_bundle, "--out", tmp_path), 2, "exists")
    assert contents(tmp_path) == before


def test_replay_wants_the_run_s_own_base(
    reference: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.edgezo"
    succeed("replay", reference, "--base", tiny_bundle, "--out", other, "--at-step", 1)
    words = ("replay", reference, "--base", other, "--out", tmp_path / "out.edgezo")
    refused(edgezo(*words), 2, "was not made from")


# Two processes


def test_two_fresh_processes_agree(
    reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    succeed(*train_words(tiny_bundle, data, again))
    assert result_of(again) == result_of(reference)

    def losses(folder: Path) -> list[float]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] if "loss" in line else line["eval"]["loss"] for line in lines]

    assert losses(again) == losses(reference)
    assert len(losses(again)) == STEPS + 1


# Damage


def test_a_torn_journal_goes_on(reference: Path, tmp_path: Path) -> None:
    whole = (reference / "journal.ezj").read_bytes()
    start = read(reference / "journal.ezj").start
    generator = random.Random(5)
    for index in range(6):
        cut = generator.randrange(start, len(whole))
        folder = shutil.copytree(reference, tmp_path / str(index))
        (folder / "model.safetensors").unlink()
        (folder / "journal.ezj").write_bytes(whole[:cut])
        succeed("resume", folder)
        assert result_of(folder) == result_of(reference), cut


def test_a_torn_journal_replays_to_its_last_whole_step(
    copy: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    journal = copy / "journal.ezj"
    journal.write_bytes(journal.read_bytes()[:-5])
    words = ("replay", copy, "--base", tiny_bundle, "--out", tmp_path / "out.edgezo", "--json")
    told = succeed(*words).json
    assert (told["steps"], told["torn_bytes"]) == (STEPS - 1, 11)


@pytest.mark.parametrize("place", ["magic", "header", "first", "middle"])
def test_a_flipped_bit_is_refused(
    copy: Path, tiny_bundle: Path, tmp_path: Path, place: str
) -> None:
    path = copy / "journal.ezj"
    data = bytearray(path.read_bytes())
    start = read(path).start
    at = {"magic": 2, "header": 40, "first": start + 1, "middle": start + 16 * 100 + 3}[place]
    data[at] ^= 0x10
    path.write_bytes(data)
    (copy / "model.safetensors").unlink()
    before = contents(copy)
    said = refused(edgezo("resume", copy), 2, str(path))
    if place == "middle":
        assert "step 101" in said
    refused(edgezo("replay", copy, "--base", tiny_bundle, "--out", tmp_path / "out"), 2, str(path))
    assert contents(copy) == before
    assert not (tmp_path / "out").exists()


def test_a_damaged_snapshot_is_passed_over(
    reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    succeed(*train_words(tiny_bundle, data, whole, "--snapshot-every", 30))
    assert result_of(whole) == result_of(reference)
    newest, older = sorted((whole / "snapshots").glob("*.safetensors"), reverse=True)
    for index, damaged in enumerate([[newest], [newest, older], []]):
        folder = unfinished(shutil.copytree(whole, tmp_path / str(index)), 190)
        for path in damaged:
            path = folder / "snapshots" / path.name
            content = bytearray(path.read_bytes())
            content[-1 - index] ^= 1
            path.write_bytes(content)
        if not damaged:
            (folder / "snapshots" / newest.name).with_suffix(".json").write_text("{")
        succeed("resume", folder)
        assert result_of(folder) == result_of(reference)


# Resume


def test_resume_of_a_finished_run_is_harmless(copy: Path) -> None:
    def kept() -> dict[str, str]:
        return {name: digest for name, digest in contents(copy).items() if name != "report.html"}

    before = kept()
    told = succeed("resume", copy, "--json").json
    assert told["finished"] and told["steps"] == STEPS
    assert kept() == before


@pytest.mark.parametrize("change", ["other", "missing"])
def test_resume_refuses_changed_data(
    tiny_bundle: Path, data: Path, tmp_path: Path, change: str
) -> None:
    own, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, own)
    succeed(*train_words(tiny_bundle, own, out, "--steps", 5))
    unfinished(out, 3)
    before = contents(out)
    if change == "other":
        write_rows(own / "train.jsonl", labelled(121))
    else:
        (own / "train.jsonl").unlink()
    refused(edgezo("resume", out), 2, "train.jsonl")
    assert contents(out) == before
    shutil.copyfile(data / "train.jsonl", own / "train.jsonl")
    succeed("resume", out)


def test_resume_refuses_edited_settings(copy: Path) -> None:
    path = unfinished(copy, 100) / "settings.yaml"
    path.write_text(path.read_text().replace("seed: 7", "seed: 8"))
    before = contents(copy)
    refused(edgezo("resume", copy), 2, "settings.yaml", "seed")
    assert contents(copy) == before


def test_a_second_writer_is_refused(
    reference: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    class Intruder(Callback):
        seen = ""

        def on_step(self, step: Step, seconds: float) -> None:
            if step.number == 3:
                self.seen = refused(edgezo("resume", out), 2, "another process")
                refused(edgezo(*words), 2, "already holds a run")

    out = tmp_path / "run"
    words = train_words(tiny_bundle, data, out)
    settings = Settings.from_dict(
        {
            "bundle": str(tiny_bundle),
            "data": str(data / "train.jsonl"),
            "eval_data": str(data / "dev.jsonl"),
            "out": str(out),
            "method": "mezo",
            "steps": STEPS,
            "threads": 1,
            "batch_size": 4,
            "lr": 1e-3,
            "seed": 7,
        },
        "the test",
    )
    intruder = Intruder()
    train(settings, intruder)
    assert intruder.seen
    assert result_of(out) == result_of(reference)


# A step that raises


class Impatient(Exception):
    pass


def test_a_step_that_raises_leaves_no_trace(
    tiny_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tuned(folder: Path, faulty: bool) -> tuple[bytes, bytes]:
        model = package.load(tiny_bundle, threads=1)
        tuner = Tuner(model, lr=1e-3, seed=3, run=folder)
        for batch in package.batches(data / "train.jsonl", model, batch_size=4):
            if faulty and tuner.step_index in (0, 9, 20):
                assert isinstance(batch, Batch)
                fail(model, tuner, batch)
            tuner.step(batch)
        tuner.save()
        tuner.close()
        return result_of(folder)

    def fail(model: package.Model, tuner: Tuner, batch: Batch) -> None:
        before = model.forward(batch)["logprobs"]
        ids = batch.input_ids.copy()
        ids[0, 0] = 10**6
        bad = Batch(
            ids, batch.attention_mask, batch.positions, batch.targets, batch.candidates,
            batch.objective,
        )  # fmt: skip
        with pytest.raises(EdgezoError):
            tuner.step(bad)
        np.testing.assert_array_equal(model.forward(batch)["logprobs"], before)
        calls = iter([1.0])

        def later(batch: Batch) -> Callable[[], float]:
            for value in calls:
                return lambda value=value: value
            raise Impatient  # between the two forward passes

        with monkeypatch.context() as patched:
            patched.setattr(model, "later", later)
            with pytest.raises(Impatient):
                tuner.step(batch)
        if tuner.step_index == 20:
            with monkeypatch.context() as patched:
                patched.setattr(tuner._tuning.journal, "append", lambda record: next(calls))
                with pytest.raises(StopIteration):
                    tuner.step(batch)
            assert model.weights.arrays() and tuner.step_index == 20

    assert tuned(tmp_path / "faulty", True) == tuned(tmp_path / "clean", False)


def test_the_header_says_what_a_run_is(reference: Path, tiny_bundle: Path) -> None:
    header = read(reference / "journal.ezj").header
    bundle = package.load(tiny_bundle, threads=1).bundle
    assert header["base"] == bundle.digest
    assert (header["threads"], header["seed"], header["method"]) == (1, 7, "mezo")
    assert header["onnxruntime"] and header["data"] and header["layout"]
    assert header["order"] == {"version": 1, "batch_size": 4}
    size = (reference / "journal.ezj").stat().st_size
    assert size == len(encode_header(header)) + 16 * STEPS
