"""One ONNX Runtime session over weights that stay where they are.

Every parameter is a graph input bound once, as an OrtValue over memory that somebody else owns and
changes: this is the one way in which ONNX Runtime sees each change of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, wire
from edgezo_runtime.batch import BaseBatch, Outputs
from edgezo_runtime.bundle import QUANTIZED, WEIGHTS, Bundle, Parameter
from edgezo_runtime.constants import with_constants
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.safetensors_file import TensorEntry, release
from edgezo_runtime.split import split

_QUESTIONS = ("positions", "targets", "candidates")  # inputs that only the end of a graph reads
_ORT_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


class Session:
    """Runs a bundle's graph on the CPU.

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
        parameters = bundle.manifest.parameters
        fixed = [p for p in parameters if p.kind == QUANTIZED and p.name not in trained]
        constants = {p.name: alias(weights[p.name], dtypes.named(p.dtype)) for p in fixed}
        try:
            model = with_constants(bundle.read_graph(), [_entry(p) for p in fixed], WEIGHTS)
            parts = split(model, {*trained, *_QUESTIONS}, weights.keys() - trained)
            self._boundary = parts.boundary if parts else ()
            self._prefix = _Part(parts.prefix, constants, threads) if parts else None
            self._suffix = _Part(parts.suffix if parts else model, constants, threads)
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load {bundle.graph}: {error}") from error
        for name in constants:  # each session has packed them for itself
            release(weights[name])
        self._outputs = [port.name for port in bundle.manifest.outputs]
        self._check(bundle, constants.keys())
        for parameter in parameters:
            if parameter.name in constants:
                continue
            value = alias(weights[parameter.name], dtypes.named(parameter.dtype))
            for part in self._parts:
                part.keep(parameter.name, value)
        self._held: dict[str, np.ndarray] | None = None  # the inputs that the boundary is of

    @property
    def _parts(self) -> list[_Part]:
        return [self._prefix, self._suffix] if self._prefix else [self._suffix]

    def forward(self, batch: BaseBatch) -> Outputs:
        """Runs one forward pass and returns the graph's outputs by name.

        Raises:
            EdgezoError: ONNX Runtime failed.
        """
        feeds = batch.feeds()
        try:
            if self._prefix:
                self._hold(self._prefix, feeds)
            outputs = self._suffix.run(feeds, self._outputs)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise EdgezoError(f"ONNX Runtime failed on a batch of {shapes}: {error}") from error
        return {name: v.numpy() for name, v in zip(self._outputs, outputs, strict=True)}

    def _hold(self, prefix: _Part, feeds: Mapping[str, np.ndarray]) -> None:
        """Makes the boundary that of `feeds`, unless the prefix ran on equal inputs last."""
        own = {name: array for name, array in feeds.items() if name in prefix.inputs}
        if self._held is not None and all(_same(array, self._held[n]) for n, array in own.items()):
            return
        self._held = None
        values = prefix.run(own, self._boundary)
        for name, value in zip(self._boundary, values, strict=True):
            self._suffix.keep(name, value)
        self._held = {name: array.copy() for name, array in own.items()}

    def _check(self, bundle: Bundle, constants: Set[str]) -> None:
        manifest = bundle.manifest
        declared: dict[str, tuple[Any, ...]] = {
            p.name: (_ORT_TYPES.get(p.dtype, p.dtype), *p.shape)
            for p in manifest.parameters
            if p.name not in constants
        }
        ports = {port.name for port in manifest.inputs}
        missing = {*declared, *ports}
        for part in self._parts:
            for name, node in part.inputs.items():
                missing.discard(name)
                found = (node.type.removeprefix("tensor(").removesuffix(")"), *node.shape)
                if name in ports or name in self._boundary or _fits(declared.get(name), found):
                    continue
                raise InputError(
                    f"the manifest of {bundle.folder} disagrees with its graph at input "
                    f"{name!r}, which is {found[0]} {list(found[1:])}: export it again"
                )
        missing |= {name for name in self._outputs if name not in self._suffix.outputs}
        if missing:
            raise InputError(
                f"the graph of {bundle.folder} lacks {min(missing)!r}, which its manifest names"
            )


def _fits(declared: tuple[Any, ...] | None, found: tuple[Any, ...]) -> bool:
    """Whether a weight has the graph's type and sizes; the graph may leave a size free."""
    if declared is None or len(declared) != len(found) or declared[0] != found[0]:
        return False
    sizes = zip(declared[1:], found[1:], strict=True)
    return all(size == named or not isinstance(named, int) for size, named in sizes)


class _Part:
    """One ONNX Runtime session and what is bound to it."""

    def __init__(self, model: bytes, constants: Mapping[str, Any], threads: int) -> None:
        self._session = open_session(model, threads, constants)
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


def _same(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether both hold the same bits: 0.0 and -0.0 are equal, and yet not the same."""
    if array.shape != other.shape or array.dtype != other.dtype:
        return False
    return np.array_equal(array.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


def _entry(parameter: Parameter) -> TensorEntry:
    """Returns a place in no file: the value is handed over in memory."""
    dtype = dtypes.named(parameter.dtype)
    size = parameter.size * dtype.storage.itemsize
    return TensorEntry(parameter.name, dtype, parameter.shape, 0, size)


def open_session(model: bytes, threads: int, constants: Mapping[str, Any] | None = None) -> Any:
    """Returns the InferenceSession of the ONNX file `model`, whose constants may lie in memory."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A pattern of a batch's shape would lie in memory beside what the first such batch took.
    options.enable_mem_pattern = False
    # Idle workers would spin on the cores that the sweep needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if constants:
        names = list(wire.initializers(model) & constants.keys())
        options.add_external_initializers(names, [constants[name] for name in names])
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
