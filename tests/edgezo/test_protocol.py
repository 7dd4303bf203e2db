"""The papers' protocol: drawn examples, k of each label, the best checkpoint, demonstrations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from edgezo_runs import called, labelled, refused, result_of, write_rows
from helpers_text import small_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from edgezo.data import rows_from
from edgezo.data.subset import demonstrations, held_back, subset
from edgezo.run_folder import RunFolder
from edgezo.tasks import make_task
from edgezo.tasks.shots import show_shots
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

ROWS = [{"text": f"text {i}", "label": "abc"[min(i // 10, 2)]} for i in range(60)]  # 10, 10, 40


@given(st.integers(0, 60), st.integers(0, 2**64 - 1))
def test_examples_are_balanced(count: int, seed: int) -> None:
    rows = rows_from(ROWS)
    drawn = subset(rows, seed, examples=count)
    assert len(drawn) == count and set(drawn.lines) <= set(rows.lines)
    found = Counter(row["label"] for row in drawn)
    counts = [found[label] for label in "abc"]
    assert counts[0] + counts[1] + counts[2] == count
    if count <= 30:
        assert max(counts) - min(counts) <= 1
    else:
        assert counts[0] == counts[1] == 10
    again = subset(rows, seed, examples=count)
    assert again == drawn


@given(st.integers(1, 60), st.integers(0, 2**64 - 1))
def test_rows_to_judge_by_are_as_mixed_as_all(count: int, seed: int) -> None:
    """Balanced ones would say less of a rare label's task than a guess."""
    rows = rows_from(ROWS)
    out, rest = held_back(rows, seed, count)
    assert len(out) == count and sorted(out.lines + rest.lines) == list(rows.lines)
    # Labels have no say in it: whatever they are, the same rows are drawn.
    others = rows_from([{"text": row["text"], "label": "z"} for row in ROWS])
    assert held_back(others, seed, count)[0].lines == out.lines
    with pytest.raises(InputError, match="has 60 rows; 61 were asked"):
        held_back(rows, seed, 61)


def test_shots_and_seeds() -> None:
    rows = rows_from(ROWS)
    drawn = subset(rows, 1, shots=4)
    assert Counter(row["label"] for row in drawn) == {"a": 4, "b": 4, "c": 4}
    other = subset(rows, 2, shots=4)
    assert drawn.lines != other.lines
    shown = demonstrations(rows, 3, 6)
    assert len(shown) == 6 and shown.lines != tuple(sorted(shown.lines))
    with pytest.raises(InputError, match='has 10 rows of label "a"; 11 of each'):
        subset(rows, 1, shots=11)
    with pytest.raises(InputError, match="has 60 rows; 61 were asked"):
        subset(rows, 1, examples=61)
    with pytest.raises(InputError, match="both given"):
        subset(rows, 1, examples=3, shots=1)
    with pytest.raises(InputError, match="has no labels"):
        subset(rows_from([{"text": "a"}]), 1, shots=1)


def train(bundle: Path, data: Path, out: Path, *flags: object) -> Any:
    return called(
        "train", bundle, "--data", data / "train.jsonl", "--out", out, "--threads", 1,
        "--batch-size", 4, "--lr", 0.02, "--eps", 0.01, "--seed", 3, "--json", *flags,
    )  # fmt: skip


def test_the_best_evaluation_is_kept(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    best = ("--steps", 9, "--eval-every", 2, "--keep", "best", "--eval-examples", 20)
    done = train(tiny_bundle, data, out, *best, "--examples", 40)
    assert done.status == 0, done.err
    evals = {m["step"]: m["eval"] for m in RunFolder(out).read_metrics() if "eval" in m}
    assert sorted(evals) == [2, 4, 6, 8, 9]
    expected = max(evals, key=lambda n: (evals[n]["accuracy"], -evals[n]["loss"], -n))
    assert (done.json["kept"], done.json["steps"]) == (expected, 9)
    assert done.json["loss"] == evals[expected]["loss"]
    # The saved weights are those of that step, and the journal has all of them.
    tuned = tmp_path / "tuned.edgezo"
    words = ("replay", out, "--base", tiny_bundle, "--out", tuned, "--at-step", expected)
    assert called(*words).status == 0
    assert (tuned / "model.safetensors").read_bytes() == result_of(out)[0]
    (out / "model.safetensors").unlink()
    again = called("resume", out, "--json")
    assert again.status == 0, again.err
    assert again.json["kept"] == expected
    assert (tuned / "model.safetensors").read_bytes() == result_of(out)[0]


def test_held_out_rows_of_the_training_rows(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    done = train(tiny_bundle, data, tmp_path / "a", "--steps", 2, "--eval-examples", 30)
    assert done.status == 0, done.err
    assert done.json["examples"] == 30
    refused(train(tiny_bundle, data, tmp_path / "b", "--keep", "best"), 2, "needs evaluations")
    refused(train(tiny_bundle, data, tmp_path / "c", "--shots", 99), 2, "99 of each were asked")
    refused(train(tiny_bundle, data, tmp_path / "d", "--examples", 0), 2, "examples is 0")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("rows", "options", "before"),
    [
        (
            [{"text": "good", "label": 1}, {"text": "bad", "label": 0}],
            {"label_words": "no,yes"},
            "Text: good\nLabel: yes\n\nText: bad\nLabel: no\n\n",
        ),
        (
            [{"prompt": "a film", "choices": ["good", "bad"], "label": "bad"}] * 2,
            {"template": "The {prompt} is"},
            "The a film is bad\n\n" * 2,
        ),
        (
            [{"prompt": "Q: old?", "completion": " yes"}] * 2,
            {"stop": "\n"},
            "Q: old? yes\n\n" * 2,
        ),
    ],
)
def test_demonstrations(
    tokenizer: Tokenizer, rows: list[Any], options: dict[str, Any], before: str
) -> None:
    data = rows_from(rows)
    task = make_task(None, data, tokenizer, 60, **options)
    (plain, *_) = task.encode_rows(data)
    show_shots(task, data)
    (shown, *_) = task.encode_rows(data)
    asked = tokenizer.decode(plain.parts[0].tokens.tolist())
    assert tokenizer.decode(shown.parts[0].tokens.tolist()) == before + asked
    assert shown.parts[0].targets.tolist() == plain.parts[0].targets.tolist()


def test_demonstrations_that_do_not_fit(tokenizer: Tokenizer) -> None:
    rows = rows_from([{"text": f"good film {i}", "label": i % 2} for i in range(9)])
    task = make_task(None, rows, tokenizer, 60, label_words="bad,good")
    show_shots(task, rows)
    text = tokenizer.decode(task.encode_rows(rows)[0].parts[0].tokens.tolist())
    assert 1 < text.count("Label:") < 10 and text.endswith("good film 0\nLabel:")
    assert "good film 8\nLabel: bad\n\n" in text and "good film 0\nLabel: bad" not in text
    assert task.truncated == 0
    (long,) = task.encode({"text": "good film " * 60, "label": 1})
    assert task.truncated == 1 and long.length <= 60
    plain = make_task("text", rows_from([{"text": "a b"}]), tokenizer, 60)
    with pytest.raises(InputError, match="task text of this model takes no demonstrations"):
        show_shots(plain, rows)


def test_eval_with_demonstrations(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", labelled(6, first=900))
    words = ("eval", tiny_bundle, "--data", few, "--threads", 1, "--json")
    shots = ("--shots", 2, "--shot-data", data / "train.jsonl")
    plain, shown = called(*words).json, called(*words, *shots)
    assert shown.status == 0, shown.err
    assert shown.json["examples"] == 6 and shown.json["loss"] != plain["loss"]
    refused(called(*words, "--shots", 2), 2, "--shots and --shot-data go together")
