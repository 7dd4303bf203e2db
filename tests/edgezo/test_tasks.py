"""Tasks: what the model reads, what it is asked, and what is cut."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers_text import small_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from edgezo.data import rows_from
from edgezo.tasks import Classify, Generate, Task, Text, make_task, task_from_settings
from edgezo_runtime.batch import Batch, CandidateLoss, OptionLoss, TokenLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

CONTEXT = 24
SENTIMENT = [{"text": "the film was good", "label": 1}, {"text": "a bad story", "label": 0}]
SEARCH = [
    {"text": "find a book", "label": 0, "label_text": "search creative work"},
    {"text": "find a film", "label": 1, "label_text": "search screening"},
    {"text": "rain?", "label": 2, "label_text": "get weather"},
]
COMPLETIONS = [{"prompt": "the film", "completion": " was good"}]
TEXTS = [{"text": "the music was great and the band was old " * 4}]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def task_for(tokenizer: Tokenizer, rows: list[dict[str, Any]], **options: Any) -> Task:
    name = options.pop("name", None)
    return make_task(name, rows_from(rows), tokenizer, options.pop("context", CONTEXT), **options)


def batch_of(task: Task, rows: list[dict[str, Any]]) -> Batch:
    return task.collate(task.encode_rows(rows_from(rows)))


def answers(batch: Batch) -> list[tuple[list[int], int]]:
    """Returns, for each answer, what the model has read so far and the token that should follow."""
    length = batch.input_ids.shape[1]
    pairs = []
    for position, target in zip(batch.positions, batch.targets, strict=True):
        row, column = divmod(int(position), length)
        assert batch.attention_mask[row, : column + 1].all()
        pairs.append((batch.input_ids[row, : column + 1].tolist(), int(target)))
    return pairs


MATRIX = [
    pytest.param(SENTIMENT, {"label_words": "bad,good"}, CandidateLoss, id="first tokens"),
    pytest.param(SEARCH, {}, OptionLoss, id="whole words"),
    pytest.param(COMPLETIONS, {}, TokenLoss, id="generate"),
    pytest.param(TEXTS, {}, TokenLoss, id="text"),
]


@pytest.mark.parametrize(("rows", "options", "objective"), MATRIX)
def test_batches_keep_the_graphs_contract(
    tokenizer: Tokenizer, rows: list[dict[str, Any]], options: dict[str, Any], objective: type
) -> None:
    task = task_for(tokenizer, rows, **options)
    batch = batch_of(task, rows * 2)
    assert isinstance(batch.objective, objective)
    assert {value.dtype for value in batch.feeds().values()} == {np.dtype(np.int64)}
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert batch.input_ids.shape[1] <= CONTEXT
    assert (batch.input_ids[batch.attention_mask == 0] == tokenizer.pad_id).all()
    assert (np.diff(batch.attention_mask, axis=1) <= 0).all()
    assert batch.positions.shape == batch.targets.shape
    assert len(batch.candidates) >= 1
    assert len(answers(batch)) == len(batch.targets)
    outputs = {
        "logprobs": np.full(len(batch.targets), -1.5, np.float32),
        "candidate_logits": np.zeros((len(batch.targets), len(batch.candidates)), np.float32),
    }
    assert np.isfinite(batch.objective.loss(outputs))


@pytest.mark.parametrize(("rows", "options", "objective"), MATRIX)
def test_settings_make_the_same_task(
    tokenizer: Tokenizer, rows: list[dict[str, Any]], options: dict[str, Any], objective: type
) -> None:
    task = task_for(tokenizer, rows, **options)
    again = task_from_settings(json.loads(json.dumps(task.settings())), tokenizer)
    assert type(again) is type(task) and again.settings() == task.settings()
    for one, other in zip(
        batch_of(task, rows).feeds().values(), batch_of(again, rows).feeds().values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_first_tokens(tokenizer: Tokenizer) -> None:
    task = task_for(tokenizer, SENTIMENT, label_words=["bad", "good"])
    batch = batch_of(task, SENTIMENT)
    bad, good = (tokenizer.encode(word)[0] for word in (" bad", " good"))
    assert batch.candidates.tolist() == [bad, good]
    prompts = [tokenizer.encode(f"Text: {row['text']}\nLabel:") for row in SENTIMENT]
    assert answers(batch) == [(prompts[0], good), (prompts[1], bad)]
    assert isinstance(batch.objective, CandidateLoss)
    assert batch.objective.labels.tolist() == [1, 0]


def test_whole_words(tokenizer: Tokenizer) -> None:
    batch = batch_of(task_for(tokenizer, SEARCH), SEARCH)
    objective = batch.objective
    assert isinstance(objective, OptionLoss)
    assert (objective.choices.tolist(), objective.labels.tolist()) == ([3] * 3, [0, 1, 2])
    assert len(batch.input_ids) == 9
    words = [tokenizer.encode(f" {row['label_text']}") for row in SEARCH]
    expected, options = [], []
    for row, data in enumerate(SEARCH):
        prompt = tokenizer.encode(f"Text: {data['text']}\nLabel:")
        for choice, word in enumerate(words):
            expected += [([*prompt, *word[:i]], word[i]) for i in range(len(word))]
            options += [row * 3 + choice] * len(word)
    assert answers(batch) == expected
    assert objective.options.tolist() == options


def test_shared_first_token_before_one_token_is_prompt(tokenizer: Tokenizer) -> None:
    space, seven = tokenizer.encode(" 7")
    rows = [{"text": "good", "label": 7}, {"text": "good", "label": 8}]
    task = task_for(tokenizer, rows)
    batch = batch_of(task, rows[:1])
    assert answers(batch) == [([*tokenizer.encode("Text: good\nLabel:"), space], seven)]
    assert isinstance(batch.objective, CandidateLoss) and len(batch.candidates) == 2
    task.encode({"text": "good film " * 50, "label": 8})
    assert task.truncated == 1
    long = batch_of(task, [{"text": "good film " * 50, "label": 8}])
    assert long.input_ids.shape[1] <= CONTEXT


@pytest.mark.parametrize(
    ("template", "prompt", "word"),
    [
        ("{text}\nLabel: ", "good\nLabel:", " a"),
        ("{text}", "good", " a"),
        ("{text}\n", "good\n", "a"),
        ("{{{text}}}:\t", "{good}:\t", "a"),
    ],
)
def test_space_belongs_to_the_word(
    tokenizer: Tokenizer, template: str, prompt: str, word: str
) -> None:
    rows = [{"text": "good", "label": "a"}, {"text": "good", "label": "b"}]
    batch = batch_of(task_for(tokenizer, rows, template=template), rows[:1])
    assert answers(batch) == [(tokenizer.encode(prompt), tokenizer.encode(word)[0])]


def test_completions(tokenizer: Tokenizer) -> None:
    prompt, completion = tokenizer.encode("the film"), tokenizer.encode(" was good")
    whole = [*prompt, *completion, tokenizer.eos_id]
    expected = [(whole[:i], whole[i]) for i in range(len(prompt), len(whole))]
    assert answers(batch_of(task_for(tokenizer, COMPLETIONS), COMPLETIONS)) == expected


@given(text=WORDS.filter(str.strip), context=st.integers(1, 30))
def test_each_token_of_a_text_is_scored_once(tokenizer: Tokenizer, text: str, context: int) -> None:
    task = Text(tokenizer, context)
    tokens = tokenizer.encode(text)
    examples = task.encode({"text": text})
    assert task.skipped == (len(tokens) == 1)
    targets = [token for example in examples for token in example.parts[0].targets.tolist()]
    assert targets == tokens[1:]
    assert all(1 <= example.length <= context for example in examples)
    if examples:
        batch = task.collate(examples)
        assert batch.objective.tally({"logprobs": np.zeros(len(targets))}).units == len(targets)


@given(first=WORDS.filter(str.strip), second=WORDS.filter(str.strip))
def test_only_the_longest_columns_are_cut(tokenizer: Tokenizer, first: str, second: str) -> None:
    task = Classify(
        tokenizer,
        CONTEXT,
        task_for(tokenizer, SENTIMENT, label_words="bad,good").labels,  # type: ignore[attr-defined]
        "Q:{a}|{b}?",
    )
    (example,) = task.encode({"a": first, "b": second, "label": 0})
    tokens = example.parts[0].tokens.tolist()
    text = tokenizer.decode(tokens, skip_special=False)
    whole = f"Q:{first}|{second}?"
    assert len(tokens) <= CONTEXT and text.startswith("Q:") and text.endswith("?")
    assert task.truncated == (len(tokenizer.encode(whole)) > CONTEXT)
    if not task.truncated:
        assert text == whole
    elif len(tokenizer.encode(first)) <= 4:
        assert text.startswith(f"Q:{first}|")


def test_question_and_answer_survive(tokenizer: Tokenizer) -> None:
    long = "the film was good and " * 20
    task = task_for(tokenizer, SEARCH, template="{text}\nGenre:")
    batch = batch_of(task, [{"text": long, "label": 0}])
    assert task.truncated == 1
    widest = max(len(word) for word in (tokenizer.encode(f" {r['label_text']}") for r in SEARCH))
    assert batch.input_ids.shape[1] <= CONTEXT
    prompt = answers(batch)[0][0]
    assert len(prompt) == CONTEXT - (widest - 1)
    assert tokenizer.decode(prompt).startswith("the film was")
    assert tokenizer.decode(prompt).endswith("\nGenre:")


def test_a_long_prompt_keeps_its_end(tokenizer: Tokenizer) -> None:
    task = task_for(tokenizer, COMPLETIONS)
    row = {"prompt": "the film " * 30 + "question?", "completion": " good"}
    batch = batch_of(task, [row])
    prompt, token = answers(batch)[0]
    assert task.truncated == 1 and batch.input_ids.shape[1] <= CONTEXT
    assert tokenizer.decode(prompt).endswith("question?")
    assert tokenizer.decode([token]) == tokenizer.decode(tokenizer.encode(" good")[:1])


@pytest.mark.parametrize(
    ("words", "labels", "expected"),
    [
        ("bad,good", [0, 1], {"0": "bad", "1": "good"}),
        ("0=bad, 1=good", [0, 1], {"0": "bad", "1": "good"}),
        ({1: "good", 0: "bad"}, [0, 1], {"1": "good", "0": "bad"}),
        ("bad,good,old", [0, 2], {"0": "bad", "1": "good", "2": "old"}),
        ("bad,good", [-1, 10], {"-1": "bad", "10": "good"}),
        ("good,bad", ["bad", "good"], {"good": "good", "bad": "bad"}),
        ("neg=bad,pos=good", ["pos", "neg"], {"neg": "bad", "pos": "good"}),
        (None, [10, 9], {"9": "9", "10": "10"}),
        (None, ["b", "a"], {"a": "a", "b": "b"}),
        (None, [1, "0"], {"0": "0", "1": "1"}),
    ],
)
def test_label_words(
    tokenizer: Tokenizer, words: Any, labels: list[Any], expected: dict[str, str]
) -> None:
    rows = [{"text": "x", "label": label} for label in labels]
    task = task_for(tokenizer, rows, label_words=words)
    assert isinstance(task, Classify)
    assert list(zip(task.labels.labels, task.labels.words, strict=True)) == list(expected.items())


def test_defaults_of_the_bundle(tokenizer: Tokenizer) -> None:
    own = {"name": "classify", "template": "{text} So:", "labels": ["0", "1"], "words": ["b", "a"]}
    task = task_for(tokenizer, SENTIMENT, defaults=own)
    assert task.settings() == own | {"context_length": CONTEXT}
    by_rows = task_for(tokenizer, SEARCH, defaults=own)
    assert by_rows.settings()["words"][0] == "search creative work"
    assert task_for(tokenizer, SENTIMENT, defaults={"name": "text"}).name == "text"
    assert task_for(tokenizer, TEXTS, defaults=own).name == "text"
    assert isinstance(task_for(tokenizer, COMPLETIONS, defaults=own), Generate)
    assert task_for(tokenizer, SENTIMENT, template="{text}?", defaults={}).settings()[
        "template"
    ] == ("{text}?")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            SENTIMENT,
            {"name": "sing"},
            'task is "sing"; use one of classify, choice, generate, chat, text',
        ),
        (TEXTS, {"name": "classify"}, 'row 1 of the data has no column "label"'),
        (SENTIMENT, {"name": "generate"}, 'has no column "completion"'),
        (TEXTS, {"label_words": "a,b"}, "task text has no labels"),
        (SENTIMENT, {"template": "{txt}:"}, 'names column "txt".*columns are "text", "label"'),
        (SENTIMENT, {"template": "{text} {label}"}, 'shows column "label", which is the answer'),
        (SENTIMENT, {"template": "Label:"}, "names no column"),
        (SENTIMENT, {"template": "{text"}, "write {column}"),
        (SENTIMENT, {"template": "{}"}, "write {column}"),
        (SENTIMENT, {"template": "{text!r}"}, "write {column}"),
        (SENTIMENT, {"template": "{text:>5}"}, "write {column}"),
        (SENTIMENT, {"template": "{text.__class__}"}, r'names column "text\.__class__"'),
        (SENTIMENT[:1], {}, "only one label"),
        (SENTIMENT, {"label_words": "bad"}, 'words "bad" are for one label, and the rows have "'),
        (SENTIMENT, {"label_words": "0=bad"}, 'words "bad" are for one label, and the rows have "'),
        (SENTIMENT, {"label_words": "bad,bad"}, 'label word "bad" occurs twice'),
        (SENTIMENT, {"label_words": "bad,"}, "a label word is empty"),
        (SENTIMENT, {"label_words": "0=bad,good"}, "mix words and label=word"),
        (SENTIMENT, {"label_words": "0=bad,0=good"}, "name a label twice"),
        (
            [{"text": "x", "label": "p"}, {"text": "y", "label": "n"}],
            {"label_words": "good,bad"},
            "write them as label=word",
        ),
        ([*SEARCH, SEARCH[0] | {"label_text": "find"}], {}, 'row 4 .* has label_text "find"'),
        ([{"a": "x", "label": 0}], {}, 'has no column "text"; give a template.*"a"'),
    ],
)
def test_wrong_settings(
    tokenizer: Tokenizer, rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        task_for(tokenizer, rows, **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "label": 2}, 'row 1 of the data: label "2" is none of the labels "0", "1"'),
        ({"a": "x", "label": 1}, 'names column "text", which row 1'),
    ],
)
def test_evaluation_rows_follow_the_training_rows(
    tokenizer: Tokenizer, row: dict[str, Any], message: str
) -> None:
    task = task_for(tokenizer, SENTIMENT)
    with pytest.raises(InputError, match=message):
        task.encode_rows(rows_from([row]))


def test_what_must_not_be_cut_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="completions are never cut"):
        batch_of(task_for(tokenizer, COMPLETIONS), [{"prompt": "a", "completion": "b c " * 30}])
    task = task_for(tokenizer, SENTIMENT, template="question " * 30 + "{text}")
    with pytest.raises(InputError, match=r"row 1 of the data: the template .* leave no room"):
        batch_of(task, SENTIMENT)
    with pytest.raises(InputError, match="longer than one token"):
        batch_of(task_for(tokenizer, [{"text": "a"}]), [{"text": "a"}])
    with pytest.raises(InputError, match=r'column "n".* is neither text nor a number'):
        rows = [row | {"n": [1]} for row in SENTIMENT]
        batch_of(task_for(tokenizer, rows, template="{n}{text}"), rows)


@pytest.mark.parametrize(
    "damage", [{"name": "x"}, {"context_length": None}, {"labels": 3}, {"labels": ["0"]}]
)
def test_damaged_settings(tokenizer: Tokenizer, damage: dict[str, Any]) -> None:
    settings = task_for(tokenizer, SENTIMENT).settings()
    with pytest.raises(InputError):
        task_from_settings(settings | damage, tokenizer)
