"""Tokenizers of checkpoints: copied, converted from older files, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_families import SENTENCES, VOCABULARY
from tokenizers import Tokenizer as Backend

from edgezo_export.checkpoint_tokenizer import copy_tokenizer
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer


@pytest.fixture
def source(family_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """BERT's checkpoint as in its first years: with a vocab.txt in place of a tokenizer.json."""
    folder = shutil.copytree(family_checkpoint("bert"), tmp_path / "source")
    numbers = Backend.from_file(str(folder / "tokenizer.json")).get_vocab()
    words = sorted(numbers, key=numbers.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    (folder / "tokenizer.json").unlink()
    (tmp_path / "out").mkdir()
    return folder


def test_a_list_of_words(
    source: Path, family_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    copy_tokenizer(source, tmp_path / "out", VOCABULARY)
    ours = Tokenizer.from_folder(tmp_path / "out")
    theirs = Tokenizer.from_folder(family_checkpoint("bert"))
    for text in SENTENCES:
        assert ours.encode_whole(text) == theirs.encode_whole(text)
    assert (ours.mask_id, ours.pad_id) == (theirs.mask_id, theirs.pad_id)


def test_too_many_words(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not match its model: .* the model knows 50"):
        copy_tokenizer(source, tmp_path / "out", 50)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{}", "cannot read the tokenizer"),
        ("tokenizer.model", "junk", "cannot read the tokenizer"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.Y"]}}', "code of its own"),
    ],
)
def test_what_cannot_be_read(
    source: Path, tmp_path: Path, name: str, content: str, reason: str
) -> None:
    if name == "tokenizer.model":
        (source / "vocab.txt").unlink()
        config = json.loads((source / "config.json").read_text()) | {"model_type": "llama"}
        (source / "config.json").write_text(json.dumps(config))
        (source / "tokenizer_config.json").unlink()
    (source / name).write_text(content, "utf-8")
    with pytest.raises(InputError, match=reason) as caught:
        copy_tokenizer(source, tmp_path / "out", VOCABULARY)
    assert "\n" not in str(caught.value)
