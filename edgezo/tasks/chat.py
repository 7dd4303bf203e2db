"""Conversations: the model should write the assistant's turns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgezo.data.rows import listed, quoted
from edgezo.tasks.base import Example, Part, Task
from edgezo_runtime.errors import InputError

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]
#: A conversation's text, and where the assistant's words begin and end in it.
Marked = tuple[str, list[tuple[int, int]]]


class Chat(Task):
    """Mean negative log-probability of the assistant's tokens, in every one of its turns.

    The model's own chat template writes the conversation. Each turn of the assistant counts from
    its first word to the token that ends it; what others say is only read.

    Args:
        tokenizer: the model's; it has a chat template.
        context_length: the longest sequence that the model takes, in tokens.
    """

    name = "chat"

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the row's one example, or one for each turn of the assistant.

        That is where the template writes an earlier turn differently once others follow: each turn
        is then trained as it is written when it is the last.

        A conversation that is too long loses its oldest exchanges, but not the system's message.
        If its last exchange is too long by itself, its first tokens are cut.
        """
        messages = _messages(row, place)
        try:
            encoded, cut = self._fitted(messages)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        self.truncated += cut
        examples = [Example((part,)) for part in map(_part, encoded) if len(part.targets)]
        self.skipped += not examples
        return examples

    def _fitted(self, messages: list[Message]) -> tuple[list[np.ndarray], bool]:
        """Returns the encoded texts of the conversation's longest end that fits."""
        head = messages[:1] if messages[0]["role"] == "system" else []
        starts = [i for i, m in enumerate(messages) if m["role"] == "user"]
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        kept = [messages, *(head + messages[i:] for i in starts if len(head) < i < last)]
        for dropped, conversation in enumerate(kept):
            encoded = [self._encoded(*marked) for marked in self._marked(conversation)]
            if all(tokens.shape[1] - 1 <= self.context_length for tokens in encoded):
                return encoded, dropped > 0
        return [tokens[:, -self.context_length - 1 :] for tokens in encoded], True

    def _marked(self, messages: list[Message]) -> list[Marked]:
        text, spans = self.tokenizer.render_chat(messages)
        if spans:  # the template marks them itself
            return [(text, spans)]
        turns = [
            self._turn(messages[: index + 1])
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        if all(text.startswith(through) for through, _ in turns):
            return [(text, [span for _, spans in turns for span in spans])]
        return turns

    def _turn(self, messages: list[Message]) -> Marked:
        """Returns a conversation's text and where its last message, the assistant's, lies.

        It begins where the text parts from what the model is shown when it is asked for it.
        """
        before = messages[:-1]
        asked = self.tokenizer.apply_chat_template(before)
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        start = _parting(asked, text)
        if start < len(self.tokenizer.apply_chat_template(before, add_generation_prompt=False)):
            raise InputError(
                "the chat template writes what came before the assistant's turn differently once "
                "the turn is there, so nobody can tell what to train: put the assistant's words "
                "between {% generation %} and {% endgeneration %} in it"
            )
        return text, [(start, len(text))]

    def _encoded(self, text: str, spans: list[tuple[int, int]]) -> np.ndarray:
        """Returns the tokens of `text` and whether each is trained, (2, length) int64.

        The pieces are encoded one after the other, as they are when the model writes them.
        """
        tokens: list[int] = []
        trained: list[bool] = []
        edges = [0, *itertools.chain.from_iterable(spans), len(text)]
        for number, (start, end) in enumerate(itertools.pairwise(edges)):
            if start == end:
                continue
            piece = text[start:end]
            if start == 0:
                new = self.tokenizer.encode(piece)
            else:
                new = self.tokenizer.encode_after(text[:start], piece)
            tokens += new
            trained += [False] * len(new) if number % 2 == 0 else self._until_stop(new)
        encoded = np.array([tokens, trained], np.int64)
        return encoded[:, : int(np.flatnonzero(encoded[1])[-1:].sum()) + 1]

    def _until_stop(self, tokens: list[int]) -> list[bool]:
        """Returns whether each token comes before the turn's end or ends it."""
        ends = [i for i, token in enumerate(tokens) if token in self.tokenizer.stop_ids]
        last = ends[-1] if ends else len(tokens) - 1
        return [i <= last for i in range(len(tokens))]


def _parting(one: str, other: str) -> int:
    """Returns how many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _part(encoded: np.ndarray) -> Part:
    """Returns the part that scores every trained token but the first, which follows nothing."""
    tokens, trained = encoded
    positions = np.flatnonzero(trained[1:])
    return Part(tokens[:-1], tokens[1:][positions], positions)


def _messages(row: Mapping[str, Any], place: str) -> list[Message]:
    """Returns the row's messages up to the assistant's last; raises InputError for bad ones."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise InputError(f'{place}: column "messages" should be a list of messages')
    for number, message in enumerate(messages, start=1):
        where = f"{place}: message {number}"
        if not isinstance(message, Mapping):
            raise InputError(f'{where} should be an object with "role" and "content"')
        if message.get("role") not in ROLES:
            raise InputError(
                f"{where} has role {quoted(message.get('role'))}; use one of {listed(ROLES)}"
            )
        if not isinstance(message.get("content"), str):
            raise InputError(f"{where} has no text in its content; give it one")
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    if not last:
        raise InputError(
            f"{place} has no turn of the assistant after another's; give it one to learn from"
        )
    if messages[0]["role"] == "assistant":
        raise InputError(f"{place} begins with the assistant's turn; say what it answers")
    return messages[: last + 1]
