"""A small tokenizer, trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from edgezo_runtime.bundle import CAUSAL
from edgezo_runtime.text import Tokenizer

SENTENCES = [
    "the film was good and the music was great",
    "a bad film with a terrible story\nLabel: negative",
    "a good story, wonderful actors\nLabel: positive",
    "play some music by the old band, book a table for two",
    "search creative work, search screening event, get weather",
]
SPECIAL = ["<pad>", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(
    folder: Path,
    chat_template: str | None = CHAT_TEMPLATE,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Writes a byte-level BPE tokenizer of about 400 tokens into `folder`.

    Args:
        folder: where to; it is made if need be.
        chat_template: text of chat_template.jinja, or None for no such file.
        config: what config.json holds.
        settings: what tokenizer_config.json holds beside the special tokens; they go first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | settings), "utf-8")
    (folder / "config.json").write_text(json.dumps(config or {}), "utf-8")
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, "utf-8")
    return folder


def small_tokenizer(folder: Path, **settings: Any) -> Tokenizer:
    """Returns the tokenizer that `write_tokenizer` writes."""
    return Tokenizer.from_folder(write_tokenizer(folder, **settings))


@dataclass(frozen=True)
class SmallModel:
    """What `edgezo.batches` needs of a model."""

    tokenizer: Tokenizer
    context_length: int = 64
    form: Mapping[str, Any] = field(default_factory=lambda: CAUSAL)
