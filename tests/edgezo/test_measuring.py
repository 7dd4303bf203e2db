"""Evaluation and generation, against transformers."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import succeed

import edgezo
from edgezo.cli.progress import eval_progress
from edgezo.data import read_rows
from edgezo.generate import stream
from edgezo.tasks import make_task
from edgezo.tasks.base import Task


@pytest.fixture
def model(tiny_bundle: Path) -> edgezo.Model:
    return edgezo.load(tiny_bundle, threads=1)


def task_of(model: edgezo.Model, path: Path) -> tuple[Task, Any]:
    rows = read_rows(path)
    task = make_task(None, rows, model.tokenizer, model.context_length)
    return task, task.encode_rows(rows)


# Generation


def test_generation_is_deterministic(model: edgezo.Model) -> None:
    greedy = edgezo.generate(model, "a good film", max_tokens=20)
    assert greedy == edgezo.generate(model, "a good film", max_tokens=20, seed=5)
    assert greedy == "".join(stream(model, "a good film", max_tokens=20))
    assert greedy.startswith(edgezo.generate(model, "a good film", max_tokens=10))
    assert edgezo.generate(model, "a good film", 20, temperature=1e-300) == greedy
    drawn = [edgezo.generate(model, "a good film", 20, temperature=1.5, seed=s) for s in range(4)]
    again = [edgezo.generate(model, "a good film", 20, temperature=1.5, seed=s) for s in range(4)]
    assert drawn == again and len(set(drawn)) > 1


def test_greedy_generation_agrees_with_transformers(
    model: edgezo.Model, tiny_checkpoint: Path
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    ids = model.tokenizer.encode("search the music")
    # Our candidates are the tokenizer's tokens; the model's vocabulary is larger.
    banned = list(range(model.tokenizer.size, 512))
    out = theirs.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=banned,
    )
    tokens = [int(token) for token in out[0][len(ids) :]]
    ours = edgezo.generate(model, "search the music", max_tokens=12)
    assert model.tokenizer.decode(tokens).startswith(ours)
    assert ours


# Evaluation


@pytest.mark.parametrize("name", ["text", "completion"])
def test_perplexity_is_that_of_transformers(
    model: edgezo.Model, tiny_checkpoint: Path, data: Path, name: str
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    total, tokens = 0.0, 0
    for row in read_rows(data / f"{name}.jsonl"):
        if name == "text":
            ids = model.tokenizer.encode(row["text"])
            labels = ids
        else:
            prompt = model.tokenizer.encode(row["prompt"])
            answer = model.tokenizer.encode_after(row["prompt"], row["completion"])
            ids = [*prompt, *answer, 2]
            labels = [-100] * len(prompt) + ids[len(prompt) :]
        count = sum(label != -100 for label in labels[1:])
        with torch.no_grad():
            loss = theirs(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, tokens = total + count * float(loss), tokens + count
    task, examples = task_of(model, data / f"{name}.jsonl")
    found = edgezo.evaluate(model, task, examples, batch_size=7)
    assert found.loss == pytest.approx(total / tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert found.accuracy is None and found.examples == 60


def test_accuracy_is_that_of_transformers(
    model: edgezo.Model, tiny_checkpoint: Path, data: Path
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    rows = read_rows(data / "dev.jsonl")
    prompt = "Text: {}\nLabel:"
    words = ("negative", "positive")
    answers = [model.tokenizer.encode_after(prompt.format("text"), f" {word}") for word in words]
    right = 0
    for row in rows:
        ids = model.tokenizer.encode(prompt.format(row["text"]))
        scores = []
        for answer in answers:
            with torch.no_grad():
                logits = theirs(torch.tensor([[*ids, *answer]])).logits[0].log_softmax(-1)
            at = range(len(ids) - 1, len(ids) + len(answer) - 1)
            scores.append(sum(float(logits[p, t]) for p, t in zip(at, answer, strict=True)))
        right += words[int(np.argmax(scores))] == row["label"]
    task, examples = task_of(model, data / "dev.jsonl")
    assert edgezo.evaluate(model, task, examples).accuracy == right / len(rows)


def test_evaluation_of_a_run_is_its_last_one(reference: Path, data: Path) -> None:
    words = ("eval", reference, "--data", data / "dev.jsonl", "--batch-size", 4, "--threads", 1)
    told = succeed(*words, "--json").json
    last = json.loads((reference / "metrics.jsonl").read_text().splitlines()[-1])["eval"]
    assert {name: told[name] for name in last} == last
    assert set(last) == {"examples", "loss", "accuracy"}


def test_no_examples(model: edgezo.Model, data: Path) -> None:
    task, _ = task_of(model, data / "dev.jsonl")
    with pytest.raises(edgezo.InputError, match="no examples"):
        edgezo.evaluate(model, task, [])


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_evaluation_shows_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for errors, shown in ((_Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", errors)
        with eval_progress() as progress:
            progress(2, 7)
            progress(7, 7)
        assert ("evaluating" in errors.getvalue()) is shown
        assert ("7/7" in errors.getvalue()) is shown
