"""Text generation: greedy, or sampled at a temperature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.generation import Cache, GenerationSession
from edgezo_runtime.model import Model
from edgezo_runtime.noise import Purpose, random_words


def generate(
    model: Model,
    prompt: str,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
) -> str:
    """Returns the text that `model` continues `prompt` with; see `stream`."""
    return "".join(stream(model, prompt, max_tokens, temperature, seed, top_p))


def generate_batch(
    model: Model,
    prompts: Sequence[str],
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
) -> list[str]:
    """Returns the continuation of each of `prompts`, read together; see `stream`.

    Each is what `generate` returns for it, but for the rounding of the logits.
    """
    if not prompts:
        return []
    sampling = _Sampling(temperature, seed, top_p)
    texts = [_encode(model, prompt) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in texts]
    for chosen in _choices(model, texts, max_tokens, sampling):
        for answer, token in zip(answers, chosen, strict=True):
            answer += () if token is None else (token,)
    return [_whole(model.tokenizer.decode(answer)) for answer in answers]


def stream(
    model: Model,
    prompt: str,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
) -> Iterator[str]:
    r"""Yields the continuation of `prompt` piece by piece, until the model ends it.

    Each token is drawn from :math:`softmax(logits / temperature)`, cut to its nucleus: the fewest
    most likely tokens whose probabilities add up to `top_p` (Holtzman et al. 2020,
    arXiv:1904.09751). The most likely one is taken at temperature 0. A bundle with a generation
    graph reads each token once; else every token reads the whole text again.

    Args:
        model: its present weights are used.
        prompt: what to continue, as it is; see `Tokenizer.apply_chat_template` for chats.
        max_tokens: stop after this many.
        temperature: 0 or above.
        seed: names the draws.
        top_p: above 0, and 1 at most.

    Raises:
        InputError: an empty prompt, one longer than the model's context, or a bad temperature or
            nucleus.
    """
    sampling = _Sampling(temperature, seed, top_p)
    answer: list[int] = []
    shown = ""
    for (token,) in _choices(model, [_encode(model, prompt)], max_tokens, sampling):
        assert token is not None  # the one text goes on
        answer.append(token)
        text = _whole(model.tokenizer.decode(answer))
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text


@dataclass(frozen=True)
class _Sampling:
    """How a token is chosen."""

    temperature: float
    seed: int
    top_p: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}; use 0 or a number above it")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; use a number above 0, and 1 at most")

    def choose(self, logits: np.ndarray, position: int) -> int:
        """Returns the token at `position` of a text, of `logits` (vocabulary,)."""
        if self.temperature == 0:
            return int(logits.argmax())
        wide = logits.astype(np.float64)
        with np.errstate(over="ignore"):
            weights = np.exp((wide - wide.max()) / self.temperature)
        weights /= weights.sum()
        if self.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= self.top_p]] = 0
        edges = np.cumsum(weights / weights.sum())
        draw = int(random_words(self.seed, Purpose.SAMPLING, position, 1)[0][0]) / 2**32
        return min(int(np.searchsorted(edges, draw, side="right")), len(edges) - 1)


def _encode(model: Model, prompt: str) -> list[int]:
    tokens = model.tokenizer.encode(prompt)
    if not tokens:
        raise InputError("the prompt is empty; give the model something to continue")
    if len(tokens) >= model.context_length:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, the model takes {model.context_length}: cut it"
        )
    return tokens


def _choices(
    model: Model, texts: Sequence[list[int]], max_tokens: int, sampling: _Sampling
) -> Iterator[list[int | None]]:
    """Yields the next token of each text, None where one is finished, until all are."""
    session, padding = model.generation, model.tokenizer.pad_id
    read = _Rereader(model) if session is None else _CachedReader(session, padding)
    ends = [min(len(text) + max_tokens, model.context_length) for text in texts]
    lengths = [len(text) for text in texts]
    goes_on = [length < end for length, end in zip(lengths, ends, strict=True)]
    new = list(texts)
    while any(goes_on):
        logits = read(new)[:, : model.tokenizer.size]
        chosen: list[int | None] = [None] * len(texts)
        for row in np.flatnonzero(goes_on):
            token = sampling.choose(logits[row], lengths[row])
            if token in model.tokenizer.stop_ids:
                goes_on[row] = False
                continue
            chosen[row] = token
            lengths[row] += 1
            goes_on[row] = lengths[row] < ends[row]
        if any(token is not None for token in chosen):
            yield chosen
        new = [[] if token is None else [token] for token in chosen]


class _CachedReader:
    """Reads each token once."""

    def __init__(self, session: GenerationSession, padding: int) -> None:
        self._session = session
        self._padding = padding
        self._cache: Cache | None = None

    def __call__(self, new: Sequence[list[int]]) -> np.ndarray:
        """Returns what may follow each text, (texts, vocabulary), after its new tokens, if any."""
        if self._cache is None:
            self._cache = self._session.start(len(new))
        tokens = np.full((len(new), max(map(len, new))), self._padding, np.int64)
        mask = np.zeros_like(tokens)
        for row, text in enumerate(new):
            start = tokens.shape[1] - len(text)  # padded on the left: the last token is wanted
            tokens[row, start:], mask[row, start:] = text, 1
        return self._session.read(self._cache, tokens, mask)


class _Rereader:
    """Reads the whole texts again for each token."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._texts: list[list[int]] = []

    def __call__(self, new: Sequence[list[int]]) -> np.ndarray:
        """Returns what may follow each text, (texts, vocabulary), after its new tokens, if any."""
        self._texts = self._texts or [[] for _ in new]
        for text, tokens in zip(self._texts, new, strict=True):
            text += tokens
        lengths = np.array([len(text) for text in self._texts])
        longest = lengths.max()
        input_ids = np.full((len(new), longest), self._model.tokenizer.pad_id, np.int64)
        for row, text in zip(input_ids, self._texts, strict=True):
            row[: len(text)] = text
        batch = Batch(
            input_ids,
            (np.arange(longest) < lengths[:, None]).astype(np.int64),
            np.arange(len(new)) * longest + lengths - 1,
            np.zeros(len(new), np.int64),
            np.arange(self._model.tokenizer.size, dtype=np.int64),
            TokenLoss(len(new)),
        )
        return self._model.forward(batch).candidate_logits


def _whole(text: str) -> str:
    """Returns `text` without the character at its end of which tokens are still to come."""
    return text.rstrip("\ufffd")
