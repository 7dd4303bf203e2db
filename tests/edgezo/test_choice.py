"""Multiple choice: what is scored, what is trained, and which rows are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, refused, words, write_rows
from helpers_text import small_tokenizer

import edgezo
from edgezo.data import eval_batches, rows_from
from edgezo.tasks import Choice, make_task, task_from_settings
from edgezo_runtime.batch import OptionLoss, TokenLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import read
from edgezo_runtime.shared import Shared
from edgezo_runtime.text import Tokenizer

ROWS: list[dict[str, Any]] = [
    {"prompt": "a good film with", "choices": ["a bad story", "good music", "him"], "label": 1},
    {"prompt": "the band", "choices": ["was old and good", "search"], "label": "was old and good"},
    {"prompt": "play some", "choices": ["music", "a book", "film", "weather"], "label": [2, 0]},
    {"prompt": "terrible actors, terrible " * 4, "choices": ["story", "a great film"], "label": 0},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_scores_are_those_of_transformers(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    model = edgezo.load(tiny_bundle, threads=1)
    reference = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    task = make_task(None, rows_from(ROWS), model.tokenizer, model.context_length)
    assert isinstance(task, Choice)
    examples = task.encode_rows(rows_from(ROWS))
    batch = task.collate(examples)
    assert isinstance(batch.objective, OptionLoss)
    found = batch.objective.scores(model.forward(batch))
    assert found.shape == (4, 4)
    losses, right, told = [], [], []
    for number, row in enumerate(ROWS):
        scores = []
        for option in row["choices"]:
            prompt = model.tokenizer.encode(row["prompt"].rstrip(" "))
            answer = model.tokenizer.encode_bare(" " + option)
            with torch.no_grad():
                logits = reference(torch.tensor([prompt + answer])).logits[0].double()
            taken = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            scores.append(taken[torch.arange(len(answer)), torch.tensor(answer)].numpy())
        means = np.array([score.mean() for score in scores])
        np.testing.assert_allclose(found[number, : len(means)], means, rtol=1e-4)
        assert (found[number, len(means) :] == -np.inf).all()
        label = examples[number].label
        losses.append(np.log(np.exp(means).sum()) - means[label])
        right.append(means.argmax() in examples[number].accepted)
        told += scores[label].tolist()
    metrics = edgezo.evaluate(model, task, examples)
    assert metrics.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics.accuracy == np.mean(right)
    # What a step lowers: the right options' tokens alone.
    training = task.training_batch(examples)
    assert isinstance(training.objective, TokenLoss)
    assert len(training.feeds()["input_ids"]) == len(ROWS)
    assert model.loss(training) == pytest.approx(-np.mean(told), rel=1e-4)


def test_a_shared_prompt_is_read_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": words(i, 12 + i), "choices": [words(i + k, 1 + k) for k in range(4)], "label": 1}
        for i in range(9)
    ]
    model = edgezo.load(tiny_bundle, threads=1)
    task = make_task(None, rows_from(rows), model.tokenizer, model.context_length)
    examples = task.encode_rows(rows_from(rows))
    plain = edgezo.load(tiny_bundle, threads=1)
    monkeypatch.setattr(plain, "options", None)
    expected = edgezo.evaluate(plain, task, examples)
    asked: list[Shared] = []
    assert model.options is not None
    score = model.options.score
    monkeypatch.setattr(model.options, "score", lambda batch: asked.append(batch) or score(batch))
    found = edgezo.evaluate(model, task, examples)
    assert sum(len(shared.prompts) for shared in asked) == 9
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    # What a step lowers against the other options is the same, and sees the weights move.
    batch = task.collate(examples[:4])
    for tuned in (model, plain):
        edgezo.Tuner(tuned, lr=1e-2, seed=1).step(batch)
    assert model.loss(batch) == pytest.approx(plain.loss(batch), rel=1e-4)
    assert model.loss(batch) != pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize(("options", "expected"), [(8, "cross-entropy"), (9, "loss")])
def test_the_recipe_reads_few_options_and_the_right_one_of_many(
    tiny_bundle: Path, tmp_path: Path, options: int, expected: str
) -> None:
    """The journal says what was lowered: nothing where that is the task's own loss."""
    rows = write_rows(
        tmp_path / "rows.jsonl",
        (
            {
                "prompt": words(i, 4),
                "choices": [words(i + k, 2) for k in range(options)],
                "label": 1,
            }
            for i in range(4)
        ),
    )
    flags = ("--data", rows, "--steps", 1, "--batch-size", 2, "--threads", 1)
    for name, asked in (("recipe", ()), ("named", ("--objective", expected))):
        done = called("train", tiny_bundle, *flags, *asked, "--out", tmp_path / name)
        assert done.status == 0, done.err
    chosen, named = (read(tmp_path / n / "journal.ezj") for n in ("recipe", "named"))
    assert chosen.header == named.header and chosen.records == named.records
    told = chosen.header.get("objective", {"name": "loss"})
    assert told["name"] == expected


def test_labels_are_numbers_texts_or_lists(tokenizer: Tokenizer) -> None:
    task = Choice(tokenizer, 64)
    examples = task.encode_rows(rows_from(ROWS))
    assert [e.label for e in examples] == [1, 0, 2, 0]
    assert [e.accepted for e in examples] == [(1,), (0,), (2, 0), (0,)]
    outputs = {"logprobs": np.zeros(sum(len(p.targets) for e in examples for p in e.parts))}
    assert task.collate(examples).objective.tally(outputs).correct == 3  # all choose their first


def test_evaluation_batches_hold_few_sequences(tokenizer: Tokenizer) -> None:
    task = Choice(tokenizer, 64)
    examples = task.encode_rows(rows_from(ROWS))
    batches = list(eval_batches(task, examples, 5))
    assert [len(batch.feeds()["input_ids"]) for _, batch in batches] == [4, 5, 2]
    assert sorted(np.concatenate([indices for indices, _ in batches])) == [0, 1, 2, 3]
    assert len(list(eval_batches(task, examples, 1))) == 4


@pytest.mark.parametrize(
    ("template", "read", "targets"),
    [("Q: {prompt} ", "Q: the band", " search"), ("{prompt}\n", "the band\n", "search")],
)
def test_space_belongs_to_the_option(
    tokenizer: Tokenizer, template: str, read: str, targets: str
) -> None:
    task = Choice(tokenizer, 64, template)
    (example,) = task.encode(ROWS[1])
    part = example.parts[1]
    assert part.targets.tolist() == tokenizer.encode_bare(targets)
    assert part.tokens.tolist() == [*tokenizer.encode(read), *part.targets[:-1]]
    again = task_from_settings(json.loads(json.dumps(task.settings())), tokenizer)
    np.testing.assert_array_equal(again.encode(ROWS[1])[0].parts[1].tokens, part.tokens)


def test_a_long_prompt_is_cut_and_an_option_never(tokenizer: Tokenizer) -> None:
    task = Choice(tokenizer, 16)
    (example,) = task.encode(ROWS[3])
    assert task.truncated == 1 and example.length <= 16
    with pytest.raises(InputError, match=r"option .* tokens; the model takes from 1 to 16"):
        task.encode(ROWS[3] | {"choices": ["story", "search creative work " * 9]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["one"]}, "a list of two options or more"),
        ({"choices": "ab"}, "a list of two options or more"),
        ({"choices": ["a", 2]}, 'option "2" is not a text'),
        ({"choices": ["a", " "]}, 'option " " is not a text'),
        ({"label": 3}, 'label "3" is none of its options.*from 0 to 2'),
        ({"label": "music"}, 'label "music" is none of its options'),
        ({"label": True}, 'label "True" is none'),
        ({"label": []}, "is none of its options"),
        ({"prompt": ""}, '"prompt" is empty'),
    ],
)
def test_bad_rows(tokenizer: Tokenizer, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Choice(tokenizer, 64).encode_rows(rows_from([ROWS[0], ROWS[0] | change]))


def test_a_run_over_options(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl",
        (
            {"question": words(i, 4), "choices": [words(i + 1, 3), words(i + 2, 2)], "label": i % 2}
            for i in range(24)
        ),
    )
    flags = ("--data", rows, "--eval-data", rows, "--threads", 1, "--template", "{question}:")
    out = tmp_path / "run"
    done = called("train", tiny_bundle, *flags, "--out", out, "--steps", 2, "--json")
    assert done.status == 0, done.err
    told = called("eval", out, "--data", rows, "--threads", 1, "--json").json
    assert (told["accuracy"], told["loss"]) == (done.json["accuracy"], done.json["loss"])
    assert told["examples"] == 24
    bad = called("train", tiny_bundle, *flags, "--out", tmp_path / "b", "--label-words", "a,b")
    refused(bad, 2, "task choice has no labels")
