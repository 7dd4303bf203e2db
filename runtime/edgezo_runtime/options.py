"""Options that share a prompt: it is read once, and each option goes on from its cache.

A bundle's generation graph reads the prompts; the same graph, edited, reads the options.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.batch import Outputs
from edgezo_runtime.bundle import GENERATE, QUANTIZED
from edgezo_runtime.devices import Device
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.generation import Cache, GenerationSession, SharedWeights
from edgezo_runtime.option_graph import LOGITS, POSITIONS, PROMPTS, ROWS, option_graph
from edgezo_runtime.shared import Shared

_READS_ALIKE = (None, "lora")  # adapters that put nothing in front of the text


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
        found = np.empty(len(shared.targets), np.float32)
        first = 0
        for logits in self._read(shared):
            (own,) = np.nonzero((shared.places >= first) & (shared.places < first + len(logits)))
            found[own] = _logprobs(logits, shared.places[own] - first, shared.targets[own])
            first += len(logits)
        return {"logprobs": found}

    def _read(self, shared: Shared) -> Iterator[np.ndarray]:
        """Yields the logits of the places of `shared`, (places, vocabulary), some at a time."""
        cache = self._prompts.start(len(shared.prompts))
        yield self._prompts.read(cache, shared.prompts, shared.prompt_mask)
        for reading in shared.readings:
            mask = np.concatenate([cache.mask[reading.rows], reading.mask], axis=1)
            feeds = {"input_ids": reading.tokens, "attention_mask": mask}
            yield self._run(cache, feeds | {ROWS: reading.rows, POSITIONS: reading.positions})

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


def _logprobs(logits: np.ndarray, places: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the log-probability of each target after its place."""
    logits = logits - logits.max(axis=1, keepdims=True)
    chosen = logits[places, targets]
    return chosen - np.log(np.exp(logits, out=logits).sum(axis=1))[places]
