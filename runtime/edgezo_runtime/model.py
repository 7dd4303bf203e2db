"""A model ready to run and to tune: its weights, the sessions over them, its tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.batch import BaseBatch, Outputs
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.devices import open_device
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.draws import NO_RUN, Draws
from edgezo_runtime.first_order.session import GradientSession, Taker
from edgezo_runtime.first_order.tangents import TangentSession
from edgezo_runtime.generation import GenerationSession
from edgezo_runtime.late import LateNumber
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.options import OptionSession
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.parts import PartedBatch
from edgezo_runtime.prefix_cache import PRECISIONS, open_cache
from edgezo_runtime.select import FULL
from edgezo_runtime.session import Session
from edgezo_runtime.shared import Shared
from edgezo_runtime.start import Start
from edgezo_runtime.text import TOKENIZER, Tokenizer
from edgezo_runtime.weights import Weights

if TYPE_CHECKING:
    from edgezo_runtime.streamed import StreamedSession


class Model:
    """A loaded bundle.

    Threads may share it: forward passes, and the tuning steps of its `Tuner`, take turns. No thread
    gets what another one's batch led to, nor sees weights in the middle of a step.

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
        self.__dict__.pop("_session", None)  # two at once would take memory for both
        self._session = self.session(self.bundle, self.weights.arena.views.keys())
        self._gradients: dict[float, GradientSession] = {}
        for opened in ("generation", "options", "_tangents"):
            self.__dict__.pop(opened, None)

    def session(self, bundle: Bundle, changing: Set[str]) -> Session | StreamedSession:
        """Opens a session of `bundle`, whose weights these are, where they lie.

        Args:
            bundle: the model's, perhaps with another graph.
            changing: names of the weights that will change, if they lie on the device itself.
        """
        if self.device.streams:
            from edgezo_runtime.streamed import StreamedSession

            return StreamedSession(bundle, self.weights)
        return Session(bundle, self.weights.arrays(), changing, self.device)

    @contextlib.contextmanager
    def unbound(self) -> Iterator[None]:
        """Closes the sessions for as long as another one over the weights needs their memory."""
        with self.weights.turn:
            del self._session
            try:
                yield
            finally:
                self.bind()

    def begin_at(self, start: Start) -> None:
        """Puts fitted rows into their matrix; see `Weights.begin_at`."""
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
        return self.start(batch)()

    def start(self, batch: BaseBatch) -> Callable[[], Outputs]:
        """Starts a forward pass over `batch`; returns what waits for the outputs of `forward`.

        The weights may be changed at once.
        """
        with self.weights.turn:
            self.weights.ready()
            shared = Shared.of(batch)
            if shared is not None and self.options is not None:
                outputs = self.options.score(shared)
                return lambda: outputs
            return self._session.start(batch)

    @functools.cached_property
    def generation(self) -> GenerationSession | None:
        """What reads texts with a cache, over the same weights; None if the bundle has no graph.

        It is opened when it is first asked for.
        """
        if not self.bundle.generates:
            return None
        return GenerationSession(self.weights, self.device, self.weights.turn)

    def check_prefix(self) -> None:
        """Checks that `cached_prefix` can be; raises InputError where it cannot."""
        self._resident.layout()

    @property
    def _resident(self) -> Session:
        """The session over weights on the device; raises InputError if they lie elsewhere."""
        if not isinstance(self._session, Session):
            raise InputError(
                f"device {self.device.name} has no --prefix-cache: leave it out, or use device cuda"
            )
        return self._session

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
        session = self._resident
        identity = {
            "base": self.bundle.digest,
            "start": self.weights.start.digest if self.weights.start else None,
            "prefix": hashlib.sha256(session.prefix()).hexdigest(),
            "onnxruntime": onnxruntime().__version__,
            "device": self.device.name,
            "threads": self.device.threads,
        }

        def compute(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            with self.weights.turn:
                return session.compute_prefix(feeds)

        layout = session.layout()
        with open_cache(path, layout, precision, identity, batches, compute, tell) as cache:
            session.cache = cache
            try:
                yield
            finally:
                session.cache = None

    @functools.cached_property
    def options(self) -> OptionSession | None:
        """What reads options after a prompt that they share; None if it cannot be.

        It is opened when it is first asked for.
        """
        if self.device.streams:
            return None
        return OptionSession.over(self.weights, self.device, self.generation)

    def loss(self, batch: BaseBatch) -> float:
        """Returns what a tuning step on `batch` lowers: its mean loss, or what else it says."""
        return self.later(batch)()

    def later(self, batch: BaseBatch) -> Callable[[], float]:
        """Starts what `loss` needs, at the present weights; returns what waits for it."""
        if type(batch).loss is not BaseBatch.loss:  # it may take several passes
            with self.weights.turn:
                loss = batch.loss(self)
            return lambda: loss
        outputs = self.start(batch)
        return lambda: batch.objective.loss(outputs())

    def stay(self, batch: BaseBatch) -> LateNumber | None:
        """Starts what `loss` needs, as `later` does; the loss stays on the device.

        Where the host computes it, nothing is started, and None returned.
        """
        if type(batch).loss is not BaseBatch.loss or not isinstance(self._session, Session):
            return None
        with self.weights.turn:
            self.weights.ready()
            return self._session.stay(batch)

    def descend(
        self,
        batch: BaseBatch,
        names: Sequence[str],
        take: Taker,
        keep: float,
        draws: Draws = NO_RUN,
    ) -> float:
        """Gives `take` the gradients of the mean loss of `batch`; see `GradientSession.run`.

        Args:
            batch: the data, and the objective.
            names: of the weights to differentiate by.
            take: called once for each.
            keep: how much is kept between the passes; see `stages.plan`.
            draws: names the numbers by which rows are chosen, where gradients are estimated.
        """
        with self.weights.turn:
            self.weights.settle()
            if keep not in self._gradients:
                weights = self.weights.arrays()
                self._gradients[keep] = GradientSession(self.bundle, weights, self.device, keep)
            session = self._gradients[keep]
            with self.device.queue:  # so is what `take` does
                if isinstance(batch, PartedBatch):
                    parts = (dataclasses.replace(draws, part=i) for i in itertools.count())
                    return batch.descend(
                        lambda part, add: self._run(session, part, names, add, next(parts)), take
                    )
                return self._run(session, batch, names, take, draws)

    def _run(
        self,
        session: GradientSession,
        batch: BaseBatch,
        names: Sequence[str],
        take: Taker,
        draws: Draws,
    ) -> float:
        return session.run(batch, names, take, self._resident.found(batch.feeds()), draws)

    def derivative(self, batch: BaseBatch, direction: AnyDirection) -> tuple[float, float]:
        """Returns the mean loss of `batch`, and its derivative; see `TangentSession.run`."""
        with self.weights.turn:
            self.weights.settle()
            with self.device.queue:
                if isinstance(batch, PartedBatch):
                    return batch.derivative(lambda part: self._along(part, direction))
                return self._along(batch, direction)

    def _along(self, batch: BaseBatch, direction: AnyDirection) -> tuple[float, float]:
        return self._tangents.run(batch, direction, self._resident.found(batch.feeds()))

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
    start: Start | None = None,
) -> Model:
    """Loads a bundle.

    Args:
        bundle: its folder, or what `open_bundle` returned.
        tune: what may be trained; see `Weights`.
        device: what it runs on; see `open_device`.
        threads: of the session and the sweeps; all cores if None.
        weights: read the trained weights from this file instead of the bundle's.
        prefix: what the names in that file have in front of the parameters'.
        start: rows that the weights began with beside the bundle's, if that file lacks them.

    Raises:
        InputError: the bundle is damaged, nothing matches `tune`, or there is no such device.
    """
    place = open_device(device, threads)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    loaded = Weights(opened, tune, place)
    if start is not None:
        loaded.begin_at(start)
    loaded.load(weights, prefix=prefix)
    return Model(loaded)
