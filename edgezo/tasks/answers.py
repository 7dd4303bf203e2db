"""Where a prompt's answer goes: after it in the same text, or into a decoder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgezo.tasks.base import Part
from edgezo_runtime.text import Tokenizer


@dataclass(frozen=True)
class Answers:
    """Encodes prompts and their answers.

    Attributes:
        tokenizer: the model's.
        decoder_start: the token that begins what a decoder reads, where the prompt goes into an
            encoder; None where the answer follows the prompt.
    """

    tokenizer: Tokenizer
    decoder_start: int | None = None

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a prompt, with what belongs around it."""
        if self.decoder_start is None:
            return self.tokenizer.encode(text)
        return self.tokenizer.encode_whole(text)

    def encode(self, prompt: str, answer: str) -> list[int]:
        """Returns the tokens of `answer` to `prompt`."""
        if self.decoder_start is None:
            return self.tokenizer.encode_after(prompt, answer)
        return self.tokenizer.encode_bare(answer)

    def room(self, context_length: int, answer: int) -> int:
        """Returns how many tokens a prompt may have beside `answer` tokens that are read."""
        return context_length - (answer if self.decoder_start is None else 0)

    def ask(self, prompt: Sequence[int], read: Sequence[int], targets: Sequence[int]) -> Part:
        """Returns the part that predicts `targets` at the end of `read`, the answer so far."""
        wanted = np.array(targets, np.int64)
        if self.decoder_start is None:
            return Part(np.array([*prompt, *read], np.int64), wanted)
        decoded = np.array([self.decoder_start, *read], np.int64)
        return Part(np.array(prompt, np.int64), wanted, decoder_tokens=decoded)

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> Part:
        """Returns the part that scores every token of `answer` after `prompt`.

        The last token is only a target: nothing is predicted after it, so it need not be read.
        """
        return self.ask(prompt, answer[:-1], answer)

    def settings(self) -> dict[str, int]:
        """Returns what a task's settings say of it; nothing where the answer follows."""
        return {} if self.decoder_start is None else {"decoder_start": self.decoder_start}
