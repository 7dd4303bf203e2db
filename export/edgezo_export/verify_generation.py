"""Checks that a bundle's generation graph reads on as transformers does, and reads every weight."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from edgezo_export.model_shell import lend_weights
from edgezo_export.verify import RELATIVE_TOLERANCE, TOLERANCE, mapped_weights, one_thread, unmoved
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
    """Reads prompts, padded or not, and goes on token by token.

    Transformers reads each text once, whole and without padding: no cache of its own is involved.

    Returns:
        The largest difference in logits.

    Raises:
        EdgezoError: the logits differ by more than the tolerance.
    """
    worst, allowed = 0.0, TOLERANCE
    for mask in (_PADDED, _PADDED[:1, :1]):
        rows, vocabulary = len(mask), model.config.vocab_size
        tokens = _tokens(vocabulary, np.pad(mask, ((0, 0), (0, _STEPS)), constant_values=1))
        prompts, more = np.split(tokens, [mask.shape[1]], axis=1)
        cache = session.start(rows)
        ours = [session.read(cache, prompts, mask)]
        ours += [session.read(cache, more[:, step, None]) for step in range(_STEPS)]
        for row in range(rows):
            expected = _logits(model, [*prompts[row][mask[row] == 1], *more[row]])[-len(ours) :]
            # `maximum` keeps a NaN, which `max` may lose.
            difference = np.abs(np.stack([logits[row] for logits in ours]) - expected).max()
            worst = float(np.maximum(worst, difference))
            allowed = max(allowed, RELATIVE_TOLERANCE * float(np.abs(expected).max()) + TOLERANCE)
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
    begun = session.start(1)
    session.read(begun, tokens[:1, :4])

    def one_token() -> list[np.ndarray]:
        return [session.read(dataclasses.replace(begun), tokens[:1, 4:])]

    def texts() -> list[np.ndarray]:
        cache = session.start(len(tokens))
        return [session.read(cache, part) for part in np.split(tokens, [4], axis=1)]

    arrays = weights.arrays()
    dead = list(arrays)
    # ONNX Runtime multiplies with one token several times faster.
    for compute in (one_token, texts):
        dead = unmoved(dead, arrays, session.bind, compute)
    if dead:
        raise InputError(
            f"changing parameter {dead[0]!r} does not change what the generation graph computes: "
            "edgezo cannot generate with a dead weight"
        )


def _tokens(vocabulary: int, mask: np.ndarray) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(2))
    return generator.integers(0, vocabulary, mask.shape) * mask


def _logits(model: PreTrainedModel, text: list[int]) -> np.ndarray:
    """Returns the logits after each token of `text`, (length, vocabulary)."""
    with torch.no_grad(), one_thread():
        return model(torch.tensor([text]), use_cache=False).logits[0].float().numpy()
