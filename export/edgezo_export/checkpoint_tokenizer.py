"""A checkpoint's tokenizer, as the one file that runs without transformers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from edgezo_export.quiet import quiet
from edgezo_runtime.bundle import SIDE_FILES
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import CONFIG, TOKENIZER, TOKENIZER_CONFIG

#: What a checkpoint without a tokenizer.json has in its place.
_VOCABULARIES = (
    *("vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)


def copy_tokenizer(source: Path, folder: Path, vocabulary: int) -> None:
    """Copies the tokenizer of `source`, if it has one, into `folder`; older kinds are converted.

    Args:
        source: the checkpoint.
        folder: where to.
        vocabulary: how many tokens the model knows.

    Raises:
        InputError: the tokenizer cannot be read, or has tokens that the model has not.
    """
    old = any((source / name).is_file() for name in _VOCABULARIES)
    if not (source / TOKENIZER).is_file() and old:
        with tempfile.TemporaryDirectory() as converted:
            _convert(source, Path(converted))
            _copy(Path(converted), folder)
    else:
        _copy(source, folder)
    check_tokenizer(folder, vocabulary, source)


def check_tokenizer(folder: Path, vocabulary: int, source: Path) -> None:
    """Raises InputError if the tokenizer in `folder`, if any, has tokens that the model has not.

    Args:
        folder: where `tokenizer.json` may lie.
        vocabulary: how many tokens the model knows.
        source: the checkpoint, named in errors.
    """
    if not (folder / TOKENIZER).is_file():
        return
    try:
        tokens = Tokenizer.from_file(str(folder / TOKENIZER)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises nothing more precise
        raise InputError(f"cannot read the tokenizer of {source}: {error}") from error
    token, number = max(tokens.items(), key=lambda item: item[1], default=("", -1))
    if number >= vocabulary:
        raise InputError(
            f"the tokenizer of {source} does not match its model: its token {token!r} has number "
            f"{number}, the model knows {vocabulary}"
        )


def _convert(source: Path, folder: Path) -> None:
    settings = source / TOKENIZER_CONFIG
    if settings.is_file() and b'"auto_map"' in settings.read_bytes():
        raise InputError(
            f"{settings} has auto_map: the tokenizer needs Python code of its own, which edgezo "
            f"does not run; put its {TOKENIZER} there"
        )
    try:
        with quiet():
            AutoTokenizer.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            ).save_pretrained(folder)
    except Exception as error:  # of transformers, tokenizers, or what they read a vocabulary with
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise InputError(f"cannot read the tokenizer of {source}: {reason}") from error
    if not (folder / TOKENIZER).is_file():
        raise InputError(
            f"transformers makes no {TOKENIZER} of the tokenizer of {source}: its kind has none"
        )


def _copy(source: Path, folder: Path) -> None:
    for name in SIDE_FILES:
        if name != CONFIG and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
