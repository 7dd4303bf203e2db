"""A model ready to run and to tune: its weights in memory, its session, its tokenizer."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.arena import Arena
from edgezo_runtime.batch import BaseBatch, Outputs
from edgezo_runtime.bundle import QUANTIZED, WEIGHTS, Bundle, Parameter, open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.generation import GenerationSession
from edgezo_runtime.select import FULL, resolve, select
from edgezo_runtime.session import Session
from edgezo_runtime.text import TOKENIZER, Tokenizer

_CHUNK = 1 << 20  # elements checked at once


def default_threads() -> int:
    """Returns how many threads a run uses if nobody says: the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Weights:
    """A bundle's weights: the trained ones in an arena, the frozen ones mapped from their file.

    Args:
        bundle: where the parameters are described.
        tune: what is trained; see `select`. A bundle with an adapter trains that.
        threads: threads of the arena's sweeps.
    """

    def __init__(self, bundle: Bundle, tune: str = FULL, threads: int = 1) -> None:
        self.bundle = bundle
        self.tune = resolve(bundle.manifest, tune)
        trained = select(bundle.manifest.parameters, self.tune)
        self.arena = Arena(trained, threads)
        self._frozen: dict[str, np.ndarray] = {}
        self.first: Mapping[str, np.ndarray] = {}  # what an adapter's tensors begin with
        self._checked = False  # the bundle's file, beneath an adapter
        self.at_base = False  # whether the weights are the bundle's own, unchanged
        #: Rebuilds the weights where a step was broken off half way; None where they are whole.
        self.mend: Callable[[], None] | None = None

    def begin(self, first: Mapping[str, np.ndarray]) -> None:
        """Gives an adapter's tensors the values that they begin with, in every `load` to come."""
        self.first = first
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
        self.at_base = base = path is None
        if base and self.bundle.manifest.adapter:
            self._load_first()
            if not self._checked:
                self._read(self.bundle.weights, {}, self.bundle.manifest.files[WEIGHTS])
                self._checked = True
        else:
            digest = self.bundle.manifest.files[WEIGHTS] if base else digest
            views = {prefix + name: view for name, view in self.arena.views.items()}
            self._read(path or self.bundle.weights, views, digest)
        self.frozen()

    def frozen(self) -> Mapping[str, np.ndarray]:
        """Returns the frozen weights by name, mapped from the bundle's file and read-only."""
        if not self._frozen and len(self.arena.views) < len(self.bundle.manifest.parameters):
            entries = safetensors_file.read_header(self.bundle.weights)
            for parameter in self.bundle.manifest.parameters:
                if parameter.name not in self.arena.views:
                    entry = _entry_for(parameter, entries, self.bundle.weights)
                    frozen = safetensors_file.map_tensor(self.bundle.weights, entry)
                    if not _finite(frozen):
                        raise InputError(
                            f"{self.bundle.weights} holds NaN or infinity in {parameter.name}: "
                            "it cannot be tuned or run"
                        )
                    self._frozen[parameter.name] = frozen
        return self._frozen

    def _load_first(self) -> None:
        for name, view in self.arena.views.items():
            view[...] = self.first.get(name, 0)

    def _read(self, path: Path, views: Mapping[str, np.ndarray], digest: str | None) -> None:
        found = safetensors_file.read_into(path, views)
        if digest is not None and found != digest:
            raise InputError(f"{path} does not match its checksum: it was changed or damaged")
        if name := self.arena.nonfinite():
            raise InputError(f"{path} holds NaN or infinity in {name}: it cannot be tuned or run")

    def settle(self) -> None:
        """Brings the weights up to date; whoever reads them calls this first."""
        if self.mend is not None:
            self.mend()
        self.arena.settle()

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns every parameter by name, trained or frozen, in manifest order; none is copied."""
        self.settle()
        views = self.arena.views
        return {
            p.name: views[p.name] if p.name in views else self._frozen[p.name]
            for p in self.bundle.manifest.parameters
        }

    def tensors(self) -> Iterator[tuple[str, dtypes.Dtype, np.ndarray]]:
        """Yields every parameter as `safetensors_file.write` takes it."""
        arrays = self.arrays()
        for parameter in self.bundle.manifest.parameters:
            yield parameter.name, dtypes.named(parameter.dtype), arrays[parameter.name]


class Model:
    """A loaded bundle.

    Attributes:
        bundle: what it was loaded from.
        weights: its weights.
        form: what kind of model it is; see `Manifest.form`.
        threads: threads of its session and its sweeps.
    """

    def __init__(self, weights: Weights, threads: int) -> None:
        self.bundle = weights.bundle
        self.weights = weights
        self.threads = threads
        folder = self.bundle.folder
        text = self.bundle.manifest.context_length is not None or (folder / TOKENIZER).exists()
        self._tokenizer = Tokenizer.from_folder(folder) if text else None
        self.form = self.bundle.manifest.form
        self._session = Session(self.bundle, weights.arrays(), weights.arena.views.keys(), threads)

    @property
    def arena(self) -> Arena:
        """The trained weights."""
        return self.weights.arena

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; raises InputError if it takes arrays, not text."""
        if self._tokenizer is None:
            raise InputError(f"{self.bundle.folder} takes arrays, not text: it has no tokenizer")
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """The longest sequence it takes, in tokens; raises InputError if it takes arrays."""
        if self.bundle.manifest.context_length is None:
            raise InputError(f"{self.bundle.folder} takes arrays, not text: it has no context")
        return self.bundle.manifest.context_length

    def forward(self, batch: BaseBatch) -> Outputs:
        """Runs one forward pass over `batch` and returns the graph's outputs by name."""
        self.weights.settle()
        return self._session.forward(batch)

    @functools.cached_property
    def generation(self) -> GenerationSession | None:
        """What reads texts with a cache, over the same weights; None if the bundle has no graph.

        It is opened when it is first asked for.
        """
        manifest = self.bundle.manifest
        changed = manifest.adapter or any(p.kind == QUANTIZED for p in manifest.parameters)
        if self.bundle.generate is None or changed:  # that graph knows of plain weights only
            return None
        return GenerationSession(self.bundle.generate, self.weights, self.threads)

    def loss(self, batch: BaseBatch) -> float:
        """Returns what a tuning step on `batch` lowers: its mean loss, or what else it says."""
        return batch.loss(self)


def load(
    bundle: Path | str | Bundle,
    *,
    tune: str = FULL,
    threads: int | None = None,
    weights: Path | None = None,
    prefix: str = "",
) -> Model:
    """Loads a bundle.

    Args:
        bundle: its folder, or what `open_bundle` returned.
        tune: what may be trained; see `Weights`.
        threads: of the session and the sweeps; all cores if None.
        weights: read the trained weights from this file instead of the bundle's.
        prefix: what the names in that file have in front of the parameters'.

    Raises:
        InputError: the bundle is damaged, or nothing matches `tune`.
    """
    threads = threads or default_threads()
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    loaded = Weights(opened, tune, threads)
    loaded.load(weights, prefix=prefix)
    return Model(loaded, threads)


def _entry_for(
    parameter: Parameter, entries: dict[str, safetensors_file.TensorEntry], path: Path
) -> safetensors_file.TensorEntry:
    entry = entries.get(parameter.name)
    expected = (dtypes.named(parameter.dtype), parameter.shape)
    if entry is None or (entry.dtype, entry.shape) != expected:
        raise InputError(f"{path} has no tensor {parameter.name!r} as the manifest describes it")
    return entry


def _finite(array: np.ndarray) -> bool:
    """Whether `array` holds neither NaN nor infinity; it is read in pieces."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if chunk.dtype == dtypes.BFLOAT16.storage:
            whole = bool(((chunk & 0x7F80) != 0x7F80).all())
        else:
            whole = chunk.dtype.kind != "f" or bool(np.isfinite(chunk).all())
        if not whole:
            return False
    return True
