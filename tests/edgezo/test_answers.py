"""Exact match and token F1 of generated answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgezo_runs import called, refused, write_rows

import edgezo
from edgezo.answers import evaluate_answers, exact_match, token_f1
from edgezo.data import rows_from
from edgezo.tasks import make_task


@pytest.mark.parametrize(
    ("answer", "truth", "em", "f1"),
    [
        ("Paris", "Paris", 1, 1),
        (" The  Eiffel Tower!\n", "eiffel tower", 1, 1),
        ("the cat sat", "a cat sat down", 0, 0.8),
        ("theory", "ory", 0, 0),
        ("go go go", "go", 0, 0.5),
        ("", "the", 1, 1),
        ("", "cat", 0, 0),
        ("New York", "york new", 0, 1),
    ],
)
def test_known_answers(answer: str, truth: str, em: float, f1: float) -> None:
    assert exact_match(answer, truth) == em
    assert token_f1(answer, truth) == token_f1(truth, answer) == pytest.approx(f1)


def test_answers_are_what_the_model_says(tiny_bundle: Path, tmp_path: Path) -> None:
    model = edgezo.load(tiny_bundle, threads=1)
    prompts = ["a good film", "search the old band", "terrible", "book a table for two"]
    said = [edgezo.generate(model, prompt, 6) for prompt in prompts]
    assert all(text.split() for text in said)
    rows = [{"prompt": p, "completion": text} for p, text in zip(prompts, said, strict=True)]
    rows[1]["completion"] = "unheard"
    task = make_task(None, rows_from(rows), model.tokenizer, model.context_length)
    done: list[tuple[int, int]] = []
    found = evaluate_answers(
        model, task, rows_from(rows), max_tokens=6, batch_size=3, progress=lambda *n: done.append(n)
    )
    assert found == {"em": 0.75, "f1": 0.75}
    assert done == [(3, 4), (4, 4)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ("--metric", "f1, em", "--max-tokens", 6, "--threads", 1)
    told = called("eval", tiny_bundle, "--data", data, *flags, "--json").json
    assert (told["em"], told["f1"], told["examples"]) == (0.75, 0.75, 4)
    assert "em 75.0 %" in called("eval", tiny_bundle, "--data", data, *flags).out


def test_metrics_that_cannot_be(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    completions = data / "completion.jsonl"
    for file, flags, part in (
        (completions, ("--metric", "bleu"), "metric is 'bleu'; use one of em, f1"),
        (completions, ("--metric", "em", "--max-tokens", 64), "no room for a prompt"),
        (data / "text.jsonl", ("--metric", "em"), "task text has no completion"),
    ):
        refused(called("eval", tiny_bundle, "--data", file, "--threads", 1, *flags), 2, part)
