"""Checks that a bundle's generation graph reads on as transformers does, and reads every weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from edgezo_export.model_shell import lend_weights
from edgezo_export.verify import RELATIVE_TOLERANCE, TOLERANCE, mapped_weights
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.devices import open_device
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.generation import GenerationSession

_STEPS = 4
_PADDED = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])  # a text and a shorter one


def verify_generation(folder: Path, model: PreTrainedModel) -> float:
    """Checks the bundle's `generate.onnx` against `model`, from whose weights it was made.

    Returns:
        The largest difference in logits.

    Raises:
        EdgezoError: it computes something else.
        InputError: it cannot be loaded, or has a weight that changes nothing.
    """
    session, weights = open_generation(open_bundle(folder))
    lend_weights(model, weights.arrays())
    difference = check_reading(session, model)
    check_reach(session, weights, model.config.vocab_size)
    return difference


@dataclass(frozen=True)
class MappedWeights:
    """A bundle's weights where they lie in their file: no copy of them is in memory."""

    bundle: Bundle

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns every parameter by name, read-only."""
        return self._arrays

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return mapped_weights(self.bundle)

    def settle(self) -> None:
        """Does nothing: they never change."""


def open_generation(bundle: Bundle) -> tuple[GenerationSession, MappedWeights]:
    """Maps the weights of `bundle` and opens its generation graph over them.

    Raises:
        InputError: it has none, or one that cannot be loaded.
    """
    if not bundle.generates:
        raise InputError(f"bundle {bundle.folder} has no generation graph: export it again")
    weights = MappedWeights(bundle)
    return GenerationSession(weights, open_device()), weights


def check_reading(session: GenerationSession, model: PreTrainedModel) -> float:
    """Reads prompts, padded or not, and goes on with the tokens that `model` would choose.

    Transformers reads each text anew, whole and without padding: no cache of its own is involved.

    Returns:
        The largest difference in logits.

    Raises:
        EdgezoError: the logits differ by more than the tolerance.
    """
    worst, allowed = 0.0, TOLERANCE
    for mask in (_PADDED, _PADDED[:1, :1]):
        tokens = _tokens(model.config.vocab_size, mask)
        texts = [row[kept == 1].tolist() for row, kept in zip(tokens, mask, strict=True)]
        cache = session.start(len(texts))
        logits = session.read(cache, tokens, mask)
        for _ in range(_STEPS):
            expected = np.stack([_next_logits(model, text) for text in texts])
            # `maximum` keeps a NaN, which `max` may lose.
            worst = float(np.maximum(worst, np.abs(logits - expected).max()))
            allowed = max(allowed, RELATIVE_TOLERANCE * float(np.abs(expected).max()) + TOLERANCE)
            chosen = expected.argmax(axis=1)
            for text, token in zip(texts, chosen, strict=True):
                text.append(int(token))
            logits = session.read(cache, chosen[:, None])
    if not worst <= allowed:
        raise EdgezoError(
            f"the generation graph of {type(model).__name__} differs from transformers by "
            f"{worst:.1e} in logits, more than {allowed:.1e}: edgezo cannot generate with this "
            "architecture"
        )
    return worst


def check_reach(session: GenerationSession, weights: MappedWeights, vocabulary: int) -> None:
    """Perturbs each parameter alone and checks that a logit moves, if only by a rounding.

    Raises:
        InputError: a parameter that moves nothing; the message names it.
    """
    tokens = _tokens(vocabulary, np.ones((2, 5), np.int64))

    def logits() -> np.ndarray:
        cache = session.start(len(tokens))
        first = session.read(cache, tokens[:, :4])
        return np.stack([first, session.read(cache, tokens[:, 4:])])

    before = logits()
    for name, array in weights.arrays().items():
        generator = np.random.Generator(np.random.Philox(1))
        # Not a shift by one constant, which a softmax or a layer norm may cancel.
        changed = array + generator.standard_normal(array.shape, np.float32).astype(array.dtype)
        session.bind(name, changed)
        moved = not np.array_equal(before, logits())
        session.bind(name, array)
        if not moved:
            raise InputError(
                f"changing parameter {name!r} does not change what the generation graph computes: "
                "edgezo cannot generate with a dead weight"
            )


def _tokens(vocabulary: int, mask: np.ndarray) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(2))
    return generator.integers(0, vocabulary, mask.shape) * mask


def _next_logits(model: PreTrainedModel, text: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([text]), use_cache=False).logits
    return logits[0, -1].float().numpy()
