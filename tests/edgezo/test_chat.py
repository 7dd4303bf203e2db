"""Conversations: what is trained is what the assistant says, as transformers sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, refused, write_rows
from helpers_text import small_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from edgezo.data import rows_from
from edgezo.tasks import Chat, make_task, task_from_settings
from edgezo_runtime.errors import InputError

MARKED = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<system>be good</s>\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Earlier answers lose their thoughts once another question follows, and the prompt opens one.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.index0 < ns.last %}"
    "{{ m.content.split('|')[-1] }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
CONVERSATION = [
    {"role": "system", "content": "search the music"},
    {"role": "user", "content": "a good film?"},
    {"role": "assistant", "content": "the old band"},
    {"role": "user", "content": "a book"},
    {"role": "assistant", "content": "wonderful story,\nwith actors"},
    {"role": "user", "content": "play"},
]
TEXTS = st.text(st.sampled_from("ab <>/s\n.éfilm"), max_size=12)
TURNS = st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), min_size=1, max_size=4)


def chat(folder: Path, template: str | None = PLAIN, context: int = 300) -> Chat:
    task = make_task(
        None,
        rows_from([{"messages": CONVERSATION}]),
        small_tokenizer(folder, chat_template=template, config={"eos_token_id": 2}),
        context,
    )
    assert isinstance(task, Chat)
    return task


def trained(task: Chat, messages: list[dict[str, str]]) -> list[list[str]]:
    """Returns what is trained, each stretch of tokens as its text, for each example."""
    found = []
    for example in task.encode({"messages": messages}):
        (part,) = example.parts
        assert part.positions is not None
        breaks = np.flatnonzero(np.diff(part.positions) > 1) + 1
        stretches = np.split(part.targets, breaks)
        found.append(
            [task.tokenizer.decode(tokens.tolist(), skip_special=False) for tokens in stretches]
        )
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return chat(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return chat(tmp_path_factory.mktemp("marked"), MARKED)


@pytest.fixture(scope="module")
def theirs(marked: Chat) -> Any:
    """The tokenizer of `marked` in transformers."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(marked.tokenizer.folder / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_the_assistants_turns_are_trained_to_their_ends(tmp_path: Path, template: str) -> None:
    task = chat(tmp_path, template)
    expected = ["the old band</s>", "wonderful story,\nwith actors</s>"]
    assert trained(task, CONVERSATION) == [expected]
    (example,) = task.encode({"messages": CONVERSATION})
    text = task.tokenizer.apply_chat_template(CONVERSATION[:5], add_generation_prompt=False)
    read = task.tokenizer.decode(example.parts[0].tokens.tolist(), skip_special=False)
    assert text.startswith(read) and text.removeprefix(read) == "</s>\n"
    assert task.truncated == 0


@given(turns=TURNS, system=st.booleans())
def test_marks_and_differences_agree_with_transformers(
    plain: Chat, marked: Chat, theirs: Any, turns: list[tuple[str, str]], system: bool
) -> None:
    messages = [{"role": "system", "content": "be bad"}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}]
        messages += [{"role": "assistant", "content": answer}]
    told = theirs.apply_chat_template(
        messages,
        chat_template=MARKED,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask = np.array(told["assistant_masks"])
    expected = np.array(told["input_ids"])[mask == 1]
    for task in (plain, marked):
        (example,) = task.encode({"messages": messages})
        spoken = task.tokenizer.decode(example.parts[0].targets.tolist(), skip_special=False)
        assert spoken == "".join(f"{answer}</s>" for _, answer in turns)
        if "".join(answer for _, answer in turns).isalpha():  # tokens may merge across the marks
            assert example.parts[0].targets.tolist() == expected.tolist()


def test_each_turn_is_an_example_where_earlier_ones_are_rewritten(tmp_path: Path) -> None:
    task = chat(tmp_path, THINKING)
    messages = [
        {"role": "user", "content": "a film?"},
        {"role": "assistant", "content": "hm|good"},
        {"role": "user", "content": "a book?"},
        {"role": "assistant", "content": "well|bad"},
    ]
    assert trained(task, messages) == [["hm|good</s>"], ["well|bad</s>"]]
    second = task.encode({"messages": messages})[1].parts[0]
    read = task.tokenizer.decode(second.tokens.tolist(), skip_special=False)
    assert read == "<user>a film?</s><assistant>good</s><user>a book?</s><assistant>well|bad"
    assert trained(task, messages[:2]) == [["hm|good</s>"]]


def test_the_oldest_exchanges_go_first(plain: Chat, tmp_path: Path) -> None:
    (example,) = plain.encode({"messages": CONVERSATION})
    task = chat(tmp_path, context=example.length)
    assert trained(task, CONVERSATION) == trained(plain, CONVERSATION)
    assert task.truncated == 0
    task.context_length -= 1
    (cut,) = task.encode({"messages": CONVERSATION})
    read = task.tokenizer.decode(cut.parts[0].tokens.tolist(), skip_special=False)
    assert read.startswith("<s><system>\nsearch the music</s>\n<user>\na book</s>")
    assert trained(task, CONVERSATION) == [["wonderful story,\nwith actors</s>"]]
    task.context_length = 4
    (cut,) = task.encode({"messages": CONVERSATION})
    assert cut.length == 4 and cut.parts[0].targets[-1] == 2
    assert task.truncated == 3


def test_settings_and_batches(plain: Chat) -> None:
    again = task_from_settings(json.loads(json.dumps(plain.settings())), plain.tokenizer)
    assert isinstance(again, Chat) and again.settings() == plain.settings()
    short = [*CONVERSATION[1:2], {"role": "assistant", "content": "good"}]
    rows = rows_from([{"messages": CONVERSATION}, {"messages": short}])
    batch = again.collate(again.encode_rows(rows))
    length = batch.input_ids.shape[1]
    following = np.pad(batch.input_ids, ((0, 0), (0, 1)))[:, 1:].ravel()[batch.positions]
    # All but the last token of each text is read as well, at the place after.
    same = following == batch.targets
    assert same.sum() == len(same) - 2
    assert (batch.targets[~same] == 2).all()
    assert batch.attention_mask.ravel()[batch.positions].all()
    assert set(batch.positions // length) == {0, 1}


USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", r"row 1 of the data: column \"messages\" should be a list"),
        ([], "row 1 of the data has no turn of the assistant"),
        ([USER], "no turn of the assistant"),
        ([ANSWER], "no turn of the assistant after another's"),
        ([ANSWER, USER, ANSWER], "begins with the assistant's turn"),
        (["a"], 'message 1 should be an object with "role" and "content"'),
        ([USER, {"role": "bot", "content": "b"}], 'message 2 has role "bot"; use one of "system"'),
        ([USER, {"role": "assistant", "content": None}], "message 2 has no text in its content"),
    ],
)
def test_bad_messages(plain: Chat, messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plain.encode_rows(rows_from([{"messages": messages}]))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "row 1 of the data: .* has no chat template"),
        ("{{ raise_exception('no') }}", "row 1 of the data: the chat template .*: no"),
        ("{{ messages | length }}{{ messages[-1].content }}", "cannot|nobody can tell"),
    ],
)
def test_bad_templates(tmp_path: Path, template: str | None, message: str) -> None:
    task = chat(tmp_path, template)
    with pytest.raises(InputError, match=message):
        task.encode_rows(rows_from([{"messages": CONVERSATION}]))


def test_a_template_of_ones_own_is_refused(plain: Chat) -> None:
    rows = rows_from([{"messages": CONVERSATION}])
    with pytest.raises(InputError, match="model's own chat template"):
        make_task(None, rows, plain.tokenizer, 64, template="{messages}")
    with pytest.raises(InputError, match='has no column "messages"'):
        make_task("chat", rows_from([{"text": "a"}]), plain.tokenizer, 64)
    assert make_task(None, rows, plain.tokenizer, 64, defaults={"name": "chat"}).name == "chat"
    texts = rows_from([{"text": "a"}])
    assert make_task(None, texts, plain.tokenizer, 64, defaults={"name": "chat"}).name == "text"


def test_a_run_on_conversations(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = [{"messages": CONVERSATION[start : start + 2]} for start in (1, 3)] * 4
    long = [{"role": "user", "content": "the old band " * 30}, CONVERSATION[2]]
    data = write_rows(tmp_path / "chat.jsonl", [*rows, {"messages": long}])
    run = tmp_path / "run"
    flags = ("--steps", 3, "--batch-size", 4, "--threads", 1)
    done = called("train", tiny_bundle, "--data", data, "--out", run, *flags, "--json")
    assert done.json["truncated"] == 1
    told = called("eval", run, "--data", data, "--json").json
    assert told["examples"] == 9 and 1 < told["perplexity"] < 1e6
    assert told == called("eval", run, "--data", data, "--task", "chat", "--json").json | {
        "seconds": told["seconds"]
    }


def test_a_bundle_without_a_chat_template(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "b.edgezo")
    (folder / "chat_template.jinja").unlink()
    manifest = json.loads((folder / "edgezo.json").read_text())
    del manifest["files"]["chat_template.jinja"]
    (folder / "edgezo.json").write_text(json.dumps(manifest))
    data = write_rows(tmp_path / "chat.jsonl", [{"messages": CONVERSATION}])
    refused(called("eval", folder, "--data", data), 2, "line 1", "has no chat template")
