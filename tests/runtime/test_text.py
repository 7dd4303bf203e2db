"""The tokenizer and its chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_text import small_tokenizer, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@given(text=TEXTS)
def test_decode_undoes_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_special_tokens_are_read_as_strings_and_as_objects(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.stop_ids == {2}
    assert tokenizer.decode([1, *tokenizer.encode("good"), 2]) == "good"


def test_bos_is_added_only_where_the_checkpoint_wants_it(tmp_path: Path) -> None:
    plain = small_tokenizer(tmp_path / "plain")
    wanted = small_tokenizer(tmp_path / "wanted", add_bos_token=True)
    assert wanted.encode("good") == [1, *plain.encode("good")]
    assert wanted.encode("<s>good") == wanted.encode("good")
    assert wanted.encode_after("good", " film") == plain.encode(" film")


def test_bos_of_the_post_processor_counts(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(raw), "utf-8")
    assert Tokenizer.from_folder(tmp_path).adds_bos
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"bos_token": "<s>", "add_bos_token": false}', "utf-8")
    assert not Tokenizer.from_folder(tmp_path).adds_bos


def test_ids_of_config_json_stand_in(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, config={"eos_token_id": [2, 7], "bos_token_id": 1})
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.stop_ids == {2, 7}


def test_a_saved_limit_does_not_cut(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(raw), "utf-8")
    assert len(Tokenizer.from_folder(tmp_path).encode("a b c d e f")) > 2


@given(text=TEXTS, tokens=st.integers(-1, 40))
def test_cut_keeps_the_start_or_the_end(tokenizer: Tokenizer, text: str, tokens: int) -> None:
    start, end = tokenizer.cut(text, tokens), tokenizer.cut(text, tokens, keep="end")
    assert text.startswith(start) and text.endswith(end)
    for part in (start, end):
        assert len(tokenizer.encode(part)) <= max(tokens, 0)
    if len(tokenizer.encode(text)) <= tokens:
        assert start == end == text


def test_cut_is_long_and_never_splits_a_character(tokenizer: Tokenizer) -> None:
    text = "the film was good"
    counts = [len(tokenizer.encode(tokenizer.cut(text, n))) for n in range(5)]
    assert counts == [0, 1, 2, 3, 4]
    emoji = "🎬"  # four tokens
    assert tokenizer.cut(f"good{emoji}", len(tokenizer.encode(f"good{emoji}")) - 1) == "good"
    assert tokenizer.cut(f"{emoji}good", 3, keep="end") == "good"


@given(context=TEXTS, text=TEXTS)
def test_encode_after_says_the_text(tokenizer: Tokenizer, context: str, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_after(context, text), skip_special=False) == text


def test_encode_after_never_reaches_back(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_after("Label:", " positive") == tokenizer.encode(" positive")
    assert tokenizer.encode_after("Label: ", "positive") == tokenizer.encode("positive")


def test_chat_template_of_its_own_file_comes_first(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi <b>"}]
    both = small_tokenizer(tmp_path / "both", chat_template="file", settings_are="ignored")
    assert both.apply_chat_template(messages) == "file"
    tokenizer = small_tokenizer(tmp_path / "file")
    assert tokenizer.apply_chat_template(messages) == "<user>hi <b></s><assistant>"
    assert tokenizer.apply_chat_template(messages, False) == "<user>hi <b></s>"


@pytest.mark.parametrize("as_list", [False, True])
def test_chat_template_of_the_settings(tmp_path: Path, as_list: bool) -> None:
    source = "{{ bos_token }}{{ messages[0] | tojson }}"
    write_tokenizer(tmp_path, chat_template=None)
    path = tmp_path / "tokenizer_config.json"
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": source}]
    settings = {"bos_token": "<s>", "chat_template": named if as_list else source}
    path.write_text(json.dumps(settings), "utf-8")
    text = Tokenizer.from_folder(tmp_path).apply_chat_template([{"role": "é<"}])
    assert text == '<s>{"role": "é<"}'


def test_chat_template_has_what_transformers_gives(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ strftime_now('%%') }}"
    )
    tokenizer = small_tokenizer(tmp_path, chat_template=source)
    assert tokenizer.apply_chat_template([{"content": "one"}, {"content": "two"}]) == "one%"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% if %}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_bad_chat_template_is_bad_input(tmp_path: Path, source: str) -> None:
    tokenizer = small_tokenizer(tmp_path, chat_template=source)
    with pytest.raises(InputError, match="chat template") as error:
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert "\n" not in str(error.value)


def test_no_chat_template(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(InputError, match="has no chat template"):
        tokenizer.apply_chat_template([])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"[" * 100_000])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
