"""Labels and the words that a model says for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgezo.data.rows import Rows, label_value, listed, quoted, text_value
from edgezo_runtime.errors import InputError

GivenWords = str | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True)
class Labels:
    """The labels of a task, in order, and each one's word; labels are compared as text.

    Raises:
        InputError: there are fewer than two, or two are equal, or a word is empty.
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise InputError(
                f"there is only one label, {listed(self.labels) or 'none'}; "
                "classification needs rows of at least two labels"
            )
        for what, names in (("label", self.labels), ("label word", self.words)):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(
                    f"{what} {quoted(twice)} occurs twice; give each label a word of its own"
                )
        if not all(word.strip() for word in self.words):
            raise InputError("a label word is empty; give each label a word")

    def index(self, label: str, place: str) -> int:
        """Returns the place of `label` in the order; raises InputError if it is none of them."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise InputError(
                f"{place}: label {quoted(label)} is none of the labels {listed(self.labels)}; "
                "correct the row or add the label to the label words"
            ) from None


def parse_label_words(text: str) -> list[str] | dict[str, str]:
    """Parses ``"a,b"`` into a list and ``"0=a,1=b"`` into a mapping.

    Raises:
        InputError: some parts have ``=`` and others do not, or a label comes twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        return parts
    if not all("=" in part for part in parts):
        raise InputError(
            f"label words {quoted(text)} mix words and label=word; write a,b or 0=a,1=b"
        )
    pairs = [(label.strip(), word.strip()) for label, _, word in (p.partition("=") for p in parts)]
    if len({label for label, _ in pairs}) < len(pairs):
        raise InputError(f"label words {quoted(text)} name a label twice; name each label once")
    return dict(pairs)


def labels_for(rows: Rows, given: GivenWords | None, default: Labels | None = None) -> Labels:
    """Returns the labels of `rows` and their words.

    The words are those given, else each row's ``label_text``, else those of `default` if it has
    all the labels, else the labels themselves. A mapping goes from label to word. A list names
    labels 0, 1, ... in order where labels are whole numbers, and the labels themselves otherwise.

    Raises:
        InputError: the rows' labels cannot be matched to the words, or a row contradicts another.
    """
    seen = [label_value(row, rows.place(index)) for index, row in enumerate(rows)]
    if isinstance(given, str):
        given = parse_label_words(given)
    if given is not None and len(given) < 2 <= len(set(seen)):
        words = given.values() if isinstance(given, Mapping) else given
        raise InputError(
            f"label words {listed(words)} are for one label, and the rows have "
            f"{listed(_sorted(set(seen)))}; give each label a word"
        )
    if isinstance(given, Mapping):
        pairs = {str(label): str(word) for label, word in given.items()}
        return Labels(tuple(pairs), tuple(pairs.values()))
    labels = _sorted(set(seen))
    if given is not None:
        return _numbered(labels, [str(word) for word in given])
    texts = _label_texts(rows, seen)
    if not texts and default is not None and set(labels) <= set(default.labels):
        return default
    return Labels(tuple(labels), tuple(texts.get(label, label) for label in labels))


def check_distinct(word_tokens: Sequence[np.ndarray], labels: Labels) -> None:
    """Raises InputError if a word of `labels` has no tokens, or two have the same."""
    seen: dict[bytes, str] = {}
    for tokens, word in zip(word_tokens, labels.words, strict=True):
        if not len(tokens):
            raise InputError(f"label word {quoted(word)} has no tokens; choose another word")
        other = seen.setdefault(tokens.tobytes(), word)
        if other != word:
            raise InputError(
                f"label words {quoted(other)} and {quoted(word)} have the same tokens; "
                "choose words that the model can tell apart"
            )


def _sorted(labels: set[str]) -> list[str]:
    return sorted(labels, key=int) if all(map(_is_number, labels)) else sorted(labels)


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal() and label.isascii()


def _numbered(labels: list[str], words: list[str]) -> Labels:
    """Matches the rows' labels to a list of words."""
    if set(labels) & set(words):
        return Labels(tuple(words), tuple(words))
    if not all(map(_is_number, labels)):
        raise InputError(
            f"label words {listed(words)} do not say which label each belongs to (the labels are "
            f"{listed(labels)}); write them as label=word"
        )
    numbers = [str(number) for number in range(len(words))]
    if len(labels) == len(words) and not set(labels) <= set(numbers):
        numbers = labels
    return Labels(tuple(numbers), tuple(words))


def _label_texts(rows: Rows, seen: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for index, (row, label) in enumerate(zip(rows, seen, strict=True)):
        if "label_text" not in row:
            continue
        text = text_value(row, "label_text", rows.place(index))
        if texts.setdefault(label, text) != text:
            raise InputError(
                f"{rows.place(index)}: label {quoted(label)} has label_text {quoted(text)}, but "
                f"{quoted(texts[label])} in a row before; use one word for a label"
            )
    return texts
