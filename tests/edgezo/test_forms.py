"""Tuning models that are not causal: their tasks against transformers, and a loss that falls."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, refused, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefix_batches import check_rows_of_text
from tiny_families import CONTEXT, FAMILIES, VOCABULARY, tiny_family

import edgezo
from edgezo.data import eval_batches, rows_from
from edgezo.features import features
from edgezo.tasks import Masked, Task, make_task, task_from_settings
from edgezo_runtime.bundle import CAUSAL
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model

Folder = Callable[[str], Path]
ROWS = [
    {"text": "the film was good", "label": "positive"},
    {"text": "wonderful actors! great music", "label": "positive"},
    {"text": "a bad story", "label": "negative"},
    {"text": "terrible", "label": "negative"},
]
WORDS = {"positive": "great", "negative": "terrible"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200).filter(str.strip)
RATES = {"t5": 1e-3, "t5_gated": 1e-3}


@pytest.fixture(scope="module")
def model(family_bundle: Folder) -> Callable[[str], Model]:
    """Returns a tiny model by its name; nobody changes its weights."""
    made: dict[str, Model] = {}

    def load(name: str) -> Model:
        if name not in made:
            made[name] = edgezo.load(family_bundle(name), threads=1)
        return made[name]

    return load


def their_tokenizer(folder: Path) -> Any:
    """Returns transformers' tokenizer of a checkpoint."""
    from transformers import PreTrainedTokenizerFast

    backend = (folder / "tokenizer.json").read_text()
    pad = "[PAD]" if "[PAD]" in backend else "<pad>"
    mask = "[MASK]" if pad == "[PAD]" else "<mask>"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token=pad,
        mask_token=mask if mask in backend else None,
    )


def task_of(
    model: Model, rows: list[dict[str, Any]], name: str | None = None, **options: Any
) -> Task:
    form = options.pop("form", model.form)
    context = options.pop("context", model.context_length)
    return make_task(name, rows_from(rows), model.tokenizer, context, form=form, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_what_the_last_layer_reads(name: str, model: Callable[[str], Model]) -> None:
    words = None if name.endswith("head") else WORDS
    rows = [{"text": f"{a['text']} {i}", "label": a["label"]} for i in range(15) for a in ROWS]
    task = task_of(model(name), rows, label_words=words)
    examples = task.encode_rows(rows_from(rows))
    batches = list(eval_batches(task, examples, 16))
    found = features(model(name), task, examples, batches)
    assert found.shape == (60, 32)
    logits = np.concatenate([model(name).forward(b)["candidate_logits"] for _, b in batches])
    inputs = np.c_[found[np.concatenate([i for i, _ in batches])], np.ones(60)].astype(np.float64)
    weights = np.linalg.lstsq(inputs, logits, rcond=None)[0]
    np.testing.assert_allclose(inputs @ weights, logits, atol=1e-3 * np.abs(logits).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_short_run_lowers_the_loss(name: str, family_bundle: Folder) -> None:
    model = edgezo.load(family_bundle(name), threads=1)
    words = None if name.endswith("head") else WORDS
    stream = edgezo.batches(ROWS, model, batch_size=4, label_words=words, epochs=None)
    before = model.loss(next(stream))
    tuner = edgezo.Tuner(model, lr=RATES.get(name, 3e-3))
    for batch in itertools.islice(stream, 60):
        tuner.step(batch)
    assert model.loss(next(stream)) < before - 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_make_the_same_task(name: str, model: Callable[[str], Model]) -> None:
    words = None if name.endswith("head") else WORDS
    task = task_of(model(name), ROWS, label_words=words)
    again = task_from_settings(json.loads(json.dumps(task.settings())), model(name).tokenizer)
    assert again.settings() == task.settings()
    ours, theirs = (t.collate(t.encode_rows(rows_from(ROWS))) for t in (task, again))
    for key, array in ours.feeds().items():
        np.testing.assert_array_equal(array, theirs.feeds()[key])


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_masked_scores_are_those_of_transformers(
    name: str, model: Callable[[str], Model], family_checkpoint: Folder
) -> None:
    import torch

    task = task_of(model(name), ROWS, label_words=WORDS)
    assert isinstance(task, Masked)
    ours = model(name).forward(task.collate(task.encode_rows(rows_from(ROWS))))
    tokenizer = their_tokenizer(family_checkpoint(name))
    prompts = [f"{row['text']} It was {tokenizer.mask_token}." for row in ROWS]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = tiny_family(name)(**inputs).logits
    at_mask = logits[inputs["input_ids"] == tokenizer.mask_token_id]
    words = [f" {word}" for word in task.labels.words]
    columns = [tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
    expected = at_mask[:, columns]
    np.testing.assert_allclose(ours["candidate_logits"], expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.endswith("head")])
def test_head_scores_are_those_of_transformers(
    name: str, model: Callable[[str], Model], family_checkpoint: Folder
) -> None:
    import torch

    task = task_of(model(name), ROWS)
    ours = model(name).forward(task.collate(task.encode_rows(rows_from(ROWS))))
    tokenizer = their_tokenizer(family_checkpoint(name))
    theirs = tiny_family(name)
    with torch.no_grad():
        for row, logits in zip(ROWS, ours["candidate_logits"], strict=True):
            ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
            expected = theirs(ids).logits[0].numpy()
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_t5_losses_are_those_of_transformers(
    name: str, model: Callable[[str], Model], family_checkpoint: Folder
) -> None:
    import torch

    rows = [
        {"prompt": "the film was", "completion": "good and great"},
        {"prompt": "play some music by the old band", "completion": "bad"},
    ]
    task = task_of(model(name), rows)
    ours = model(name).loss(task.collate(task.encode_rows(rows_from(rows))))
    tokenizer = their_tokenizer(family_checkpoint(name))
    inputs, labels = (
        tokenizer([row[key] for row in rows], padding=True, return_tensors="pt")
        for key in ("prompt", "completion")
    )
    labels = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
    with torch.no_grad():
        theirs = tiny_family(name)(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels
        ).loss
    assert ours == pytest.approx(float(theirs), abs=1e-4)


def test_t5_scores_whole_words_in_the_decoder(model: Callable[[str], Model]) -> None:
    """Words that share their first token make a sequence for each label, with one encoder row."""
    words = {"positive": "good story", "negative": "good old"}
    task = task_of(model("t5"), ROWS, label_words=words)
    (example,) = task.encode(ROWS[0])
    prompt = model("t5").tokenizer.encode_whole("Text: the film was good\nLabel:")
    for part in example.parts:
        assert part.tokens.tolist() == prompt
        assert part.decoder_tokens is not None
        assert part.decoder_tokens.tolist() == [0, *part.targets[:-1]]
    batch = task.collate([example])
    assert batch.decoder_input_ids is not None
    assert batch.objective.loss(model("t5").forward(batch)) > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, context=st.integers(16, 40))
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_mask_and_what_follows_are_never_cut(
    name: str, model: Callable[[str], Model], text: str, context: int
) -> None:
    tokenizer = model(name).tokenizer
    if tokenizer.mask_token and tokenizer.mask_token in text:
        return
    task = task_of(model(name), ROWS, label_words=WORDS, context=context)
    (example,) = task.encode({"text": text, "label": "positive"})
    (part,) = example.parts
    whole = tokenizer.encode_whole(f"{text} It was {tokenizer.mask_token}.")
    end = tokenizer.encode_bare(f" It was {tokenizer.mask_token}.")
    assert part.positions is not None
    assert part.tokens[part.positions].tolist() == [tokenizer.mask_id]
    assert len(part.tokens) <= context
    assert part.tokens[0] == whole[0] and part.tokens[-1] == whole[-1]
    assert part.tokens[-1 - len(end) : -1].tolist() == end
    assert task.truncated == (len(whole) > context)
    if not task.truncated:
        assert part.tokens.tolist() == whole


@pytest.mark.parametrize("name", ["bert_head", "gpt2_head"])
def test_a_head_reads_what_is_left_of_a_long_text(name: str, model: Callable[[str], Model]) -> None:
    task = task_of(model(name), ROWS)
    (example,) = task.encode({"text": "good film " * 80, "label": "positive"})
    (part,) = example.parts
    assert task.truncated == 1 and len(part.tokens) <= CONTEXT
    assert part.positions is not None
    assert part.positions.tolist() == [0 if name == "bert_head" else len(part.tokens) - 1]
    if name == "bert_head":
        whole = model(name).tokenizer.encode_whole("good film")
        assert [part.tokens[0], part.tokens[-1]] == [whole[0], whole[-1]]


def test_t5_writes_what_transformers_does(model: Callable[[str], Model]) -> None:
    """Greedily, prompts of different lengths at once, and one by one."""
    import torch

    loaded, theirs = model("t5_gated"), tiny_family("t5_gated")
    tokenizer = loaded.tokenizer
    prompts = ["the film was good", "a bad story with terrible actors! the label:"]
    found = edgezo.generate_batch(loaded, prompts, 12)
    for prompt, text in zip(prompts, found, strict=True):
        ids = theirs.generate(
            torch.tensor([tokenizer.encode_whole(prompt)]),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
            suppress_tokens=list(range(tokenizer.size, VOCABULARY)),
        )[0].tolist()
        assert text == tokenizer.decode(ids[1:]) == edgezo.generate(loaded, prompt, 12)
    assert found[0] != found[1]
    with pytest.raises(InputError, match="prompt is empty"):
        edgezo.generate(loaded, "")
    with pytest.raises(InputError, match=r"prompt has \d+ tokens, the model takes 64"):
        edgezo.generate(loaded, "film " * 65)


def test_prompt_and_answer_have_a_context_each(model: Callable[[str], Model]) -> None:
    row = {"prompt": "the film " * 60 + "question?", "completion": "good " * 8}
    task = task_of(model("t5"), [row])
    (example,) = task.encode(row)
    (part,) = example.parts
    eos = model("t5").tokenizer.eos_id
    assert task.truncated == 1 and part.decoder_tokens is not None
    assert CONTEXT - 3 <= len(part.tokens) <= CONTEXT and part.tokens[-1] == eos
    assert part.targets[-1] == eos
    assert part.decoder_tokens.tolist() == [0, *part.targets[:-1]]
    with pytest.raises(InputError, match="completions are never cut"):
        task.encode(row | {"completion": "good bad " * 200})


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["negative", "positive"], None, {"negative": 0, "positive": 1}),
        ([1, 0], None, {"1": 1, "0": 0}),
        (["pos", "neg"], ["NEG", "POS"], {"neg": 0, "pos": 1}),
        (["b", "a"], ["LABEL_0", "LABEL_1"], {"a": 0, "b": 1}),
    ],
)
def test_labels_of_a_head(
    labels: list[Any],
    names: list[str] | None,
    expected: dict[str, int],
    model: Callable[[str], Model],
) -> None:
    loaded = model("bert_head")
    form = dict(loaded.form) | ({"labels": names} if names else {})
    rows = [{"text": "x", "label": label} for label in labels]
    task = task_of(loaded, rows, form=form)
    examples = task.encode_rows(rows_from(rows))
    assert [example.label for example in examples] == [expected[str(label)] for label in labels]
    assert task.candidates.tolist() == list(range(len(form["labels"])))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("bert", {"label_words": "greatest,good"}, r'"greatest" is \d tokens .*\("great", "##'),
        ("roberta", {"label_words": "greatest,good"}, r'"greatest" is \d tokens .*\(" great", '),
        ("bert", {"label_words": "Great,great"}, "have the same tokens"),
        ("bert", {"label_words": "ж,good"}, "is not in this model's vocabulary"),
        ("bert", {"template": "{text} It was good."}, "has 0 places for the label's word"),
        ("bert", {"template": "{mask} {text} {mask}"}, "has 2 places for the label's word"),
        ("bert", {"template": "It was {mask}."}, "names no column"),
        ("bert", {"name": "text"}, "text is not for a masked language model.*use masked"),
        ("bert", {"name": "classify"}, "classify is not for a masked language model"),
        ("bert", {"name": "sing"}, 'task is "sing"; use one of masked'),
        ("t5", {"name": "text"}, "encoder and decoder.*use classify or choice or generate"),
        ("t5", {"name": "masked", "form": {"kind": "masked"}}, "has no mask token"),
        ("bert", {"name": "masked", "form": CAUSAL}, "masked is not for a causal language model"),
        ("bert_head", {"label_words": "a,b"}, "takes the head's own labels"),
    ],
)
def test_wrong_settings(
    family: str, options: dict[str, Any], message: str, model: Callable[[str], Model]
) -> None:
    words = {} if "head" in family or options.get("name") == "text" else {"label_words": WORDS}
    options = words | options
    name = options.pop("name", None)
    rows = ROWS
    if isinstance(options.get("label_words"), str):
        rows = [row | {"label": i % 2} for i, row in enumerate(ROWS)]
    with pytest.raises(InputError, match=message):
        task_of(model(family), rows, name, **options)


def test_wrong_rows(model: Callable[[str], Model]) -> None:
    task = task_of(model("bert"), ROWS, label_words=WORDS)
    with pytest.raises(InputError, match=re.escape('the text itself has the mask token "[MASK]"')):
        task.encode({"text": "a [MASK] film", "label": "positive"})
    with pytest.raises(InputError, match=r'labels are "bad", the model\'s head has "negative"'):
        task_of(model("bert_head"), [{"text": "x", "label": "bad"}])


def test_masked_from_the_command_line(family_bundle: Folder, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", ROWS)
    words = ("--label-words", "negative=terrible,positive=great")
    files = ("--data", data, "--eval-data", data, "--out", tmp_path / "run")
    flags = ("--task", "masked", "--steps", 5, "--batch-size", 2, "--threads", 1, "--json")
    done = called("train", family_bundle("roberta"), *files, *words, *flags)
    assert done.status == 0, done.err
    assert done.json["finished"]
    own = called("eval", tmp_path / "run", "--data", data, "--threads", 1, "--json")
    assert own.json["loss"] == pytest.approx(done.json["loss"])
    template = ("--template", "{mask}: {text}")
    other = called("eval", family_bundle("bert"), "--data", data, *words, *template, "--json")
    assert other.status == 0, other.err
    refused(called("generate", family_bundle("bert"), "the film"), 2, "a masked language model")


@pytest.mark.parametrize(("name", "tune"), [("bert_head", "head"), ("t5", "decoder.*")])
def test_frozen_layers_are_computed_once_a_row(
    family_bundle: Folder, tmp_path: Path, name: str, tune: str
) -> None:
    """Rows and positions cross the cut on one axis, and the encoder's output beside a decoder."""
    model = edgezo.load(family_bundle(name), tune=tune, threads=1)
    check_rows_of_text(model, tmp_path / "cache")


def test_a_decoder_cut_in_two_keeps_nothing(family_bundle: Folder) -> None:
    half = edgezo.load(family_bundle("t5"), tune="decoder.block.1.*", threads=1)
    with pytest.raises(InputError, match="decoder_input_ids is read, whose axis 'decoded'"):
        half.check_prefix()
