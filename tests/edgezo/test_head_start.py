"""Runs that begin with the label words fitted: what changes, and that it comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgezo_runs import called, refused, write_rows
from safetensors.numpy import load_file

import edgezo
from edgezo import head_start
from edgezo.cli.common import open_model
from edgezo.data import eval_batches, rows_from
from edgezo.features import features
from edgezo.head_start import fit_head
from edgezo.logistic import fit_from
from edgezo.tasks import Classify, make_task
from edgezo.tasks.label_task import LabelTask
from edgezo_runtime.bundle import LEAN
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.start import FILE

MATRIX = "model.embed_tokens.weight"
FLAGS = ("--threads", 1, "--batch-size", 4, "--method", "mezo", "--lr", 1e-4, "--tune", "upper")
TEXTS = [
    f"{'great film' if i % 2 else 'terrible book'} {'story ' * (i % 3)}{'music' * (i % 2)}"
    for i in range(24)
]
ROWS = [
    {"text": text, "label": "positive" if i % 2 else "negative"} for i, text in enumerate(TEXTS)
]
WORDS = "negative=bad,positive=good"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def test_the_fit_is_where_the_penalised_loss_is_least() -> None:
    rng = np.random.default_rng(0)
    inputs, labels, begun = (
        rng.normal(size=(60, 5)),
        rng.integers(0, 3, 60),
        rng.normal(size=(3, 5)),
    )
    found = fit_from(inputs, labels, begun, 0.1)
    scores = inputs @ found.T
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    slope = (chances - np.eye(3)[labels]).T @ inputs / 60 + 0.1 * (found - begun)
    assert np.abs(slope).max() < 1e-4 < np.abs(found - begun).max()
    assert np.allclose(fit_from(inputs, labels, begun, 1e6), begun, atol=1e-4)


def test_rows_are_left_out_of_every_label() -> None:
    """Also where labels take turns, so that every fourth row has the same."""
    labels = np.arange(40) % 4
    inputs = 3 * np.eye(4)[labels] + 0.1 * np.random.default_rng(0).normal(size=(40, 4))
    assert head_start._held_out_loss(inputs, labels, np.zeros((4, 4)), 1e-2) < 0.3 < np.log(4)


@pytest.mark.parametrize(
    "name", ["llama", "bert", "roberta", "bert_head", "llama_head", "t5_gated"]
)
def test_the_labels_rows_change_and_nothing_else(
    name: str, tiny_bundle: Path, family_bundle: Callable[[str], Path]
) -> None:
    """And the model then says what the regression says."""
    folder = tiny_bundle if name == "llama" else family_bundle(name)
    for tune in ("upper", "full"):  # the matrix is frozen, or trained
        model = edgezo.load(folder, tune=tune, threads=1)
        rows = rows_from(ROWS)
        words = None if name.endswith("head") else WORDS
        context, form = model.context_length, model.form
        task = make_task(None, rows, model.tokenizer, context, None, words, form=form)
        assert isinstance(task, LabelTask)
        examples = task.encode_rows(rows)
        before = {name: np.array(array) for name, array in model.weights.arrays().items()}
        batch = task.collate(examples)
        untuned = model.loss(batch)
        inputs = features(model, task, examples, list(eval_batches(task, examples, 6)))
        head = fit_head(model, task, examples, 6)
        weight, *bias = head.start.values
        assert bool(bias) == (name not in ("llama", "llama_head", "t5_gated"))
        assert head.forwards == 4 and head.helps
        model.begin_at(head.start)
        for key, array in model.weights.arrays().items():
            changed = np.flatnonzero((array != before[key]).reshape(len(array), -1).any(axis=1))
            expected = set(task.candidates.tolist()) if key in head.start.values else set()
            assert set(changed.tolist()) == expected, key
            if key in head.start.values:
                assert np.array_equal(array[head.start.rows], head.start.values[key])
        scores = inputs @ head.start.values[weight].T + (head.start.values[bias[0]] if bias else 0)
        logits = model.forward(batch)["candidate_logits"]
        assert model.loss(batch) < untuned
        if name != "llama":  # whose texts hold the words: they read other embeddings now
            np.testing.assert_allclose(logits, scores, rtol=1e-3, atol=1e-3)


def test_lean_graphs_are_left_aside(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card runs a bundle's lean graph, which does not return the features."""
    monkeypatch.setattr(CpuDevice, "lean", True)
    model = edgezo.load(tiny_bundle, threads=1)
    assert LEAN in model.bundle.manifest.files
    task = make_task(None, rows_from(ROWS), model.tokenizer, model.context_length, None, WORDS)
    examples = task.encode_rows(rows_from(ROWS))
    assert features(model, task, examples, eval_batches(task, examples, 6)).any()


def test_a_run_replays_and_resumes(tiny_bundle: Path, rows: Path, tmp_path: Path) -> None:
    asked = ("train", tiny_bundle, "--data", rows, "--label-words", WORDS, *FLAGS)
    whole = called(*asked, "--steps", 6, "--start", "probe", "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err
    run = tmp_path / "whole"
    tuned = load_file(run / "model.safetensors")
    begun = load_file(run / FILE)
    assert np.array_equal(tuned[MATRIX][begun["rows"]], begun[MATRIX])
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["start"], first["forwards"]) == ("probe", 6)
    replayed = called("replay", run, "--base", tiny_bundle, "--out", tmp_path / "again")
    assert replayed.status == 0, replayed.err
    weights = (run / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    # Cut after the header and three records, as a crash leaves it.
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    (cut / "model.safetensors").unlink()
    journal = (cut / "journal.ezj").read_bytes()
    (cut / "journal.ezj").write_bytes(journal[: len(journal) - 3 * 16])
    resumed = called("resume", cut)
    assert resumed.status == 0, resumed.err
    assert (cut / "model.safetensors").read_bytes() == weights
    # Without its beginning, or with another, there is no way back.
    values = bytearray((run / FILE).read_bytes())
    values[-1] ^= 1
    (run / FILE).write_bytes(values)
    replay = ("replay", run, "--base", tiny_bundle, "--out", tmp_path / "third")
    refused(called(*replay), 2, "start.safetensors is not what the run began with")
    (run / FILE).unlink()
    refused(called(*replay), 2, "start.safetensors is missing, which the run began with")


@pytest.mark.parametrize("tune", ["lora", "prefix", "scales"])
def test_over_a_frozen_matrix(
    tune: str, tiny_bundle: Path, tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    """What is trained lies beside the fitted rows: all that reads a run puts both together."""
    base = tiny_bundle
    if tune == "scales":
        base = tmp_path / "int4.edgezo"
        assert called("export", tiny_bundle, "--quantize", "int4", "--out", base).status == 0
    run = tmp_path / "run"
    flags = (*FLAGS[:-1], tune, "--eval-data", rows, "--eval-every", 2, "--steps", 5, "--json")
    words = ("--data", rows, "--label-words", WORDS)
    done = called("train", base, *words, *flags, "--start", "probe", "--out", run)
    assert done.status == 0, done.err
    begun = called("train", base, *words, *flags, "--start", "base", "--out", tmp_path / "plain")
    assert done.json["loss"] < begun.json["loss"] - 0.1
    told = called("eval", run, "--data", rows, "--threads", 1, "--batch-size", 4, "--json")
    assert told.status == 0, told.err
    assert (told.json["loss"], told.json["accuracy"]) == (done.json["loss"], done.json["accuracy"])
    file = "model.safetensors" if tune == "scales" else "adapter_model.safetensors"
    weights = (run / file).read_bytes()
    out = tmp_path / "again"
    assert called("replay", run, "--base", base, "--out", out).status == 0
    assert (out / file).read_bytes() == weights
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    (cut / file).unlink()
    (cut / "journal.ezj").write_bytes((run / "journal.ezj").read_bytes()[: -2 * 16])
    resumed = called("resume", cut, "--json")
    assert resumed.status == 0, resumed.err
    assert (cut / file).read_bytes() == weights and resumed.json["loss"] == done.json["loss"]
    if tune == "scales":
        return
    assert (out / FILE).read_bytes() == (run / FILE).read_bytes()
    # PEFT would put a prefix over the base without the rows, so nothing is for it to load.
    for folder in (run, out):
        assert (folder / "adapter_config.json").exists() == (tune == "lora")
    save = ("save", run, "--out", tmp_path / "saved", "--format")
    if tune == "prefix":
        refused(called(*save, "peft"), 2, "tuned a prefix from fitted rows of the base, which")
    else:
        assert called(*save, "peft").status == 0
        check_peft(tmp_path / "saved", run, tiny_checkpoint)
        for style in ("merged", "onnx-adapter"):
            shutil.rmtree(tmp_path / "saved", ignore_errors=True)
            saved = called(*save, style)
            assert saved.status == 0, saved.err
            found = load_file(tmp_path / "saved" / "model.safetensors")
            fitted = load_file(run / FILE)
            assert np.array_equal(found[MATRIX][fitted["rows"]], fitted[MATRIX])
            assert found.keys() == load_file(tiny_bundle / "model.safetensors").keys()


def check_peft(saved: Path, run: Path, checkpoint: Path) -> None:
    """Checks that PEFT puts adapter and rows over the base as edgezo does."""
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = open_model(run, None, 1)[0]
    task = make_task(None, rows_from(ROWS), model.tokenizer, model.context_length, None, WORDS)
    (example, *_) = task.encode_rows(rows_from(ROWS))
    ours = model.forward(task.collate([example]))["candidate_logits"][0]
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    tuned = PeftModel.from_pretrained(base, str(saved)).eval()
    with torch.no_grad():
        theirs = tuned(torch.from_numpy(example.parts[0].tokens)[None]).logits[0, -1]
    np.testing.assert_allclose(ours, theirs.numpy()[task.candidates], atol=1e-4)


def test_what_does_not_help_is_left_out(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit of labels that no text tells, far from the model's own rows."""
    monkeypatch.setattr(head_start, "_DECAYS", (1e-9,))
    labels = np.random.default_rng(0).permutation(["negative", "positive"] * 12)
    drawn = [{"text": t, "label": str(label)} for t, label in zip(TEXTS, labels, strict=True)]
    data = write_rows(tmp_path / "drawn.jsonl", drawn)
    asked = ("train", tiny_bundle, "--data", data, "--label-words", WORDS, *FLAGS, "--steps", 1)
    done = called(*asked, "--start", "auto", "--out", tmp_path / "a")
    assert done.status == 0, done.err
    assert "no start from a probe: rows that were left out are predicted better" in done.err
    assert not (tmp_path / "a" / FILE).exists()
    first = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["start"], first["forwards"]) == ("base", 6)  # which were taken all the same
    done = called(*asked, "--start", "probe", "--out", tmp_path / "b")
    assert done.status == 0 and (tmp_path / "b" / FILE).exists(), done.err


def test_words_that_begin_alike(tiny_bundle: Path, tmp_path: Path) -> None:
    """Tokens of their own tell them, one sequence a row; the fit gives these a meaning."""
    words = ("bad story book", "bad music", "good")
    labels = ("odd", "even", "third")
    drawn = [
        {"text": f"{('great film', 'terrible book', 'band')[i % 3]} {'story ' * (i % 4)}",
         "label": labels[i % 3]}
        for i in range(24)
    ]  # fmt: skip
    rows = write_rows(tmp_path / "rows.jsonl", drawn)
    spoken = ",".join(f"{label}={word}" for label, word in zip(labels, words, strict=True))
    asked = ("train", tiny_bundle, "--data", rows, "--label-words", spoken, *FLAGS, "--steps", 3)
    asked = (*asked, "--eval-data", rows, "--json")
    run = tmp_path / "auto"
    done = called(*asked, "--start", "auto", "--out", run)
    assert done.status == 0, done.err
    zero = called("eval", tiny_bundle, "--data", rows, "--label-words", spoken, "--json").json
    assert done.json["accuracy"] > zero["accuracy"] + 0.2
    assert (told := called("eval", run, "--data", rows, "--json").json)["loss"] == pytest.approx(
        done.json["loss"], rel=1e-5
    ), told
    # Words that begin like no other keep their token; the others' rows begin as those of theirs.
    model = edgezo.load(tiny_bundle, threads=1)
    task = make_task(None, rows_from(drawn), model.tokenizer, model.context_length, None, spoken)
    assert isinstance(task, Classify) and not task.by_token
    apart = task.apart()
    (bad, good) = (model.tokenizer.encode_after("x", f" {word}")[0] for word in ("bad", "good"))
    assert apart.begun.tolist() == [bad, bad, good] and apart.candidates[2] == good
    assert len({*apart.candidates.tolist(), bad}) == 4
    assert (run / FILE).exists() and load_file(run / FILE)["rows"].tolist() == [
        *apart.candidates.tolist()
    ]
    assert [len(example.parts) for example in apart.encode_rows(rows_from(drawn))] == [1] * 24
    # Stopped and continued, the labels have the same tokens.
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    journal = (run / "journal.ezj").read_bytes()
    (run / "journal.ezj").write_bytes(journal[:-16])
    assert called("resume", run).status == 0
    assert (run / "model.safetensors").read_bytes() == weights


def test_one_label_alone_is_no_start(tiny_bundle: Path, tmp_path: Path) -> None:
    """A fit of it would say that label of every row."""
    same = write_rows(tmp_path / "rows.jsonl", [row | {"label": "positive"} for row in ROWS[:6]])
    asked = ("train", tiny_bundle, "--data", same, "--label-words", WORDS, *FLAGS, "--steps", 1)
    refused(called(*asked, "--start", "probe", "--out", tmp_path / "a"), 2, "all have one label")
    done = called(*asked, "--start", "auto", "--out", tmp_path / "b")
    assert done.status == 0 and not (tmp_path / "b" / FILE).exists(), done.err
    assert "no start from a probe: its training rows all have one label" in done.err


def test_without_a_start_words_that_begin_alike_are_scored_whole(
    tiny_bundle: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_start, "_DECAYS", (1e-9,))
    monkeypatch.setattr(head_start, "_held_out_loss", lambda *given: np.inf)  # nothing helps
    words = ("--label-words", "negative=bad story book,positive=bad music")
    asked = ("train", tiny_bundle, "--data", rows, *words, *FLAGS, "--steps", 1, "--out")
    begun = [(*asked, tmp_path / start, "--start", start) for start in ("auto", "base")]
    assert [called(*command).status for command in begun] == [0, 0]
    journals = [(tmp_path / start / "journal.ezj").read_bytes() for start in ("auto", "base")]
    assert journals[0] == journals[1]
    assert "start: base" in (tmp_path / "auto" / "settings.yaml").read_text()
