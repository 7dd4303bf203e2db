"""One ONNX Runtime session over weights that stay where they are.

Every parameter is a graph input bound once, as an OrtValue over memory that somebody else owns and
changes: this is the one way in which ONNX Runtime sees each change of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.batch import BaseBatch, Outputs
from edgezo_runtime.bundle import GRAPH, LEAN, QUANTIZED, WEIGHTS, Bundle, Parameter
from edgezo_runtime.constants import with_constants
from edgezo_runtime.devices import Binder, Device
from edgezo_runtime.devices.cpu import alias
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.safetensors_file import TensorEntry, release
from edgezo_runtime.split import split

_QUESTIONS = ("positions", "targets", "candidates")  # inputs that only the end of a graph reads
_ORT_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


class Session:
    """Runs a bundle's graph on a device.

    What depends on frozen weights alone is computed once for a batch, however often it is run.

    Args:
        bundle: its graph and its manifest, which must agree.
        weights: every parameter by name: C-contiguous arrays of the device in storage dtype. They
            are aliased; quantised ones, which stay constants, are NumPy's.
        trained: names of the weights that change; the others stay as they are.
        device: where the weights lie.

    Raises:
        InputError: the manifest disagrees with the graph, or the graph cannot be loaded.
    """

    def __init__(
        self, bundle: Bundle, weights: Mapping[str, Any], trained: Set[str], device: Device
    ) -> None:
        parameters = bundle.manifest.parameters
        constants = constant_values(bundle, weights)
        try:
            lean = device.lean and LEAN in bundle.manifest.files
            model = with_integers(bundle, LEAN if lean else GRAPH)
            parts = split(model, {*trained, *_QUESTIONS}, weights.keys() - trained)
            self._boundary = parts.boundary if parts else ()
            self._prefix = _Part(parts.prefix, constants, device) if parts else None
            self._suffix = _Part(parts.suffix if parts else model, constants, device)
        except Exception as error:
            if device.name == "cpu" and any(p.dtype == "bfloat16" for p in parameters):
                raise InputError(
                    f"{bundle.folder} computes in bfloat16, for which ONNX Runtime has no kernels "
                    "on the CPU: export the model with --dtype float32 or float16"
                ) from error
            raise InputError(f"ONNX Runtime cannot load {bundle.graph}: {error}") from error
        for name in constants:  # each session has packed them for itself
            release(weights[name])
        self._outputs = [port.name for port in bundle.manifest.outputs]
        self._check(bundle, constants.keys())
        for parameter in parameters:
            if parameter.name in constants:
                continue
            binder = device.binder(weights[parameter.name], dtypes.named(parameter.dtype))
            for part in self._parts:
                part.keep(parameter.name, binder)
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
        values = prefix.run(own, self._boundary, stay=True)
        for name, value in zip(self._boundary, values, strict=True):
            self._suffix.keep(name, _binder(value))
        self._held = {name: array.copy() for name, array in own.items()}

    def _check(self, bundle: Bundle, constants: Set[str]) -> None:
        manifest = bundle.manifest
        declared = {p.name: p for p in manifest.parameters if p.name not in constants}
        ports = {port.name for port in manifest.inputs}
        missing = {*declared, *ports}
        for part in self._parts:
            for name, node in part.inputs.items():
                missing.discard(name)
                if name in ports or name in self._boundary or fits(declared.get(name), node):
                    continue
                raise InputError(
                    f"the manifest of {bundle.folder} disagrees with its graph at input "
                    f"{name!r}, which is {node.type} {node.shape}: export it again"
                )
        missing |= {name for name in self._outputs if name not in self._suffix.outputs}
        if missing:
            raise InputError(
                f"the graph of {bundle.folder} lacks {min(missing)!r}, which its manifest names"
            )


def fits(parameter: Parameter | None, node: Any) -> bool:
    """Whether a graph's input has the parameter's type and sizes; it may leave a size free."""
    if parameter is None or node is None or len(node.shape) != len(parameter.shape):
        return False
    sizes = zip(parameter.shape, node.shape, strict=True)
    same = all(size == named or not isinstance(named, int) for size, named in sizes)
    return same and node.type == f"tensor({_ORT_TYPES.get(parameter.dtype, parameter.dtype)})"


class _Part:
    """One ONNX Runtime session and what is bound to it."""

    def __init__(self, model: bytes, constants: Mapping[str, Any], device: Device) -> None:
        self._device = device
        self._session = device.open_session(model, constants)
        self._binding = self._session.io_binding()
        self._kept: dict[str, Binder] = {}  # the binding does not keep them alive
        self.inputs = {node.name: node for node in self._session.get_inputs()}
        self.outputs = {node.name for node in self._session.get_outputs()}

    def keep(self, name: str, binder: Binder) -> None:
        """Binds the input `name`, if there is one, for all runs to come."""
        if name in self.inputs:
            self._kept[name] = binder
            binder(self._binding, name)

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], stay: bool = False
    ) -> list[Any]:
        """Runs on `feeds`, of which it takes what it has inputs for; returns OrtValues.

        They are the host's unless they `stay` in the device's memory.
        """
        for name, array in feeds.items():
            if name in self.inputs:
                self._binding.bind_cpu_input(name, array)
        for name in outputs:  # again for each run: a bound output keeps the last batch's shape
            if stay:
                self._device.bind_output(self._binding, name)
            else:
                self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding)
        return self._binding.get_outputs()


def _binder(value: Any) -> Binder:
    return lambda binding, name: binding.bind_ortvalue_input(name, value)


def _same(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether both hold the same bits: 0.0 and -0.0 are equal, and yet not the same."""
    if array.shape != other.shape or array.dtype != other.dtype:
        return False
    return np.array_equal(array.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


def with_integers(bundle: Bundle, graph: str = GRAPH) -> bytes:
    """Returns a graph of `bundle` whose quantised integers, if any, are constants, not inputs.

    Raises:
        ValueError: the graph is damaged, or lacks one of them.
    """
    entries = [_entry(p) for p in bundle.manifest.parameters if p.kind == QUANTIZED]
    return with_constants(bundle.read_graph(graph), entries, WEIGHTS)


def constant_values(bundle: Bundle, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns OrtValues over the quantised integers of `weights`, for `open_session`."""
    quantized = [p for p in bundle.manifest.parameters if p.kind == QUANTIZED]
    return {p.name: alias(weights[p.name], dtypes.named(p.dtype)) for p in quantized}


def _entry(parameter: Parameter) -> TensorEntry:
    """Returns a place in no file: the value is handed over in memory."""
    dtype = dtypes.named(parameter.dtype)
    size = parameter.size * dtype.storage.itemsize
    return TensorEntry(parameter.name, dtype, parameter.shape, 0, size)
