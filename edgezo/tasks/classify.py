"""Classification: which label's word does the model say after the prompt?"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgezo.data.rows import label_value
from edgezo.tasks.answers import Answers
from edgezo.tasks.base import Example, option_loss
from edgezo.tasks.label_task import ANSWERS, LabelTask
from edgezo.tasks.labels import Labels, check_distinct
from edgezo.tasks.template import Template
from edgezo_runtime.batch import Objective
from edgezo_runtime.text import Tokenizer

DEFAULT_TEMPLATE = "Text: {text}\nLabel:"


class Classify(LabelTask):
    """Cross-entropy over the labels' words, at the end of the prompt.

    Where the words' first tokens all differ, these alone are compared, at one position a row;
    otherwise each word is scored by the summed log-probability of all its tokens, and a row takes
    as many sequences as there are labels; see `apart` for what a start from a probe does then.

    Args:
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        labels: the labels and their words.
        template: the prompt. A space goes between it and the word, unless it ends in a new line
            or a tab; spaces at its end make no difference.
        decoder_start: the token that begins an answer in a decoder; see `Answers`.
        own_tokens: whether words that begin alike are told by tokens that have nothing to do with
            them.

    Raises:
        InputError: the template is wrong, or two words have the same tokens.
    """

    name = "classify"

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int,
        labels: Labels,
        template: str = DEFAULT_TEMPLATE,
        decoder_start: int | None = None,
        own_tokens: bool = False,
    ) -> None:
        # A model says " word" in one token: the space belongs to the word, not to the prompt.
        prompt = Template.parse(template.rstrip(" "), ANSWERS)
        super().__init__(tokenizer, context_length, labels, prompt)
        self.answers = Answers(tokenizer, decoder_start)
        self._source = template
        ends_in_space = self.template.source[-1:].isspace()
        self._strip = "" if ends_in_space else " "
        context = self.template.render(dict.fromkeys(self.template.columns, "text"))
        self.word_tokens = [
            np.array(self.answers.encode(context, self._strip + word), np.int64)
            for word in labels.words
        ]
        check_distinct(self.word_tokens, labels)
        shared = _shared_prefix(self.word_tokens)
        # Where one token follows what all words begin with, as in " 1" and " 2" of a tokenizer
        # that splits off spaces, reading the shared tokens as prompt gives the same scores.
        if any(len(tokens) > len(shared) + 1 for tokens in self.word_tokens):
            shared = []
        self._shared = shared
        self._first = np.array([tokens[len(shared)] for tokens in self.word_tokens], np.int64)
        self._begun = self._first
        self.own_tokens = own_tokens
        if own_tokens:
            self._first = self._tokens_apart()
        self.by_token = len(np.unique(self._first)) == len(self._first)
        longest = max(map(len, self.word_tokens))
        self._room = len(shared) if self.by_token else longest - 1

    @property
    def candidates(self) -> np.ndarray:
        """First tokens of the labels' words, (labels,) int64, where these suffice."""
        return self._first if self.by_token else super().candidates

    @property
    def begun(self) -> np.ndarray:
        """First tokens of the labels' words, (labels,) int64, also where some are the same."""
        return self._begun

    def apart(self) -> Classify:
        """Returns the task with a token for each label, of which each word has but the first.

        Words that begin like another's are told by the vocabulary's last tokens, which hardly any
        text has. They mean nothing until something was fitted to them; a row then takes one
        sequence, however many labels there are.
        """
        labels, start = self.labels, self.answers.decoder_start
        return Classify(
            self.tokenizer, self.context_length, labels, self._source, start, own_tokens=True
        )

    def _tokens_apart(self) -> np.ndarray:
        words = {int(token) for tokens in self.word_tokens for token in tokens}
        free = (
            token
            for token in reversed(range(self.tokenizer.size))
            if token not in words and self.tokenizer.decode([token]).strip()  # none that is special
        )
        count = Counter(self._first.tolist())
        own = [token if count[token] == 1 else next(free) for token in self._first.tolist()]
        return np.array(own, np.int64)

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the row's one example; the longest columns are cut at their end to fit."""
        limit = self.answers.room(self.context_length, self._room)
        label, prompt = self.read(row, place, limit, self.answers.encode_prompt, self._strip)
        if self.by_token:
            parts = (self.answers.ask(prompt, self._shared, [self._first[label]]),)
        else:
            words = (word.tolist() for word in self.word_tokens)
            parts = tuple(self.answers.score(prompt, word) for word in words)
        return [Example(parts, label)]

    def solved(self, row: Mapping[str, Any], place: str) -> str:
        """Returns the row's prompt and the right word after it."""
        label = self.labels.index(label_value(row, place), place)
        prompt = self.template.render(self.template.values(row, place)).rstrip(self._strip)
        return prompt + self._strip + self.labels.words[label]

    def objective(self, examples: Sequence[Example]) -> Objective:
        """Returns a loss over first tokens or over whole words."""
        if self.by_token:
            return super().objective(examples)
        return option_loss(examples)

    def settings(self) -> dict[str, Any]:
        """Returns template, labels and words."""
        own = {"own_tokens": True} if self.own_tokens else {}
        return super().settings() | {"template": self._source, **self.answers.settings(), **own}


def _shared_prefix(words: Sequence[np.ndarray]) -> list[int]:
    """Returns the tokens that all words begin with, short of any word's last token."""
    columns = zip(*(word[:-1].tolist() for word in words), strict=False)
    return [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]
