"""What a task is: rows of text in, batches of tokens and their objective out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo.data.rows import Rows
from edgezo_runtime.batch import Batch, Objective
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

#: Where no candidates are wanted; the graph asks for some.
NO_CANDIDATES = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Part:
    """One sequence and what should follow its last tokens.

    Attributes:
        tokens: what the model reads, (length,) int64.
        targets: the tokens that should follow the last ``len(targets)`` of `tokens`, or those at
            `positions`, (answers,) int64.
        positions: where in `tokens` the targets are predicted, (answers,) int64; None: at the end.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None = None


@dataclass(frozen=True)
class Example:
    """One encoded row, or one window of a long text.

    Attributes:
        parts: its sequences: one, or one for each option.
        label: index of the right option; -1 where there are none.
    """

    parts: tuple[Part, ...]
    label: int = -1

    @property
    def length(self) -> int:
        """Tokens of its longest sequence."""
        return max(len(part.tokens) for part in self.parts)


class Task(abc.ABC):
    """Encodes rows into examples and collates examples into batches.

    Attributes:
        truncated: rows cut to the model's context so far.
        skipped: rows too short to hold anything to predict so far.
    """

    name: str

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.truncated = 0
        self.skipped = 0

    @abc.abstractmethod
    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the examples of one row: one, or several windows of a long text.

        Args:
            row: its columns.
            place: how errors name it, as in ``"train.jsonl line 3"``.

        Raises:
            InputError: a column is missing or holds the wrong thing, or what must not be cut is
                longer than the model's context.
        """

    @abc.abstractmethod
    def objective(self, examples: Sequence[Example]) -> Objective:
        """Returns what judges the outputs of the batch of `examples`."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns what `task_from_settings` makes an equal task of; plain JSON."""

    @property
    def candidates(self) -> np.ndarray:
        """The tokens whose logits are wanted at each answer, (choices,) int64."""
        return NO_CANDIDATES

    def encode_rows(self, rows: Rows) -> list[Example]:
        """Returns the examples of all rows, in order.

        Raises:
            InputError: a row is wrong, or none holds anything to predict.
        """
        examples: list[Example] = []
        for index, row in enumerate(rows):
            examples += self.encode(row, rows.place(index))
        if not examples:
            raise InputError(
                f"no row of {rows.path or 'the data'} is longer than one token; "
                "give texts with something to predict"
            )
        return examples

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Returns the batch of `examples`, padded on the right to the longest of them.

        The sequences of an example follow each other, and answers are numbered in the order of
        the sequences.
        """
        parts = [part for example in examples for part in example.parts]
        length = max(len(part.tokens) for part in parts)
        input_ids = np.full((len(parts), length), self.tokenizer.pad_id, np.int64)
        attention_mask = np.zeros((len(parts), length), np.int64)
        positions = []
        for index, part in enumerate(parts):
            end = len(part.tokens)
            input_ids[index, :end] = part.tokens
            attention_mask[index, :end] = 1
            own = np.arange(end - len(part.targets), end)
            positions.append(index * length + (own if part.positions is None else part.positions))
        return Batch(
            input_ids,
            attention_mask,
            np.concatenate(positions).astype(np.int64),
            np.concatenate([part.targets for part in parts]).astype(np.int64),
            self.candidates,
            self.objective(examples),
        )


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Part:
    """Returns the part that scores every token of `answer` after `prompt`.

    The last token is only a target: nothing is predicted after it, so the model need not read it.
    """
    tokens = np.array([*prompt, *answer], np.int64)
    return Part(tokens[:-1], tokens[len(prompt) :])
