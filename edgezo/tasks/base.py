"""What a task is: rows in, batches and their objective out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo.data.rows import Rows
from edgezo_runtime.batch import BaseBatch, Batch, Objective, OptionLoss, TokenLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

#: Where no candidates are wanted; the graph asks for some.
NO_CANDIDATES = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Part:
    """One sequence and what should follow its last tokens.

    Attributes:
        tokens: what the model reads, (length,) int64.
        targets: the tokens that should follow the last ``len(targets)`` of what is read, or stand
            at `positions`, (answers,) int64.
        positions: where in `tokens` the targets are predicted, (answers,) int64; None: at the end.
        decoder_tokens: what the decoder reads where `tokens` go into an encoder, (length,) int64;
            the targets are predicted at its end.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None = None
    decoder_tokens: np.ndarray | None = None


class BaseExample(abc.ABC):
    """One encoded row, or a part of it."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """What examples of one batch should have in common."""

    @property
    def sequences(self) -> int:
        """How many sequences of a batch it takes."""
        return 1


@dataclass(frozen=True)
class Example(BaseExample):
    """One encoded row, or one window of a long text.

    Attributes:
        parts: its sequences: one, or one for each option.
        label: index of the right option; -1 where there are none.
        accepted: indices of the options that count as right, the label's and others.
    """

    parts: tuple[Part, ...]
    label: int = -1
    accepted: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of its longest sequence."""
        return max(len(part.tokens) for part in self.parts)

    @property
    def sequences(self) -> int:
        """One for each option."""
        return len(self.parts)


class BaseTask(abc.ABC):
    """Encodes rows into examples and collates examples into batches.

    Attributes:
        truncated: rows cut to the model's context so far.
        skipped: rows too short to hold anything to predict so far.
    """

    name: str
    #: Whether it chooses one of several labels or options for each row.
    chooses = False

    def __init__(self) -> None:
        self.truncated = 0
        self.skipped = 0

    @abc.abstractmethod
    def encode_rows(self, rows: Any) -> Sequence[BaseExample]:
        """Returns the examples of all rows, in order; raises InputError if a row is wrong."""

    @abc.abstractmethod
    def collate(self, examples: Sequence[Any]) -> BaseBatch:
        """Returns the batch of `examples`."""

    def training_batch(self, examples: Sequence[Any]) -> BaseBatch:
        """Returns the batch that a step lowers the loss of."""
        return self.collate(examples)

    def right(self, examples: Sequence[Any]) -> np.ndarray:
        """Returns the right label of each example, (examples,) int64, of a task that chooses."""
        return np.array([example.label for example in examples], np.int64)

    def say(self, predictions: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns the predicted labels of `rows` as text, of a task that chooses."""
        return [str(index) for index in predictions]

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns what tells this task from others; plain JSON."""


class Task(BaseTask):
    """A task of text: what the rows say becomes tokens."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.context_length = context_length

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

    def objective(self, examples: Sequence[Example]) -> Objective:
        """Returns what judges the outputs of `examples`: the mean loss over the answers' tokens."""
        return TokenLoss(len(examples))

    def settings(self) -> dict[str, Any]:
        """Returns what `task_from_settings` makes an equal task of; plain JSON."""
        return {"name": self.name, "context_length": self.context_length}

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
        input_ids, attention_mask = self._padded([part.tokens for part in parts])
        decoded = [part.decoder_tokens for part in parts if part.decoder_tokens is not None]
        decoder_input_ids = self._padded(decoded)[0] if decoded else None
        length = (input_ids if decoder_input_ids is None else decoder_input_ids).shape[1]
        positions = []
        for index, part in enumerate(parts):
            end = len(part.tokens if part.decoder_tokens is None else part.decoder_tokens)
            own = np.arange(end - len(part.targets), end)
            positions.append(index * length + (own if part.positions is None else part.positions))
        return Batch(
            input_ids,
            attention_mask,
            np.concatenate(positions).astype(np.int64),
            np.concatenate([part.targets for part in parts]).astype(np.int64),
            self.candidates,
            self.objective(examples),
            decoder_input_ids,
        )

    def _padded(self, sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sequences as rows, padded on the right, and their mask."""
        length = max(map(len, sequences))
        ids = np.full((len(sequences), length), self.tokenizer.pad_id, np.int64)
        mask = np.zeros((len(sequences), length), np.int64)
        for index, tokens in enumerate(sequences):
            ids[index, : len(tokens)] = tokens
            mask[index, : len(tokens)] = 1
        return ids, mask


def option_loss(examples: Sequence[Example], mean: bool = False) -> OptionLoss:
    """Returns the loss over the parts of each example, which are its options."""
    sizes = [len(part.targets) for example in examples for part in example.parts]
    return OptionLoss(
        np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        np.array([example.label for example in examples], np.int64),
        np.array([len(example.parts) for example in examples], np.int64),
        mean,
        [example.accepted or (example.label,) for example in examples],
    )
