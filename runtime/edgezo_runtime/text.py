"""Text in, token ids out: a checkpoint's own tokenizer and chat template, without transformers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgezo_runtime import chat_template
from edgezo_runtime.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CONFIG = "config.json"


class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        folder: where it was read from; named in errors.
        bos_id: id of the token that begins a text, or None.
        eos_id: id of the token that ends a text, or None.
        pad_id: id to fill up rows with; always a valid id (eos, then 0, where none is named).
        unk_id: id of what is not in the vocabulary, or None.
        mask_id: id of the token that a masked language model fills in, or None.
        mask_token: its text, or None.
        stop_ids: every id that ends a generated text: `eos_id` and those of config.json.
        adds_bos: whether `encode` puts `bos_id` first.
        chat_template: source of the chat template, or None.
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        settings: Mapping[str, Any],
        config: Mapping[str, Any],
        chat_template: str | None,
    ) -> None:
        self.folder = folder
        self.chat_template = chat_template
        # Lengths are the caller's business; a checkpoint may have been saved with a limit.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._names = {key: _content(settings.get(f"{key}_token")) for key in _SPECIAL}
        ids = {key: self._special_id(key, config) for key in _SPECIAL}
        self.bos_id = ids["bos"]
        self.eos_id = ids["eos"]
        # Checkpoints of encoders often leave these names to transformers' own classes.
        self.unk_id = _first(ids["unk"], *map(backend.token_to_id, ("[UNK]", "<unk>")))
        self.mask_id = _first(ids["mask"], *map(backend.token_to_id, ("[MASK]", "<mask>")))
        self.mask_token = None if self.mask_id is None else backend.id_to_token(self.mask_id)
        self.pad_id = _first(ids["pad"], self.eos_id) or 0
        self.stop_ids = frozenset(_ids(config.get("eos_token_id"))) | (
            frozenset() if self.eos_id is None else {self.eos_id}
        )
        adds_bos = settings.get("add_bos_token")
        if adds_bos is None:
            # Newer checkpoints only say it in tokenizer.json, as what surrounds an empty text.
            adds_bos = backend.encode("").ids[:1] == [self.bos_id]
        self.adds_bos = bool(adds_bos) and self.bos_id is not None
        sample = backend.encode("a")
        words = [i for i, added in enumerate(sample.special_tokens_mask) if not added]
        first, last = (words[0], words[-1] + 1) if words else (len(sample.ids), len(sample.ids))
        self._before, self._after = sample.ids[:first], sample.ids[last:]

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """Reads the tokenizer of the checkpoint or bundle in `folder`.

        Raises:
            InputError: tokenizer.json is missing, or one of the files is damaged.
        """
        from tokenizers import Tokenizer as Backend

        folder = Path(folder)
        path = folder / TOKENIZER
        if not path.is_file():
            raise InputError(
                f"{folder} has no {TOKENIZER}; copy the one of the model's checkpoint there"
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path} is not a readable tokenizer: {_line(error)}") from error
        settings = _read_json(folder / TOKENIZER_CONFIG)
        return cls(
            backend,
            folder,
            settings,
            _read_json(folder / CONFIG),
            _read_chat_template(folder, settings.get("chat_template")),
        )

    @functools.cached_property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        # Counting takes the tokenizers package 10 ms; generation asks for each token.
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, after `bos_id` where the checkpoint wants it."""
        ids = self._encoding(text).ids
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_whole(self, text: str) -> list[int]:
        """Returns the token ids of `text` as one whole input, with what ends it too.

        That is what encoders were trained on: between ``[CLS]`` and ``[SEP]``, or before ``</s>``.
        """
        return [*self._before, *self._encoding(text).ids, *self._after]

    def encode_bare(self, text: str) -> list[int]:
        """Returns the token ids of `text` alone, without any token around it."""
        return self._encoding(text).ids

    def encode_after(self, context: str, text: str) -> list[int]:
        """Returns the token ids of `text` as they follow those of `context`.

        ``encode(context) + encode_after(context, text)`` is what a model reads whose prompt is
        `context`: the end of `context` is never merged with `text`.
        """
        head = self._encoding(context).ids
        whole = self._encoding(context + text).ids
        if len(whole) > len(head) and whole[: len(head)] == head:
            return whole[len(head) :]
        return self._encoding(text).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of `ids`, (tokens,); special tokens vanish unless asked for."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def cut(self, text: str, tokens: int, keep: Literal["start", "end"] = "start") -> str:
        """Returns the longest start (or end) of `text` that takes at most `tokens` tokens.

        It is cut between tokens and between characters; `bos_id` is not counted.
        """
        encoding = self._encoding(text)
        total = len(encoding.ids)
        if total <= tokens:
            return text
        for count in range(tokens, 0, -1):
            if keep == "start":
                # A character may be spread over several tokens: stop before the shared one.
                end = min(encoding.offsets[count - 1][1], encoding.offsets[count][0])
                part = text[: max(end, encoding.offsets[count - 1][0])]
            else:
                start = max(
                    encoding.offsets[total - count][0], encoding.offsets[total - count - 1][1]
                )
                part = text[start:]
            # On its own the part may split differently, though hardly ever into more tokens.
            if len(self._encoding(part).ids) <= tokens:
                return part
        return ""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the conversation as the text that the checkpoint was trained on.

        Args:
            messages: one ``{"role": ..., "content": ...}`` per turn.
            add_generation_prompt: whether to end with the opening of the assistant's turn.

        Raises:
            InputError: there is no chat template, or it is broken, unsafe, or refuses `messages`.
        """
        return self._render_chat(messages, add_generation_prompt)[0]

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Returns the whole conversation, and where the template marks the assistant's words.

        Raises:
            InputError: as `apply_chat_template`.
        """
        return self._render_chat(messages, False)

    def _render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        if self.chat_template is None:
            raise InputError(
                f"{self.folder} has no chat template; add {CHAT_TEMPLATE} or use plain text"
            )
        try:
            return chat_template.render(
                self.chat_template,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **{f"{key}_token": name for key, name in self._names.items() if name is not None},
            )
        except Exception as error:  # whatever the template's own code raises
            raise InputError(
                f"the chat template of {self.folder} cannot render these messages: {_line(error)}"
            ) from error

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                f"the tokenizer of {self.folder} cannot encode {text[:40]!r}: {_line(error)}"
            ) from error

    def _special_id(self, key: str, config: Mapping[str, Any]) -> int | None:
        name = self._names[key]
        found = None if name is None else self._backend.token_to_id(name)
        if found is None:
            found = next(iter(_ids(config.get(f"{key}_token_id"))), None)
            if found is not None and name is None:
                self._names[key] = self._backend.id_to_token(found)
        return found


_SPECIAL = ("bos", "eos", "pad", "unk", "mask")


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _content(token: Any) -> str | None:
    """Returns a special token's text, stored as a string or as ``{"content": ...}``."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _ids(value: Any) -> list[int]:
    """Returns the ids in a configuration's field: a number, a list of them, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int and i >= 0]


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the object in `path`, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; copy the one of the model's checkpoint")
    return value


def _read_chat_template(folder: Path, setting: Any) -> str | None:
    """Returns the template of chat_template.jinja, else of tokenizer_config.json."""
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not readable UTF-8 text: {_line(error)}") from error
    if isinstance(setting, list):
        named = {item.get("name"): item.get("template") for item in setting if _is_object(item)}
        setting = named.get("default", next(iter(named.values()), None))
    return setting if isinstance(setting, str) else None


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _line(error: Exception) -> str:
    """Returns an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
