"""Checks that a bundle's generation graph reads on as transformers does, and reads every weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from transformers import PreTrainedModel

from edgezo_export.model_shell import lend_weights
from edgezo_export.mutations import dead_weights
from edgezo_export.verify import RELATIVE_TOLERANCE, TOLERANCE, mapped_weights, one_thread
from edgezo_runtime.bundle import GENERATE, Bundle, open_bundle
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
    bundle = open_bundle(folder)
    session, weights = open_generation(bundle)
    lend_weights(model, weights.arrays())
    difference = check_reading(session, model)
    check_reach(bundle.read_graph(GENERATE), weights.arrays(), model.config.vocab_size)
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


def check_reach(graph: bytes, weights: Mapping[str, np.ndarray], vocabulary: int) -> None:
    """Perturbs each parameter alone and checks that a logit moves, if only by a rounding.

    Args:
        graph: the bytes of a generation graph.
        weights: every parameter by name.
        vocabulary: number of tokens.

    Raises:
        InputError: a parameter that moves nothing; the message names it.
    """
    mask = np.ones((2, 5), np.int64)
    feeds = {"input_ids": _tokens(vocabulary, mask), "attention_mask": mask}
    for value in onnx.load_from_string(graph).graph.input:
        if value.name.startswith("past_key_values."):
            _, heads, _, size = (d.dim_value for d in value.type.tensor_type.shape.dim)
            feeds[value.name] = np.zeros((2, heads, 0, size), np.float32)
    dead = dead_weights(graph, weights, feeds, ["logits"])
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
