"""Prompts as data: the catalogue, files of one's own, and columns made of a row's."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from edgezo_runs import called, labelled, refused, write_rows
from helpers_text import small_tokenizer

import edgezo
from edgezo.data import read_rows, rows_from
from edgezo.data.columns import Columns
from edgezo.tasks import Task, load_prompt, make_task
from edgezo.tasks.prompts import names
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

NLI = {"premise": "A man sleeps.", "hypothesis": "He is awake."}
# A row as the data sets have them, what the model reads, and what should follow.
ASKED: dict[str, tuple[dict[str, Any], str, str]] = {
    "sst2": ({"text": "no fun", "label": 0}, "no fun It was", " terrible"),
    "sst5": ({"text": "no fun", "label": 2}, "no fun It was", " okay"),
    "trec": (
        {"text": "How far is it?", "label": 5},
        "Classify the questions based on whether their answer type is a Number, Location, Person, "
        "Description, Entity, or Abbreviation.\n\nQuestion: How far is it?\nAnswer Type:",
        " Number",
    ),
    "snips": (
        {"text": "play a song", "label": 3},
        "User: play a song\nThe user wants the",
        " play",
    ),
    "rte": (
        NLI | {"label": 1},
        'A man sleeps.\nDoes this mean that "He is awake." is true? Yes or No?\n',
        "No",
    ),
    "snli": (
        NLI | {"label": 1},
        'Suppose A man sleeps. Can we infer that "He is awake."? Yes, No, or Maybe?\n',
        "Maybe",
    ),
    "mnli": (
        NLI | {"label": 2},
        'Suppose A man sleeps. Can we infer that "He is awake."? Yes, No, or Maybe?\n',
        "No",
    ),
    "qnli": (
        {"question": "Who?", "sentence": "Ada did.", "label": 0},
        'Ada did.\nDoes this answer the question "Who?"? Yes or No?\n',
        "Yes",
    ),
    "cb": (
        NLI | {"label": 1},
        'Suppose A man sleeps. Can we infer that "He is awake."? Yes, No, or Maybe?\n',
        "No",
    ),
    "boolq": (
        {"passage": "Cats nap.", "question": "do cats nap", "label": 1},
        "Cats nap. Do cats nap?\n",
        "Yes",
    ),
    "wic": (
        {"word": "bank", "sentence1": "A bank.", "sentence2": "My bank.", "label": 1},
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\n'
        "A bank.\nMy bank.\n",
        "Yes",
    ),
    "wsc": (
        {"text": "Bo saw Al. He ran.", "span1": "Al", "span2": "He", "label": 0},
        'Bo saw Al. He ran.\nIn the previous sentence, does the pronoun "he" refer to Al? '
        "Yes or No?\n",
        "No",
    ),
    "multirc": (
        {"passage": "It rained.", "question": "Was it wet?", "answer": "yes", "label": 1},
        'It rained.\nQuestion: Was it wet?\nI found this answer "yes". Is that correct? '
        "Yes or No?\n",
        "Yes",
    ),
    "copa": (
        {
            "premise": "It rained.",
            "question": "effect",
            "choices": ["I slept.", "The road got wet."],
            "label": 1,
        },
        "It rained so",
        " the road got wet.",
    ),
    "openbookqa": (
        {"question": "Where is fog?", "choices": ["a marsh", "a desert"], "label": 0},
        "Question: Where is fog?\nAnswer:",
        " a marsh",
    ),
    "record": (
        {
            "passage": "Al won.",
            "query": "@placeholder smiled.",
            "choices": ["Bo", "Al"],
            "answers": ["Al"],
        },
        'Al won.\n@placeholder smiled.\nQuestion: what is the "@placeholder"\nAnswer:',
        " Al",
    ),
    "squad": (
        {
            "title": "Sun",
            "context": "It is hot.",
            "question": "How is it?",
            "answers": ["hot", "it is hot"],
        },
        "Title: Sun\nContext: It is hot.\nQuestion: How is it?\nAnswer:",
        " hot\n",
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def asked(name: str, row: dict[str, Any], tokenizer: Tokenizer) -> Task:
    prompt = load_prompt(name)
    rows = rows_from([row], prompt.derive)
    words = prompt.label_words
    return make_task(prompt.task, rows, tokenizer, 400, prompt.template, words, stop=prompt.stop)


def test_every_prompt_is_tried() -> None:
    assert set(ASKED) == set(names())


@pytest.mark.parametrize("name", ASKED)
def test_what_a_prompt_asks(name: str, tokenizer: Tokenizer) -> None:
    row, read, answer = ASKED[name]
    before = copy.deepcopy(row)
    task = asked(name, row, tokenizer)
    (example,) = task.encode_rows(rows_from([row], load_prompt(name).derive))
    assert row == before
    parts = example.parts
    right = parts[example.label if len(parts) > 1 else 0]
    count = len(right.targets)
    assert tokenizer.decode(right.tokens[: len(right.tokens) - count + 1].tolist()) == read
    if task.name == "classify" and len(parts) == 1:
        assert answer.startswith(tokenizer.decode(right.targets.tolist()))
    else:
        assert tokenizer.decode(right.targets.tolist()) == answer


def test_masked_models_have_their_own_form() -> None:
    prompt = load_prompt("rte", "masked")
    assert (prompt.task, prompt.template) == ("masked", "{premise}? {mask}, {hypothesis}")
    row = prompt.derive({"premise": "It rains! ", "hypothesis": "I am wet."}, "row")
    assert (row["premise"], row["hypothesis"]) == ("It rains", "I am wet.")
    assert prompt.label_words == load_prompt("rte").label_words
    assert load_prompt("trec", "masked").label_words != load_prompt("trec").label_words
    assert load_prompt("boolq", "masked") == load_prompt("boolq")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a ~ '!'", "x!"),
        ("b[-1]", "z"),
        ("b | map('upper')", ["Y", "Z"]),
        ("{'x': 'ex'}[a]", "ex"),
        ("c + 1", 3),
        ("'Do It' | uncapitalize", "do It"),
        ("'I do' | uncapitalize", "I do"),
    ],
)
def test_columns(source: str, found: Any) -> None:
    row = {"a": "x", "b": ["y", "z"], "c": 2}
    assert Columns({"new": source})(row, "row 1") == row | {"new": found}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "cannot make column \"new\" of columns \"a\", \"b\": 'missing' is"),
        ("missing ~ a", "cannot make column \"new\".*'missing' is undefined"),
        ("a.b.c", "cannot make column"),
        ("a | shout", "no expression: No filter named 'shout'"),
        ("a +", "no expression"),
        ("a / 2", "cannot make column"),
        ("().__class__.__base__.__subclasses__()", "row 1"),
        ("a.__class__", "row 1"),
        ("b.append(1)", "row 1"),
    ],
)  # fmt: skip
def test_bad_columns(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Columns({"new": source})({"a": "x", "b": []}, "row 1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temp: x", 'holds "temp"; a prompt has task, template'),
        ("- a", "holds no mapping"),
        ("template: 3", "has a template that is no text"),
        ("label_words: {0: No, 1: Yes}", "label word False is no text; YAML wants quotes"),
        ("label_words: 3", "should map each label to its word"),
        ("columns: {a: 1}", "an expression in quotes"),
        ("columns: {a: 'b +'}", "no expression"),
        ("a: [", "cannot read prompt"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=message):
        load_prompt(path)


def test_a_prompt_of_ones_own_in_a_run(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl",
        ({"review": row["text"], "stars": i % 2 + 1} for i, row in enumerate(labelled(16))),
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        'template: "{text} So:"\nlabel_words: {1: bad, 2: good}\n'
        'columns: {text: "review | upper", label: "stars"}\n',
        "utf-8",
    )
    out = tmp_path / "run"
    flags = ("--data", rows, "--eval-data", rows, "--threads", 1)
    done = called(
        "train", tiny_bundle, *flags, "--prompt", mine, "--steps", 2, "--out", out, "--json"
    )
    assert done.status == 0, done.err
    # The run remembers its columns: only the rows are given again.
    told = called("eval", out, "--data", rows, "--threads", 1, "--json").json
    assert told["loss"] == done.json["loss"]
    refused(called("eval", tiny_bundle, "--data", rows, "--threads", 1), 2, "edgezo reads")
    done = called("eval", tiny_bundle, "--data", rows, "--prompt", mine, "--template", "{text}")
    assert done.status == 0, done.err
    refused(called("eval", tiny_bundle, "--data", rows, "--prompt", "sst"), 2, "use one of sst2,")
    # A run whose prompt was changed since does not go on as if nothing was.
    (out / "model.safetensors").unlink()
    mine.write_text(re.sub("upper", "lower", mine.read_text("utf-8")), "utf-8")
    refused(called("resume", out), 2, "columns is not what it was")


def test_batches_take_a_prompt(tiny_bundle: Path) -> None:
    model = edgezo.load(tiny_bundle, threads=1)
    row, read, _ = ASKED["copa"]
    (batch,) = edgezo.batches([row, row | {"label": 0}], model, prompt="copa")
    for ids in batch.feeds()["input_ids"]:
        assert model.tokenizer.decode(ids).startswith(read)


def test_read_rows_says_which_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"span2": "He", "label": 0}, {"label": 1}])
    with pytest.raises(InputError, match=r"rows\.jsonl line 2: the prompt cannot make column"):
        read_rows(path, load_prompt("wsc").derive)
