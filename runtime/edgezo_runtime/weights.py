"""A bundle's weights: what is trained in an arena, what is frozen mapped from its file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import QUANTIZED, WEIGHTS, Bundle, Parameter
from edgezo_runtime.devices import CpuDevice, Device
from edgezo_runtime.errors import InputError
from edgezo_runtime.select import FULL, resolve, select
from edgezo_runtime.start import Start


class Weights:
    """A bundle's weights: the trained ones in an arena, the frozen ones mapped from their file.

    Args:
        bundle: where the parameters are described.
        tune: what is trained; see `select`. A bundle with an adapter trains that.
        device: whose memory they lie in; one thread of the CPU if None.

    Attributes:
        turn: held by the thread that runs a pass over the weights, or changes them.
    """

    def __init__(self, bundle: Bundle, tune: str = FULL, device: Device | None = None) -> None:
        self.bundle = bundle
        self.turn = threading.RLock()
        self.device = device = device or CpuDevice(1)
        self.tune = resolve(bundle.manifest, tune)
        trained = select(bundle.manifest.parameters, self.tune)
        self.arena = Arena(trained, device)
        self._frozen: dict[str, np.ndarray] = {}
        self._placed: dict[str, Any] = {}  # the frozen ones, in the device's memory
        self.first: Mapping[str, np.ndarray] = {}  # what an adapter's tensors begin with
        self.start: Start | None = None
        self._checked = False  # the bundle's file, beneath an adapter
        self.owner: object = None  # who moves them: a token that it knows
        self.at_base = False  # whether the weights are the bundle's own, unchanged
        #: Rebuilds the weights where a step was broken off half way; None where they are whole.
        self.mend: Callable[[], None] | None = None

    def begin_at(self, start: Start) -> None:
        """Puts fitted rows into their matrix, now and in every `load` of the base to come.

        Whoever has bound the weights binds them again: a frozen matrix is another array then.
        """
        self.start, self.owner = start, None
        for name in start.values:
            self._placed.pop(name, None)
            self._frozen.pop(name, None)
        self.settle()
        self._put_start()
        self.frozen()

    def _put_start(self) -> None:
        """Writes the start's rows into the arena, where what they are of is there."""
        for parameter in self.arena.parameters:
            if self.start is not None and parameter.name in self.start.values:
                view, dtype = self.arena.views[parameter.name], dtypes.named(parameter.dtype)
                self.start.put(parameter.name, view, dtype, self.device.xp)

    def begin(self, first: Mapping[str, np.ndarray]) -> None:
        """Gives an adapter's tensors the values that they begin with, in every `load` to come."""
        self.first, self.owner = first, None
        self._load_first()

    def load(self, path: Path | None = None, digest: str | None = None, prefix: str = "") -> None:
        """Reads the trained weights from `path`; the bundle's own, or an adapter's first, if None.

        Args:
            path: a safetensors file.
            digest: its SHA-256, if known.
            prefix: what its names have in front of the parameters'.

        Raises:
            InputError: the file does not match its checksum or the manifest, or holds NaN.
        """
        self.arena.forget()
        self.at_base, base = False, path is None
        if base and self.bundle.manifest.adapter:
            self._load_first()
            if not self._checked:
                self._read(self.bundle.weights, {}, self.bundle.manifest.files[WEIGHTS])
                self._checked = True
        else:
            digest = self.bundle.manifest.files[WEIGHTS] if base else digest
            views = {prefix + name: view for name, view in self.arena.views.items()}
            self._read(path or self.bundle.weights, views, digest)
        if base:
            self._put_start()
        self.frozen()
        self.at_base = base

    def frozen(self) -> Mapping[str, np.ndarray]:
        """Returns the frozen weights by name, mapped from the bundle's file and read-only."""
        known = self.arena.views.keys() | self._frozen.keys()
        missing = [p for p in self.bundle.manifest.parameters if p.name not in known]
        entries = safetensors_file.read_header(self.bundle.weights) if missing else {}
        for parameter in missing:
            entry = _entry_for(parameter, entries, self.bundle.weights)
            start = self.start if self.start and parameter.name in self.start.values else None
            frozen = safetensors_file.map_tensor(self.bundle.weights, entry, own=start is not None)
            if start:
                start.put(parameter.name, frozen, dtypes.named(parameter.dtype), np)
            if not dtypes.finite(np, frozen.reshape(-1), dtypes.named(parameter.dtype)):
                raise InputError(
                    f"{self.bundle.weights} holds NaN or infinity in {parameter.name}: "
                    "it cannot be tuned or run"
                )
            self._frozen[parameter.name] = frozen
        return self._frozen

    def _load_first(self) -> None:
        for name, view in self.arena.views.items():
            view[...] = self.device.put(self.first[name]) if name in self.first else 0

    def _read(self, path: Path, views: Mapping[str, Any], digest: str | None) -> None:
        found = self.device.read(path, views)
        if digest is not None and found != digest:
            raise InputError(f"{path} does not match its checksum: it was changed or damaged")
        if name := self.arena.nonfinite():
            raise InputError(f"{path} holds NaN or infinity in {name}: it cannot be tuned or run")

    def settle(self) -> None:
        """Brings the weights up to date; whoever reads them calls this first."""
        self.ready()
        self.arena.settle()

    def ready(self) -> None:
        """Makes the weights what a forward pass shall see, wherever they lie."""
        if self.mend is not None:
            self.mend()
        self.arena.add()

    def arrays(self) -> dict[str, Any]:
        """Returns every parameter by name, in manifest order, as a `Session` takes them.

        The trained ones alias the arena. Quantised ones stay where they are; the others are in the
        device's memory.
        """
        self.settle()
        for parameter in self.bundle.manifest.parameters:
            name = parameter.name
            if name not in self.arena.views and name not in self._placed:
                stays = parameter.kind == QUANTIZED
                frozen = self._frozen[name]
                self._placed[name] = frozen if stays else self.device.put(frozen)
        both = {**self._placed, **self.arena.views}
        return {p.name: both[p.name] for p in self.bundle.manifest.parameters}

    def trained(self) -> dict[str, np.ndarray]:
        """Returns the trained parameters by name, for reading."""
        with self.turn:
            self.settle()
            return {name: self.device.host(view) for name, view in self.arena.views.items()}

    def save(self, path: Path, *, trained: bool = False) -> str:
        """Writes all but an adapter, or what is trained, to `path`; returns the file's SHA-256."""
        parameters = self.arena.parameters if trained else self.bundle.manifest.stored
        entries = [(p.name, dtypes.named(p.dtype), p.shape) for p in parameters]
        with self.turn:
            self.settle()
            return safetensors_file.write_each(path, entries, self._host)

    def _host(self, name: str) -> np.ndarray:
        view = self.arena.views.get(name)
        return self._frozen[name] if view is None else self.device.host(view)


def _entry_for(
    parameter: Parameter, entries: dict[str, safetensors_file.TensorEntry], path: Path
) -> safetensors_file.TensorEntry:
    entry = entries.get(parameter.name)
    expected = (dtypes.named(parameter.dtype), parameter.shape)
    if entry is None or (entry.dtype, entry.shape) != expected:
        raise InputError(f"{path} has no tensor {parameter.name!r} as the manifest describes it")
    return entry
