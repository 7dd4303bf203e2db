"""A model ready to run and to tune: its weights in memory, its session, its tokenizer."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.arena import Arena
from edgezo_runtime.batch import BaseBatch, Outputs
from edgezo_runtime.bundle import QUANTIZED, WEIGHTS, Bundle, Parameter, open_bundle
from edgezo_runtime.devices import CpuDevice, Device, open_device
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.session import GradientSession, Taker
from edgezo_runtime.first_order.tangents import TangentSession
from edgezo_runtime.generation import GenerationSession
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.options import OptionSession, Shared
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.parts import PartedBatch
from edgezo_runtime.prefix_cache import PRECISIONS, open_cache
from edgezo_runtime.select import FULL, resolve, select
from edgezo_runtime.session import Session
from edgezo_runtime.start import Start
from edgezo_runtime.text import TOKENIZER, Tokenizer

_CHUNK = 1 << 20  # elements checked at once


class Weights:
    """A bundle's weights: the trained ones in an arena, the frozen ones mapped from their file.

    Args:
        bundle: where the parameters are described.
        tune: what is trained; see `select`. A bundle with an adapter trains that.
        device: whose memory they lie in; one thread of the CPU if None.
    """

    def __init__(self, bundle: Bundle, tune: str = FULL, device: Device | None = None) -> None:
        self.bundle = bundle
        self.device = device = device or CpuDevice(1)
        self.tune = resolve(bundle.manifest, tune)
        trained = select(bundle.manifest.parameters, self.tune)
        self.arena = Arena(trained, device)
        self._frozen: dict[str, np.ndarray] = {}
        self._placed: dict[str, Any] = {}  # the frozen ones, in the device's memory
        self.first: Mapping[str, np.ndarray] = {}  # what an adapter's tensors begin with
        self.start: Start | None = None
        self._checked = False  # the bundle's file, beneath an adapter
        self.at_base = False  # whether the weights are the bundle's own, unchanged
        #: Rebuilds the weights where a step was broken off half way; None where they are whole.
        self.mend: Callable[[], None] | None = None

    def begin_at(self, start: Start) -> None:
        """Puts fitted rows into one matrix, now and in every `load` of the base to come.

        Whoever has bound the weights binds them again: a frozen matrix is another array then.
        """
        self.start = start
        self._placed.pop(start.parameter, None)
        if start.parameter in self.arena.views:
            self.settle()
            self._put_start()
        else:
            self._frozen.pop(start.parameter, None)
            self.frozen()

    def _put_start(self) -> None:
        """Writes the start's rows into the arena, if their matrix is there."""
        if self.start is not None and self.start.parameter in self.arena.views:
            view = self.arena.views[self.start.parameter]
            (dtype,) = (p.dtype for p in self.arena.parameters if p.name == self.start.parameter)
            self.start.put(view, dtypes.named(dtype), self.device.xp)

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
        if base:
            self._put_start()
        self.frozen()

    def frozen(self) -> Mapping[str, np.ndarray]:
        """Returns the frozen weights by name, mapped from the bundle's file and read-only."""
        known = self.arena.views.keys() | self._frozen.keys()
        missing = [p for p in self.bundle.manifest.parameters if p.name not in known]
        entries = safetensors_file.read_header(self.bundle.weights) if missing else {}
        for parameter in missing:
            entry = _entry_for(parameter, entries, self.bundle.weights)
            start = self.start if self.start and self.start.parameter == parameter.name else None
            frozen = safetensors_file.map_tensor(self.bundle.weights, entry, own=start is not None)
            if start:
                start.put(frozen, dtypes.named(parameter.dtype), np)
            if not _finite(frozen):
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
        if self.mend is not None:
            self.mend()
        self.arena.settle()

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
        self.settle()
        return {name: self.device.host(view) for name, view in self.arena.views.items()}

    def save(self, path: Path, *, trained: bool = False) -> str:
        """Writes every parameter, or the trained ones, to `path`; returns the file's SHA-256."""
        self.settle()
        parameters = self.arena.parameters if trained else self.bundle.manifest.parameters
        entries = [(p.name, dtypes.named(p.dtype), p.shape) for p in parameters]
        return safetensors_file.write_each(path, entries, self._host)

    def _host(self, name: str) -> np.ndarray:
        view = self.arena.views.get(name)
        return self._frozen[name] if view is None else self.device.host(view)


class Model:
    """A loaded bundle.

    Attributes:
        bundle: what it was loaded from.
        weights: its weights.
        form: what kind of model it is; see `Manifest.form`.
        device: where it runs.
    """

    def __init__(self, weights: Weights) -> None:
        self.bundle = weights.bundle
        self.weights = weights
        self.device = weights.device
        folder = self.bundle.folder
        text = self.bundle.manifest.context_length is not None or (folder / TOKENIZER).exists()
        self._tokenizer = Tokenizer.from_folder(folder) if text else None
        self.form = self.bundle.manifest.form
        self.bind()

    def bind(self) -> None:
        """Opens the sessions over the weights, again where arrays of them were replaced."""
        trained = self.weights.arena.views.keys()
        self.__dict__.pop("_session", None)  # two at once would take memory for both
        self._session = Session(self.bundle, self.weights.arrays(), trained, self.device)
        self._gradients: dict[bool, GradientSession] = {}
        for opened in ("generation", "options", "_tangents"):
            self.__dict__.pop(opened, None)

    @contextlib.contextmanager
    def unbound(self) -> Iterator[None]:
        """Closes the sessions for as long as another one over the weights needs their memory."""
        del self._session
        try:
            yield
        finally:
            self.bind()

    def begin_at(self, start: Start) -> None:
        """Puts fitted rows into one matrix; see `Weights.begin_at`."""
        with self.unbound():  # a session would keep the matrix that is replaced
            self.weights.begin_at(start)

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
        """Runs one forward pass over `batch` and returns the graph's outputs by name.

        Options that share much of a prompt read it once; of their outputs there is ``logprobs``.
        """
        self.weights.settle()
        shared = Shared.of(batch)
        if shared is not None and self.options is not None:
            return self.options.score(shared)
        return self._session.forward(batch)

    @functools.cached_property
    def generation(self) -> GenerationSession | None:
        """What reads texts with a cache, over the same weights; None if the bundle has no graph.

        It is opened when it is first asked for.
        """
        return GenerationSession(self.weights, self.device) if self.bundle.generates else None

    def check_prefix(self) -> None:
        """Checks that `cached_prefix` can be; raises InputError where it cannot."""
        self._session.layout()

    @contextlib.contextmanager
    def cached_prefix(
        self,
        path: Path,
        batches: Callable[[], Iterable[BaseBatch]],
        precision: str = PRECISIONS[0],
        tell: Callable[[int], None] = lambda size: None,
    ) -> Iterator[None]:
        """Keeps what the frozen layers below compute of each row: steps on these rows start there.

        The rows are computed first, in their order, unless the file has them from an earlier time.
        Batches with other rows run all layers as ever.

        Args:
            path: the file.
            batches: gives the same batches whenever it is called; the less padding, the faster.
            precision: of the file, one of `prefix_cache.PRECISIONS`; float16 rounds.
            tell: called with the file's bytes before it is written.

        Raises:
            InputError: no layers below are frozen, what they compute does not fall into rows, or
                a value is too large for float16.
            EdgezoError: the disk is full.
        """
        session = self._session
        identity = {
            "base": self.bundle.digest,
            "start": self.weights.start.digest if self.weights.start else None,
            "prefix": hashlib.sha256(session.prefix()).hexdigest(),
            "onnxruntime": onnxruntime().__version__,
            "device": self.device.name,
            "threads": self.device.threads,
        }
        layout, compute = session.layout(), session.compute_prefix
        with open_cache(path, layout, precision, identity, batches, compute, tell) as cache:
            session.cache = cache
            try:
                yield
            finally:
                session.cache = None

    @functools.cached_property
    def options(self) -> OptionSession | None:
        """What reads options after a prompt that they share; None if the bundle cannot.

        It is opened when it is first asked for.
        """
        return OptionSession.over(self.weights, self.device, self.generation)

    def loss(self, batch: BaseBatch) -> float:
        """Returns what a tuning step on `batch` lowers: its mean loss, or what else it says."""
        return batch.loss(self)

    def descend(self, batch: BaseBatch, names: Sequence[str], take: Taker, keep: bool) -> float:
        """Gives `take` the gradients of the mean loss of `batch`; see `GradientSession.run`.

        Args:
            batch: the data, and the objective.
            names: of the weights to differentiate by.
            take: called once for each.
            keep: whether products are kept between the passes, or computed again.
        """
        self.weights.settle()
        if keep not in self._gradients:
            weights = self.weights.arrays()
            self._gradients[keep] = GradientSession(self.bundle, weights, self.device, keep)
        session = self._gradients[keep]
        if isinstance(batch, PartedBatch):
            return batch.descend(lambda part, add: self._run(session, part, names, add), take)
        return self._run(session, batch, names, take)

    def _run(
        self, session: GradientSession, batch: BaseBatch, names: Sequence[str], take: Taker
    ) -> float:
        return session.run(batch, names, take, self._session.found(batch.feeds()))

    def derivative(self, batch: BaseBatch, direction: AnyDirection) -> tuple[float, float]:
        """Returns the mean loss of `batch`, and its derivative; see `TangentSession.run`."""
        self.weights.settle()
        if isinstance(batch, PartedBatch):
            return batch.derivative(lambda part: self._tangents.run(part, direction))
        return self._tangents.run(batch, direction)

    @functools.cached_property
    def _tangents(self) -> TangentSession:
        return TangentSession(self.bundle, self.weights.arrays(), self.arena, self.device)


def load(
    bundle: Path | str | Bundle,
    *,
    tune: str = FULL,
    device: str = "cpu",
    threads: int | None = None,
    weights: Path | None = None,
    prefix: str = "",
) -> Model:
    """Loads a bundle.

    Args:
        bundle: its folder, or what `open_bundle` returned.
        tune: what may be trained; see `Weights`.
        device: what it runs on; see `open_device`.
        threads: of the session and the sweeps; all cores if None.
        weights: read the trained weights from this file instead of the bundle's.
        prefix: what the names in that file have in front of the parameters'.

    Raises:
        InputError: the bundle is damaged, nothing matches `tune`, or there is no such device.
    """
    place = open_device(device, threads)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    loaded = Weights(opened, tune, place)
    loaded.load(weights, prefix=prefix)
    return Model(loaded)


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
