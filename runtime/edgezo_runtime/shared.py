"""What a batch of options has in common, so that no token that leads to answers is read twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgezo_runtime.batch import BaseBatch, Batch, OptionLoss

# How many times more tokens must be read without sharing. On the CPU 3.0 made scoring 1.9 times as
# fast (OpenBookQA), 11 made it 12 times as fast (ReCoRD), and 1.3 gained nothing (COPA).
_LEAST_GAIN = 1.7
# What a pass costs beside its tokens, as a number of them: it goes through all weights. SmolLM2
# took 0.05 s of a core for one token, and 0.002 s for each further one.
_PASS = 24

#: A prompt's number, and tokens that follow it.
_Text = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """Texts of like length that go on from prompts, for one pass.

    Attributes:
        rows: which prompt each text goes on from, (texts,) int64.
        tokens: padded on the right, (texts, new) int64.
        mask: 0 at padding, (texts, new) int64.
        positions: where answers are predicted, ``text * new + t``, (places,) int64.
    """

    rows: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Shared:
    """A batch of options, cut where each row's options begin to differ.

    Attributes:
        prompts: tokens that all options of a row begin with, padded on the left, (rows, past).
        prompt_mask: 0 at padding, (rows, past) int64.
        readings: what is read after them; of options that begin alike, that is read once.
        places: where each answer is predicted, (answers,) int64: the end of prompt i is i, and the
            positions of the readings follow, in their order.
        targets: the token that should follow each place, (answers,) int64.
    """

    prompts: np.ndarray
    prompt_mask: np.ndarray
    readings: tuple[Reading, ...]
    places: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, batch: BaseBatch, gain: float = _LEAST_GAIN) -> Shared | None:
        """Returns what `batch` shares; None unless sharing divides the tokens read by `gain`."""
        if not isinstance(batch, Batch) or not isinstance(batch.objective, OptionLoss):
            return None
        if batch.decoder_input_ids is not None:
            return None
        ids, count = batch.input_ids, batch.objective.choices
        if count.sum() != len(ids):  # options that stand in one sequence
            return None
        length = ids.shape[1]
        option, place = np.divmod(batch.positions, length)
        first = np.full(len(ids), length - 1)
        np.minimum.at(first, option, place)
        ends = np.concatenate([[0], np.cumsum(count)])
        past = np.array([_common(ids, first, a, b) for a, b in itertools.pairwise(ends)])
        if not past.all():
            return None
        rows = np.repeat(np.arange(len(count)), count).tolist()
        asked = [
            (rows[o], *ids[o, past[rows[o]] : t + 1].tolist())
            for o, t in zip(option, place, strict=True)
        ]
        readings, texts = _readings(asked)
        tokens = sum(reading.tokens.size for reading in readings)
        if ids.size < gain * (len(past) * past.max() + tokens):
            return None
        prompts = [ids[start, :size] for start, size in zip(ends, past, strict=False)]
        ends_of_prompts = ((row,) for row in range(len(past)))
        number = {text: i for i, text in enumerate((*ends_of_prompts, *texts))}
        return cls(
            *_padded(prompts, int(past.max()), left=True),
            readings,
            np.array([number[text] for text in asked]),
            batch.targets,
        )


def _common(ids: np.ndarray, first: np.ndarray, start: int, end: int) -> int:
    """Returns how many tokens the sequences share, up to where the first answer is predicted."""
    shared = (ids[start:end] == ids[start]).all(axis=0)
    differing = np.flatnonzero(~shared)
    return int(min([first[start:end].min() + 1, *differing[:1]]))


def _readings(asked: Iterable[_Text]) -> tuple[tuple[Reading, ...], list[_Text]]:
    """Returns what to read so that the ends of all texts are seen, and whose ends are, in order."""
    wanted: list[_Text] = sorted({text for text in asked if len(text) > 1})
    # A text that others begin with is read with them, and then the next in order is one of them.
    pairs = itertools.zip_longest(wanted, wanted[1:], fillvalue=())
    whole = sorted((text for text, after in pairs if after[: len(text)] != text), key=len)
    unseen: set[_Text] = set(wanted)
    readings, texts = [], []
    for group in _groups(whole):
        new = len(group[-1]) - 1
        positions = []
        for index, text in enumerate(group):
            for size in range(1, len(text)):
                begun = text[: size + 1]
                if begun in unseen:
                    unseen.remove(begun)
                    texts.append(begun)
                    positions.append(index * new + size - 1)
        rows = np.array([text[0] for text in group])
        ids, mask = _padded([np.array(text[1:]) for text in group], new, left=False)
        readings.append(Reading(rows, ids, mask, np.array(positions)))
    return tuple(readings), texts


def _groups(texts: Sequence[_Text]) -> Iterator[Sequence[_Text]]:
    """Cuts texts in the order of their lengths so that padding and passes together cost least."""
    sizes = [len(text) - 1 for text in texts]
    ends = [i for i, (a, b) in enumerate(itertools.pairwise((*sizes, 0)), 1) if a != b]
    best = {0: (0, 0)}  # by the end of what is cut: the cost, and where its last group begins
    for end in ends:
        best[end] = min(
            (cost + (end - start) * sizes[end - 1] + _PASS, start)
            for start, (cost, _) in best.items()
        )
    end = len(texts)
    while end:
        start = best[end][1]
        yield texts[start:end]
        end = start


def _padded(
    sequences: Sequence[np.ndarray], length: int, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(sequences), length), np.int64)
    mask = np.zeros_like(ids)
    for index, tokens in enumerate(sequences):
        place = slice(length - len(tokens), None) if left else slice(len(tokens))
        ids[index, place] = tokens
        mask[index, place] = 1
    return ids, mask
