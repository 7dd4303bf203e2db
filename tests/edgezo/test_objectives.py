"""Objectives that cannot be differentiated, and the callables that may be one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, labelled, refused, write_rows

import edgezo
from edgezo.answers import evaluate_answers
from edgezo.data import rows_from
from edgezo.generate import generate_batch
from edgezo.objectives import macro_f1
from edgezo.tasks import make_task
from edgezo_runtime.errors import InputError

ROWS = labelled(8)
CHOICES = [{"prompt": row["text"], "choices": ["good", "bad film"], "label": 0} for row in ROWS]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> edgezo.Model:
    return edgezo.load(tiny_bundle, threads=1)


def loss(model: edgezo.Model, rows: list[Any], objective: Any, **options: Any) -> float:
    (batch,) = edgezo.batches(rows, model, batch_size=8, objective=objective, **options)
    return model.loss(batch)


@pytest.mark.parametrize(
    ("predictions", "labels", "f1"),
    [
        ([0, 1, 1, 0], [0, 1, 1, 0], 1),
        ([0, 0, 0, 0], [0, 0, 1, 1], (2 / 3 + 0) / 2),
        ([2, 1], [0, 1], 1 / 3),  # labels that occur on either side count
        ([1, 1, 0], [1, 0, 0], 2 / 3),
    ],
)
def test_macro_f1(predictions: list[int], labels: list[int], f1: float) -> None:
    assert macro_f1(np.array(predictions), np.array(labels)) == pytest.approx(f1)


def test_accuracy_and_f1_of_labels(model: edgezo.Model) -> None:
    task = make_task(None, rows_from(ROWS), model.tokenizer, model.context_length)
    found = edgezo.evaluate(model, task, task.encode_rows(rows_from(ROWS)))
    assert found.accuracy is not None and found.predictions is not None
    assert loss(model, ROWS, "accuracy") == pytest.approx(1 - found.accuracy)
    labels = np.array([i % 2 for i in range(8)])
    assert loss(model, ROWS, "f1") == pytest.approx(1 - macro_f1(found.predictions, labels))
    assert loss(model, ROWS, "loss") == loss(model, ROWS, "cross-entropy")
    assert loss(model, ROWS, "loss") == pytest.approx(found.loss)


def test_a_callable_sees_answers_and_rows(model: edgezo.Model) -> None:
    seen: list[tuple[str, str]] = []

    def right(answers: Any, rows: Any) -> list[bool]:
        seen.extend((answer, row["label"]) for answer, row in zip(answers, rows, strict=True))
        return [answer == row["label"] for answer, row in zip(answers, rows, strict=True)]

    assert loss(model, ROWS, right) == loss(model, ROWS, "accuracy")
    assert {label for _, label in seen} == {"negative", "positive"}
    assert {answer for answer, _ in seen} <= {"negative", "positive"}
    assert loss(model, ROWS, lambda answers, rows: -2.5) == 3.5
    options = loss(model, CHOICES, lambda a, rows: [text == "good" for text in a])
    assert options == loss(model, CHOICES, "accuracy")
    assert loss(model, CHOICES, "cross-entropy") != loss(model, CHOICES, "loss")


def test_generated_answers(model: edgezo.Model) -> None:
    prompts = [row["text"] for row in ROWS]
    said = generate_batch(model, prompts, 5)
    rows = [{"prompt": p, "completion": s} for p, s in zip(prompts, said, strict=True)]
    rows[3]["completion"] = "unheard of"
    assert loss(model, rows, "exact-match", max_tokens=5) == pytest.approx(1 / 8)
    assert loss(model, rows, "f1", max_tokens=5) == pytest.approx(1 / 8)
    lengths = loss(model, rows, lambda answers, rows: [len(a) for a in answers], max_tokens=5)
    assert lengths == 1 - np.mean([len(text) for text in said])
    # The closest of several right answers counts, and an answer ends before the stop text.
    stop = next(word for text in said for word in text.split() if not text.startswith(word))
    cut = [text.partition(stop)[0] for text in said]
    assert generate_batch(model, prompts, 5, stop=stop) == cut != said
    several = [r | {"answers": ["no", text]} for r, text in zip(rows, said, strict=True)]
    task = make_task(None, rows_from(several), model.tokenizer, 64)
    assert evaluate_answers(model, task, rows_from(several), ["em"], 5) == {"em": 1.0}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda a, r: [1.0] * 3, r"objective <lambda> returned shape \[3\] for 8 rows"),
        (lambda a, r: [float("nan")] * 8, "returned NaN or infinity"),
        (lambda a, r: float("inf"), "returned NaN or infinity"),
        (lambda a, r: None, "returned None; return a score"),
        (lambda a, r: [None] * 8, "returned NaN or infinity|returned no number"),
        (lambda a, r: "good", "returned no number"),
        (lambda a, r: [[1], [1, 2]], "returned no number"),
    ],
)
def test_what_a_callable_may_return(
    model: edgezo.Model, score: Callable[..., Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        loss(model, ROWS, score)


def test_what_a_callable_raises_is_its_own(model: edgezo.Model) -> None:
    def broken(answers: Any, rows: Any) -> float:
        return float(rows[0]["no such column"]) + int("x")

    with pytest.raises(KeyError, match="no such column"):
        loss(model, ROWS, broken)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        loss(model, ROWS, lambda answers, rows: int("x"))
    assert not isinstance(caught.value, InputError)


def test_objectives_that_do_not_go_with_a_task(model: edgezo.Model, tmp_path: Path) -> None:
    texts = [{"text": row["text"]} for row in ROWS]
    completions = [{"prompt": "a", "completion": "b"}]
    for rows, objective, message in (
        (ROWS, "bleu", "objective is 'bleu'; use one of loss, cross-entropy, auto, accuracy, f1"),
        (ROWS, "exact-match", "generates no text"),
        (texts, "accuracy", "task text chooses no labels"),
        (texts, lambda a, r: 1.0, "task text chooses no labels that objective <lambda>"),
        (completions, "accuracy", "has no labels for objective accuracy"),
    ):
        with pytest.raises(InputError, match=message):
            loss(model, rows, objective)


def test_a_tuner_climbs_a_score(tiny_bundle: Path) -> None:
    """A score that only a callable knows rises, and a step that fails leaves no trace."""
    model = edgezo.load(tiny_bundle, threads=1, tune="model.norm.weight,model.layers.1.*")
    tuner = edgezo.Tuner(model, method="es", lr=3e-2, eps=3e-2, samples=8)

    def positive(answers: Any, rows: Any) -> float:
        return float(np.mean([answer == "positive" for answer in answers]))

    rows = labelled(24)
    before = loss(model, rows[:8], positive)
    for batch in edgezo.batches(rows, model, batch_size=8, objective=positive, epochs=8):
        tuner.step(batch)
    assert loss(model, rows[:8], positive) < before or before == 0
    state = {name: view.copy() for name, view in model.arena.views.items()}
    (bad,) = edgezo.batches(rows[:8], model, batch_size=8, objective=lambda a, r: [1, 2])
    with pytest.raises(InputError, match="returned shape"):
        tuner.step(bad)
    model.weights.settle()
    for name, view in model.arena.views.items():
        np.testing.assert_array_equal(view, state[name])


def test_a_run_with_an_objective(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl",
        ({"prompt": row["text"], "completion": " good film"} for row in labelled(6)),
    )
    flags = ("--data", rows, "--eval-data", rows, "--objective", "f1", "--max-tokens", 4)
    out = tmp_path / "run"
    done = called(
        "train", tiny_bundle, *flags, "--threads", 1, "--steps", 2, "--batch-size", 3,
        "--out", out, "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert 0 <= done.json["f1"] <= 1 and done.json["perplexity"] > 1
    told = called(
        "eval", out, "--data", rows, "--metric", "f1", "--max-tokens", 4, "--threads", 1, "--json"
    ).json
    assert told["f1"] == done.json["f1"]
    (out / "model.safetensors").unlink()
    settings = out / "settings.yaml"
    settings.write_text(settings.read_text("utf-8").replace("objective: f1", "objective: loss"))
    refused(called("resume", out), 2, "objective")


def test_runs_and_baselines_are_judged_by_a_metric(tiny_bundle: Path, tmp_path: Path) -> None:
    """Steps lower the loss, and what is reported is what the answers are worth."""
    rows = write_rows(
        tmp_path / "rows.jsonl",
        ({"prompt": row["text"], "completion": " good film"} for row in labelled(6)),
    )
    judged = ("--metric", "em,f1", "--max-tokens", 4, "--threads", 1, "--json")
    done = called(
        "compare", tiny_bundle, "--data", f"mine={rows}:{rows}", "--methods", "mezo",
        "--steps", 2, "--batch-size", 3, "--keep-weights", "--out", tmp_path / "out", *judged,
    )  # fmt: skip
    assert done.status == 0, done.err
    untuned, tuned = done.json["rows"]
    run = tmp_path / "out" / tuned["run"]
    kept = json.loads((tmp_path / "out" / "accuracy.json").read_text("utf-8"))
    assert [row["accuracy"] for row in kept] == [untuned["em"], tuned["em"]]
    for row, judge in ((untuned, tiny_bundle), (tuned, run)):
        told = called("eval", judge, "--data", rows, *judged).json
        assert {name: row[name] for name in ("em", "f1")} == {
            name: told[name] for name in ("em", "f1")
        }
    words = write_rows(tmp_path / "words.jsonl", labelled(12))
    flags = ("--data", words, "--eval-data", words, "--metric", "em")
    refused(called("train", tiny_bundle, *flags, "--out", tmp_path / "no"), 2, "has no completion")
    assert not (tmp_path / "no").exists()


def test_labels_are_judged_by_their_f1(
    model: edgezo.Model, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Held-out rows by the metric that a step lowers, and untuned ones by the same on request."""
    rows = write_rows(tmp_path / "rows.jsonl", labelled(12))
    run, flags = tmp_path / "run", ("--data", rows, "--threads", 1, "--json")
    asked = ("--method", "mezo", "--steps", 2, "--objective", "f1", "--eval-data", rows)
    done = called("train", tiny_bundle, *flags, *asked, "--out", run)
    assert done.status == 0, done.err
    assert called("eval", run, *flags, "--metric", "f1").json["f1"] == done.json["f1"]
    task = make_task(None, rows_from(labelled(12)), model.tokenizer, model.context_length)
    found = edgezo.evaluate(model, task, task.encode_rows(rows_from(labelled(12))))
    assert found.predictions is not None
    told = called("eval", tiny_bundle, *flags, "--metric", "f1").json
    assert told["f1"] == macro_f1(found.predictions, np.arange(12) % 2)
    assert told["accuracy"] == found.accuracy
    for metric in ("em", "em,f1"):
        refused(called("eval", run, *flags, "--metric", metric), 2, "has no completion")
