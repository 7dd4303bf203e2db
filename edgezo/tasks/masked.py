"""Classification by a masked language model: which label's word stands at the mask?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgezo.data.rows import listed, quoted
from edgezo.tasks.base import Example, Part
from edgezo.tasks.label_task import ANSWERS, LabelTask
from edgezo.tasks.labels import Labels, check_distinct
from edgezo.tasks.template import Template
from edgezo_runtime.errors import InputError
from edgezo_runtime.text import Tokenizer

DEFAULT_TEMPLATE = "{text} It was {mask}."
MASK = "mask"


class Masked(LabelTask):
    """Cross-entropy over the labels' words, at the prompt's mask.

    Args:
        tokenizer: the model's.
        context_length: the longest sequence that the model takes, in tokens.
        labels: the labels and their words. A word is one token, as it stands after a space.
        template: the prompt, with ``{mask}`` once where the word goes.

    Raises:
        InputError: the template is wrong, the tokenizer has no mask, or a word is not one token.

    References:
        Gao et al., "Making Pre-trained Language Models Better Few-shot Learners", ACL 2021.
    """

    name = "masked"

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int,
        labels: Labels,
        template: str = DEFAULT_TEMPLATE,
    ) -> None:
        if tokenizer.mask_id is None or tokenizer.mask_token is None:
            raise InputError(
                f"the tokenizer of {tokenizer.folder} has no mask token; task {self.name} is for "
                "masked language models such as BERT and RoBERTa"
            )
        filled = _with_mask(template, tokenizer.mask_token)
        super().__init__(tokenizer, context_length, labels, filled)
        self._mask_id = tokenizer.mask_id
        words = [np.array(_word_token(tokenizer, word), np.int64) for word in labels.words]
        check_distinct(words, labels)
        self._words = np.concatenate(words)

    @property
    def candidates(self) -> np.ndarray:
        """Tokens of the labels' words, (labels,) int64."""
        return self._words

    def encode(self, row: Mapping[str, Any], place: str = "the row") -> list[Example]:
        """Returns the row's one example; the longest columns are cut at their end to fit."""
        label, read = self.read(row, place, self.context_length, self.tokenizer.encode_whole)
        tokens = np.array(read, np.int64)
        (masks,) = np.nonzero(tokens == self._mask_id)
        if len(masks) != 1:
            raise InputError(
                f"{place}: the text itself has the mask token {quoted(self.tokenizer.mask_token)}, "
                "and a prompt has one place for the label's word; write it otherwise"
            )
        return [Example((Part(tokens, self._words[label : label + 1], masks),), label)]


def columns_of(template: str) -> set[str]:
    """Returns the columns that a prompt with a mask shows."""
    return set(Template.parse(template).columns) - {MASK}


def _with_mask(source: str, mask_token: str) -> Template:
    template = Template.parse(source, ANSWERS)
    masks = sum(column == MASK for _, column in template.pieces)
    if masks != 1:
        raise InputError(
            f"template {quoted(source)} has {masks} places for the label's word; "
            "write {mask} once"
        )
    filled = template.filled(MASK, mask_token)
    if not filled.columns:
        raise InputError(
            f"template {quoted(source)} names no column; write it like {{text}} in braces"
        )
    return filled


def _word_token(tokenizer: Tokenizer, word: str) -> list[int]:
    """Returns the one token of a label's word, after a space as within a sentence."""
    tokens = tokenizer.encode_bare(f" {word}")
    if len(tokens) != 1:
        pieces = listed(tokenizer.decode([token]) for token in tokens)
        raise InputError(
            f"label word {quoted(word)} is {len(tokens)} tokens of this model ({pieces}), and the "
            "mask stands for one; choose another with --label-words"
        )
    if tokens == [tokenizer.unk_id]:
        raise InputError(
            f"label word {quoted(word)} is not in this model's vocabulary; "
            "choose another with --label-words"
        )
    return tokens
