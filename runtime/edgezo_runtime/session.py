"""One ONNX Runtime session over weights that stay where they are.

Every parameter is a graph input bound once, as an OrtValue over memory that somebody else owns and
changes: this is the one way in which ONNX Runtime sees each change of each weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.batch import BaseBatch, Outputs
from edgezo_runtime.bundle import GRAPH, LEAN, QUANTIZED, WEIGHTS, Bundle, Parameter
from edgezo_runtime.constants import with_constants
from edgezo_runtime.devices import Device
from edgezo_runtime.devices.cpu import alias
from edgezo_runtime.devices.part import Part
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.inputs import Inputs
from edgezo_runtime.late import LateNumber
from edgezo_runtime.layout import MASK, Layout
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.prefix_cache import PrefixCache
from edgezo_runtime.safetensors_file import TensorEntry, release
from edgezo_runtime.split import split

_QUESTIONS = ("positions", "targets", "candidates")  # inputs that only the end of a graph reads
_ORT_TYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


class Session:
    """Runs a bundle's graph on a device.

    What depends on frozen weights alone is computed once for a batch, however often it is run, or
    is found in the `cache`.

    Args:
        bundle: its graph and its manifest, which must agree.
        weights: every parameter by name: C-contiguous arrays of the device in storage dtype. They
            are aliased; quantised ones, which stay constants, are NumPy's.
        trained: names of the weights that change; the others stay as they are.
        device: where the weights lie.

    Raises:
        InputError: the manifest disagrees with the graph, or the graph cannot be loaded.

    Attributes:
        cache: what has the outputs of the frozen layers for some batches, if there is one.
    """

    cache: PrefixCache | None = None

    def __init__(
        self, bundle: Bundle, weights: Mapping[str, Any], trained: Set[str], device: Device
    ) -> None:
        parameters = bundle.manifest.parameters
        constants = constant_values(bundle, weights)
        try:
            lean = device.lean and LEAN in bundle.manifest.files
            model = with_integers(bundle, LEAN if lean else GRAPH)
            parts = split(model, {*trained, *_QUESTIONS}, weights.keys() - trained)
            self._split = parts
            self._boundary = parts.boundary if parts else ()
            self._prefix = device.part(parts.prefix, constants, often=False) if parts else None
            last = parts.suffix if parts else model
            self._suffix = device.part(last, constants, weights=weights)
        except Exception as error:
            if device.name == "cpu" and any(p.dtype == "bfloat16" for p in parameters):
                raise InputError(
                    f"{bundle.folder} computes in bfloat16, for which ONNX Runtime has no kernels "
                    "on the CPU: export the model with --dtype float32 or float16"
                ) from error
            raise InputError(f"ONNX Runtime cannot load {bundle.graph}: {error}") from error
        for name in constants:  # each session has packed them for itself
            release(weights[name])
        self._ports = bundle.manifest.inputs
        self._inputs = Inputs(self._ports)
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
    def _parts(self) -> list[Part]:
        return [self._prefix, self._suffix] if self._prefix else [self._suffix]

    def forward(self, batch: BaseBatch) -> Outputs:
        """Runs one forward pass and returns the graph's outputs by name.

        Raises:
            InputError: the batch does not give what the graph takes.
            EdgezoError: ONNX Runtime failed.
        """
        return self.start(batch)()

    def start(self, batch: BaseBatch) -> Callable[[], Outputs]:
        """Starts a forward pass; returns what waits for its outputs. Both may raise EdgezoError.

        Raises:
            InputError: the batch does not give what the graph takes.
        """
        feeds = self._inputs.of(batch)
        with failures(feeds):
            if self._prefix:
                self._hold(self._prefix, feeds)
            wait = self._suffix.start(feeds, self._outputs)

        def outputs() -> Outputs:
            with failures(feeds):
                return dict(zip(self._outputs, wait(), strict=True))

        return outputs

    def stay(self, batch: BaseBatch) -> LateNumber | None:
        """Starts a forward pass whose mean loss stays on the device.

        Where the host computes it, nothing is started, and None returned.

        Raises:
            EdgezoError: ONNX Runtime failed.
        """
        reduction = batch.objective.reduction()
        if reduction is None or not self._suffix.reduces(reduction):
            return None
        feeds = self._inputs.of(batch)
        with failures(feeds):
            if self._prefix:
                self._hold(self._prefix, feeds)
            return self._suffix.reduce(feeds, self._outputs, reduction)

    def layout(self) -> Layout:
        """Returns how what the frozen layers compute falls into rows.

        Raises:
            InputError: it does not, or no layer below the trained ones is frozen.
        """
        if self._prefix is None or self._split is None:
            raise InputError(
                "no frozen layers lie below all that is tuned, so there is nothing for "
                "--prefix-cache to keep: tune upper layers alone with --tune, or leave it out"
            )
        read = self._split.read
        nodes = [self._prefix.outputs[name] for name in self._boundary]
        return Layout(self._ports, self._prefix.inputs, read, nodes)

    def prefix(self) -> bytes:
        """Returns the model of the frozen layers; empty if there is none."""
        return self._split.prefix if self._split else b""

    def compute_prefix(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the frozen layers alone, of which there must be some, and returns their outputs."""
        assert self._prefix is not None
        own = {name: array for name, array in feeds.items() if name in self._prefix.inputs}
        with failures(feeds):
            return self._prefix.run(own, self._boundary)

    def found(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what the cache has of a batch, by name; nothing if it lacks one of its rows."""
        return self.cache.find(feeds) if self.cache else {}

    def _hold(self, prefix: Part, feeds: Mapping[str, np.ndarray]) -> None:
        """Makes the boundary that of `feeds`, unless it is already."""
        own = {n: array for n, array in feeds.items() if n in prefix.inputs or n == MASK}
        if self._held is not None and same(own, self._held):
            return
        self._held = None
        found = self.found(feeds)
        if not found:
            values = prefix.run(own, self._boundary, stay=True)
        else:
            values = [onnxruntime().OrtValue.ortvalue_from_numpy(found[n]) for n in self._boundary]
        for name, value in zip(self._boundary, values, strict=True):
            self._suffix.hold(name, value)
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


@contextlib.contextmanager
def failures(feeds: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Says which batch it was that ONNX Runtime failed on."""
    try:
        yield
    except EdgezoError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise EdgezoError(f"ONNX Runtime failed on a batch of {shapes}: {error}") from error


def same(feeds: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    """Whether both hold the same bits under the same names."""
    return feeds.keys() == others.keys() and all(_same(a, others[n]) for n, a in feeds.items())


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
