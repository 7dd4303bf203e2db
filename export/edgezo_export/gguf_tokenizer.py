"""The tokenizer of a GGUF file, as Hugging Face's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgezo_runtime.errors import InputError
from edgezo_runtime.files import write_text

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def write_tokenizer(folder: Path, metadata: Mapping[str, Any], source: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and, if there is one, the chat template.

    Raises:
        InputError: `source`, whose metadata this is, has a tokenizer that is not byte-level BPE,
            or splits text into words in a way that edgezo does not know.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    merges = metadata.get("tokenizer.ggml.merges")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or not tokens or merges is None:
        raise InputError(
            f"{source} has a tokenizer of kind {metadata.get('tokenizer.ggml.model')!r}; edgezo "
            "reads byte-level BPE ('gpt2'): export the Hugging Face checkpoint instead"
        )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[_pair(merge) for merge in merges],
        )
    )
    tokenizer.pre_tokenizer = _words(metadata.get("tokenizer.ggml.pre"), source)
    tokenizer.decoder = decoders.ByteLevel()
    types: Sequence[int] = metadata.get("tokenizer.ggml.token_type", ())
    # In order of their numbers: `tokenizers` numbers added tokens as it meets them.
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_text(folder / "tokenizer_config.json", _config(metadata, tokens))
    template = metadata.get("tokenizer.chat_template")
    if template:
        write_text(folder / "chat_template.jinja", template)


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _words(name: str | None, source: Path) -> pre_tokenizers.PreTokenizer:
    if name in ("smollm", "starcoder", "refact", "command-r"):
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if name in ("gpt-2", "default", None):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raise InputError(
        f"{source} splits words by {name!r}, which edgezo does not know: "
        "export the Hugging Face checkpoint instead"
    )


def _config(metadata: Mapping[str, Any], tokens: Sequence[str]) -> str:
    config: dict[str, Any] = {
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": bool(metadata.get("tokenizer.ggml.add_space_prefix", False)),
    }
    for role, name in _ROLES.items():
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None:
            config[f"{role}_token"] = tokens[number]
    config["clean_up_tokenization_spaces"] = False
    config["model_max_length"] = metadata.get("llama.context_length", 2048)
    config["tokenizer_class"] = "GPT2Tokenizer"
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
