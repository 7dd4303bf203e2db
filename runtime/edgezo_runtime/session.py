"""One ONNX Runtime session over weights that stay where they are.

Every parameter is a graph input bound once, as an OrtValue over memory that somebody else owns and
changes: this is the one way in which ONNX Runtime sees each change of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.batch import Batch, Outputs
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.split import split

OUTPUTS = ("logprobs", "candidate_logits")
_QUESTIONS = ("positions", "targets", "candidates")  # inputs that are not text
_ORT_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


class Session:
    """Runs a bundle's text graph on the CPU.

    What depends on frozen weights alone is computed once for a batch, however often it is run.

    Args:
        bundle: its graph and its manifest, which must agree.
        weights: every parameter by name: C-contiguous arrays in storage dtype. They are aliased.
        trained: names of the weights that change; the others stay as they are.
        threads: ONNX Runtime's intra-op threads.

    Raises:
        InputError: the manifest disagrees with the graph, or the graph cannot be loaded.
    """

    def __init__(
        self, bundle: Bundle, weights: Mapping[str, np.ndarray], trained: Set[str], threads: int
    ) -> None:
        model = bundle.graph.read_bytes()
        try:
            parts = split(model, {*trained, *_QUESTIONS}, weights.keys() - trained)
            self._boundary = parts.boundary if parts else ()
            self._prefix = _Part(parts.prefix, threads) if parts else None
            self._suffix = _Part(parts.suffix if parts else model, threads)
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load {bundle.graph}: {error}") from error
        self._check(bundle)
        for parameter in bundle.manifest.parameters:
            value = alias(weights[parameter.name], dtypes.named(parameter.dtype))
            for part in self._parts:
                part.keep(parameter.name, value)
        self._text: tuple[np.ndarray, np.ndarray] | None = None  # what the boundary holds

    @property
    def _parts(self) -> list[_Part]:
        return [self._prefix, self._suffix] if self._prefix else [self._suffix]

    def forward(self, batch: Batch) -> Outputs:
        """Runs one forward pass; raises EdgezoError if ONNX Runtime does."""
        feeds = batch.feeds()
        try:
            if self._prefix and not self._holds(batch):
                self._text = None
                values = self._prefix.run(feeds, self._boundary)
                for name, value in zip(self._boundary, values, strict=True):
                    self._suffix.keep(name, value)
                self._text = batch.input_ids.copy(), batch.attention_mask.copy()
            outputs = self._suffix.run(feeds, OUTPUTS)
        except Exception as error:
            rows, length = batch.input_ids.shape
            raise EdgezoError(
                f"ONNX Runtime failed on a batch of {rows} x {length} tokens: {error}"
            ) from error
        return Outputs(*(value.numpy() for value in outputs))

    def _holds(self, batch: Batch) -> bool:
        """Whether the prefix has run on the text of `batch`."""
        text = (batch.input_ids, batch.attention_mask)
        return self._text is not None and all(map(np.array_equal, self._text, text))

    def _check(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        declared: dict[str, tuple[Any, ...]] = {
            p.name: (_ORT_TYPES.get(p.dtype, p.dtype), *p.shape) for p in manifest.parameters
        }
        ports = {port.name for port in manifest.inputs}
        missing = {*declared, *ports}
        for part in self._parts:
            for name, node in part.inputs.items():
                missing.discard(name)
                found = (node.type.removeprefix("tensor(").removesuffix(")"), *node.shape)
                if name in ports or name in self._boundary or declared.get(name) == found:
                    continue
                raise InputError(
                    f"the manifest of {bundle.folder} disagrees with its graph at input "
                    f"{name!r}, which is {found[0]} {list(found[1:])}: export it again"
                )
        missing |= {name for name in OUTPUTS if name not in self._suffix.outputs}
        if missing:
            raise InputError(
                f"the graph of {bundle.folder} lacks {min(missing)!r}, which its manifest names"
            )


class _Part:
    """One ONNX Runtime session and what is bound to it."""

    def __init__(self, model: bytes, threads: int) -> None:
        self._session = open_session(model, threads)
        self._binding = self._session.io_binding()
        self._values: dict[str, Any] = {}  # the binding does not keep them alive
        self.inputs = {node.name: node for node in self._session.get_inputs()}
        self.outputs = {node.name for node in self._session.get_outputs()}

    def keep(self, name: str, value: Any) -> None:
        """Binds an OrtValue to the input `name`, if there is one, for all runs to come."""
        if name in self.inputs:
            self._values[name] = value
            self._binding.bind_ortvalue_input(name, value)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[Any]:
        """Runs on `feeds`, of which it takes what it has inputs for; returns OrtValues."""
        for name, array in feeds.items():
            if name in self.inputs:
                self._binding.bind_cpu_input(name, array)
        for name in outputs:  # again for each run: a bound output keeps the last batch's shape
            self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding)
        return self._binding.get_outputs()


def open_session(model: bytes, threads: int) -> Any:
    """Returns the InferenceSession of the ONNX file `model`."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle workers would spin on the cores that the sweep needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def alias(array: np.ndarray, dtype: dtypes.Dtype) -> Any:
    """Returns an OrtValue over the memory of `array`; ONNX Runtime would copy a strided one."""
    value_type = onnxruntime().OrtValue
    if dtype == dtypes.BFLOAT16:
        value = value_type.ortvalue_from_numpy_with_onnx_type(array, dtype.onnx)
    else:
        value = value_type.ortvalue_from_numpy(array)
    if value.data_ptr() != array.__array_interface__["data"][0]:
        raise EdgezoError("ONNX Runtime copied a weight that it should share")
    return value
