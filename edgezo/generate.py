"""Text generation: greedy, or sampled at a temperature."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model
from edgezo_runtime.noise import Purpose, random_words


def generate(
    model: Model, prompt: str, max_tokens: int = 64, temperature: float = 0.0, seed: int = 0
) -> str:
    """Returns the text that `model` continues `prompt` with; see `stream`."""
    return "".join(stream(model, prompt, max_tokens, temperature, seed))


def stream(
    model: Model, prompt: str, max_tokens: int = 64, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    r"""Yields the continuation of `prompt` piece by piece, until the model ends it.

    Each token is drawn from :math:`softmax(logits / temperature)`; the most likely one is taken at
    temperature 0. Every token reads the whole text again: there is no cache yet.

    Args:
        model: its present weights are used.
        prompt: what to continue, as it is; see `Tokenizer.apply_chat_template` for chats.
        max_tokens: stop after this many.
        temperature: 0 or above.
        seed: names the draws.

    Raises:
        InputError: an empty prompt, one longer than the model's context, or a bad temperature.
    """
    if not (np.isfinite(temperature) and temperature >= 0):
        raise InputError(f"temperature is {temperature}; use 0 or a number above it")
    tokens = model.tokenizer.encode(prompt)
    if not tokens:
        raise InputError("the prompt is empty; give the model something to continue")
    if len(tokens) >= model.context_length:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, the model takes {model.context_length}: cut it"
        )
    start, shown = len(tokens), ""
    while len(tokens) < min(start + max_tokens, model.context_length):
        logits = _next_logits(model, tokens)
        token = _choose(logits, temperature, seed, len(tokens))
        if token in model.tokenizer.stop_ids:
            break
        tokens.append(token)
        text = model.tokenizer.decode(tokens[start:])
        if not text.endswith("�"):  # a character may take several tokens
            yield text[len(shown) :]
            shown = text


def _next_logits(model: Model, tokens: list[int]) -> np.ndarray:
    """Returns the logits of the whole vocabulary after `tokens`, (vocabulary,) float32."""
    input_ids = np.array([tokens], np.int64)
    batch = Batch(
        input_ids,
        np.ones_like(input_ids),
        np.array([len(tokens) - 1], np.int64),
        np.zeros(1, np.int64),
        np.arange(model.tokenizer.size, dtype=np.int64),
        TokenLoss(1),
    )
    return model.forward(batch)["candidate_logits"][0]


def _choose(logits: np.ndarray, temperature: float, seed: int, position: int) -> int:
    if temperature == 0:
        return int(logits.argmax())
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        weights = np.exp((wide - wide.max()) / temperature)
    edges = np.cumsum(weights / weights.sum())
    draw = int(random_words(seed, Purpose.SAMPLING, position, 1)[0][0]) / 2**32
    return min(int(np.searchsorted(edges, draw, side="right")), len(edges) - 1)
