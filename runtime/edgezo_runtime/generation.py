"""Reading a text token by token, over the weights that are tuned.

The session keeps nothing: a cache belongs to whoever reads, and is handed from run to run as ONNX
Runtime's own values, without a copy in Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.bundle import GENERATE, Bundle
from edgezo_runtime.devices import Binder, Device
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.safetensors_file import release
from edgezo_runtime.session import constant_values, fits, with_integers

_TEXT = ("input_ids", "attention_mask")
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class SharedWeights(Protocol):
    """What a `GenerationSession` needs of `edgezo_runtime.model.Weights`."""

    @property
    def bundle(self) -> Bundle:
        """Where they are described."""
        ...

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Returns every parameter by name; none is copied."""
        ...

    def settle(self) -> None:
        """Brings the weights up to date."""
        ...


@dataclass
class Cache:
    """What the model keeps of the tokens that it has read.

    Attributes:
        mask: 1 for tokens and 0 for padding, (rows, past) int64.
        values: each layer's key and value, OrtValues of (rows, kv_heads, past, head_dim).
    """

    mask: np.ndarray
    values: list[Any]


class GenerationSession:
    """Runs a bundle's generation graph over memory that somebody else changes.

    Args:
        weights: of the model that is tuned, whose bundle has the graph; they are aliased.
        device: where they lie.
        turn: held while a text is read; None: nobody else uses the weights.

    Raises:
        InputError: the graph cannot be loaded, or does not take these weights.
    """

    def __init__(
        self,
        weights: SharedWeights,
        device: Device,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        bundle = weights.bundle
        graph, arrays = bundle.folder / GENERATE, weights.arrays()
        constants = constant_values(bundle, arrays)
        bound = [p for p in bundle.manifest.parameters if p.name not in constants]
        try:
            self._session = device.open_session(with_integers(bundle, GENERATE), constants)
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load {graph}: {error}") from error
        for name in constants:  # the session has packed them for itself
            release(arrays[name])
        inputs = {node.name: node for node in self._session.get_inputs()}
        for parameter in bound:
            if not fits(parameter, inputs.get(parameter.name)):
                raise InputError(
                    f"{graph} does not take parameter {parameter.name!r} as the manifest "
                    "describes it: export the bundle again"
                )
        self._weights = weights
        self._turn = turn or contextlib.nullcontext()
        self._device = device
        self._dtypes = {p.name: dtypes.named(p.dtype) for p in bound}
        self._binders: dict[str, Binder] = {}
        for parameter in bound:
            self.bind(parameter.name, arrays[parameter.name])
        self._past = [n for name, n in inputs.items() if name not in arrays and name not in _TEXT]
        self._outputs = [node.name for node in self._session.get_outputs()]

    def bind(self, name: str, array: np.ndarray) -> None:
        """Gives the parameter `name` the memory of `array`."""
        self._binders[name] = self._device.binder(array, self._dtypes[name])

    def start(self, rows: int) -> Cache:
        """Returns the cache of `rows` texts of which nothing was read yet."""
        empty = onnxruntime().OrtValue.ortvalue_from_numpy
        values = [
            empty(np.zeros((rows, node.shape[1], 0, node.shape[3]), _DTYPES[node.type]))
            for node in self._past
        ]
        return Cache(np.zeros((rows, 0), np.int64), values)

    def read(self, cache: Cache, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Reads on with the present weights, and returns what may follow.

        Args:
            cache: what was read before; it takes the new tokens in.
            tokens: (rows, new) int64; shorter rows of a first read are padded on the left.
            mask: (rows, new) int64, 0 at padding; no padding if None.

        Returns:
            The logits after each row's last token, (rows, vocabulary) float32.

        Raises:
            EdgezoError: ONNX Runtime failed.
        """
        if mask is None:
            mask = np.ones_like(tokens)
        with self._turn:
            self._weights.settle()
            return self._run(cache, tokens, np.concatenate([cache.mask, mask], axis=1))

    def _run(self, cache: Cache, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Reads `tokens`; `mask` is of what was read before, too."""
        binding = self._session.io_binding()  # a fresh one: it would keep the last cache alive
        past = zip((node.name for node in self._past), cache.values, strict=True)
        try:
            for name, binder in self._binders.items():
                binder(binding, name)
            for name, value in past:
                binding.bind_ortvalue_input(name, value)
            for name, array in zip(_TEXT, (tokens, mask), strict=True):
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            first, *others = self._outputs
            binding.bind_output(first)
            for name in others:
                self._device.bind_output(binding, name)
            self._session.run_with_iobinding(binding)
            logits, *values = binding.get_outputs()
        except Exception as error:
            rows, length = mask.shape
            raise EdgezoError(
                f"ONNX Runtime failed to read {rows} x {length} tokens: {error}"
            ) from error
        cache.mask, cache.values = mask, values
        return logits.numpy()
