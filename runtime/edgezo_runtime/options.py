"""Options that share a prompt: it is read once, and each option goes on from its cache.

A bundle's generation graph reads the prompts; the same graph, edited, reads the options.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.batch import BaseBatch, Batch, OptionLoss, Outputs
from edgezo_runtime.bundle import GENERATE, QUANTIZED
from edgezo_runtime.devices import Device
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.generation import Cache, GenerationSession, SharedWeights
from edgezo_runtime.option_graph import LOGITS, POSITIONS, PROMPTS, ROWS, option_graph

# How many times more tokens must be read without sharing. On the CPU 2.2 made scoring 1.6 times as
# fast (OpenBookQA), 10 made it 10 times as fast (ReCoRD), and 1.1 gained nothing (COPA).
_LEAST_GAIN = 1.7
_READS_ALIKE = (None, "lora")  # adapters that put nothing in front of the text


@dataclass(frozen=True)
class Shared:
    """A batch of options, cut where each row's options begin to differ.

    Attributes:
        prompts: tokens that all options of a row begin with, padded on the left, (rows, past).
        prompt_mask: 0 at padding, (rows, past) int64.
        rows: which prompt each option goes on from, (options,) int64.
        tokens: the rest of each option, padded on the right, (options, new) int64.
        mask: 0 at padding, (options, new) int64.
        positions: where the answers are predicted, ``option * new + t``, (answers,) int64.
        targets: the token that should follow each position, (answers,) int64.
    """

    prompts: np.ndarray
    prompt_mask: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
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
        first = np.full(len(ids), length)
        np.minimum.at(first, option, place)
        ends = np.concatenate([[0], np.cumsum(count)])
        past = np.array([_common(ids, first, a, b) for a, b in itertools.pairwise(ends)])
        rows = np.repeat(np.arange(len(count)), count)
        rest = batch.attention_mask.sum(axis=1) - past[rows]
        new = int(rest.max())
        if not past.all() or ids.size < gain * (len(past) * past.max() + len(ids) * new):
            return None
        prompts = [ids[start, :size] for start, size in zip(ends, past, strict=False)]
        options = [ids[i, past[row] : past[row] + rest[i]] for i, row in enumerate(rows)]
        return cls(
            *_padded(prompts, int(past.max()), left=True),
            rows,
            *_padded(options, new, left=False),
            option * new + place - past[rows[option]],
            batch.targets,
        )


class OptionSession:
    """Reads options after their prompts, over memory that somebody else changes.

    Args:
        weights: of the model; they are aliased.
        device: where they lie.
        prompts: reads the prompts.
        graph: of `option_graph`.
    """

    def __init__(
        self, weights: SharedWeights, device: Device, prompts: GenerationSession, graph: bytes
    ) -> None:
        arrays = weights.arrays()
        self._weights, self._prompts = weights, prompts
        self._session = device.open_session(graph)
        self._binders = {
            p.name: device.binder(arrays[p.name], dtypes.named(p.dtype))
            for p in weights.bundle.manifest.parameters
        }
        self._past = [n.name for n in self._session.get_inputs() if n.name.startswith(PROMPTS)]

    @classmethod
    def over(
        cls, weights: SharedWeights, device: Device, prompts: GenerationSession | None
    ) -> OptionSession | None:
        """Returns the session of a bundle that can have one.

        Returns:
            None where there is no generation graph, or one that cannot be edited; where an adapter
            stands in front of the text; or where integers would be packed once more.
        """
        manifest = weights.bundle.manifest
        quantized = any(p.kind == QUANTIZED for p in manifest.parameters)
        if prompts is None or quantized or manifest.adapter.get("kind") not in _READS_ALIKE:
            return None
        try:
            graph = option_graph(weights.bundle.read_graph(GENERATE))
        except ValueError:
            return None
        return cls(weights, device, prompts, graph)

    def score(self, shared: Shared) -> Outputs:
        """Returns the log-probability of each target, as the inference graph's ``logprobs``.

        Raises:
            EdgezoError: ONNX Runtime failed.
        """
        cache = self._prompts.start(len(shared.prompts))
        self._prompts.read(cache, shared.prompts, shared.prompt_mask)
        feeds = {
            "input_ids": shared.tokens,
            "attention_mask": np.concatenate([cache.mask[shared.rows], shared.mask], axis=1),
            ROWS: shared.rows,
            POSITIONS: shared.positions,
        }
        logits = self._run(cache, feeds)
        highest = logits.max(axis=1)
        logits -= highest[:, None]
        chosen = logits[np.arange(len(logits)), shared.targets]
        return {"logprobs": chosen - np.log(np.exp(logits, out=logits).sum(axis=1))}

    def _run(self, cache: Cache, feeds: dict[str, np.ndarray]) -> np.ndarray:
        self._weights.settle()
        binding = self._session.io_binding()
        try:
            for name, binder in self._binders.items():
                binder(binding, name)
            for name, value in zip(self._past, cache.values, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name, array in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            binding.bind_output(LOGITS)
            self._session.run_with_iobinding(binding)
            return binding.get_outputs()[0].numpy().astype(np.float32)
        except Exception as error:
            options, length = feeds["attention_mask"].shape
            raise EdgezoError(
                f"ONNX Runtime failed to read {options} options of {length} tokens: {error}"
            ) from error


def _common(ids: np.ndarray, first: np.ndarray, start: int, end: int) -> int:
    """Returns how many tokens the sequences share before any of their answers' positions."""
    shared = (ids[start:end] == ids[start]).all(axis=0)
    differing = np.flatnonzero(~shared)
    return int(min([first[start:end].min(), *differing[:1]]))


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
