"""What every tuning method is: directions, an estimate of slopes along them, and an update rule."""

from __future__ import annotations

import abc
import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import Record
from edgezo_runtime.late import Scalar
from edgezo_runtime.methods.options import Number, choose
from edgezo_runtime.methods.stride import SLOPE, stride_of
from edgezo_runtime.methods.walk import Measured, Replayed, Walk
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.sweep import ONE


@dataclass(frozen=True)
class Estimate:
    """What a step found out.

    Attributes:
        loss: the mean of the losses of the step, near the weights before the update, in nats.
        record: what the update was computed from; a replay gets nothing else.
    """

    loss: float
    record: Record


@dataclass(frozen=True)
class Slope:
    r"""The loss falls by :math:`\eta g^2` along :math:`-\eta g z`; part of an estimate.

    Attributes:
        direction: names z.
        value: g, as it was recorded.
        back: how far along z the way back to the weights before the step is.
    """

    direction: AnyDirection
    value: Scalar
    back: float


class Taken:
    """A step that was taken.

    Args:
        wait: returns what it found out.
        late: whether only the device knows that yet; else it is asked at once.
    """

    def __init__(self, wait: Callable[[], Estimate], late: bool = False) -> None:
        self._wait: Callable[[], Estimate] | None = wait
        self._estimate: Estimate | None = None
        if not late:
            self.wait()

    @property
    def late(self) -> bool:
        """Whether only the device knows what it found out: nobody has waited for it yet."""
        return self._estimate is None

    @classmethod
    def of(cls, record: Record) -> Taken:
        """Returns a step of which the record is left."""
        return cls(lambda: Estimate(math.nan, record))

    def wait(self) -> Estimate:
        """Returns what it found out."""
        if self._wait is not None:
            self._estimate, self._wait = self._wait(), None  # it holds the batch
        assert self._estimate is not None
        return self._estimate


@dataclass(frozen=True)
class Probe:
    """What a loss looks like near the weights, along a method's own directions.

    Attributes:
        slope: root mean square of the projected gradients.
        curvature: the inverse of the rate that suits plain SGD; see `probe`.
    """

    slope: float
    curvature: float


class Method(abc.ABC):
    """A tuning method over one arena, composed of directions, an estimator and an update rule.

    A step depends on the seed, its number, the batch's losses, the learning rate and the method's
    state; the record holds all that came from losses and rate. Whoever composes a method from parts
    writes its equation, its paper and its defaults, and nothing else.

    Args:
        arena: the trained weights.
        seed: names all random choices of the run.
        settings: by name; those not given have their defaults.

    Settings:
        weight_decay: lambda, decoupled from the gradient, times the learning rate; matrices only.

    Attributes:
        name: as `--method` takes it.
        paper: where it comes from.
        full_lr: the learning rate for all weights of a language model.
        graph: the file of the bundle that it needs besides the inference graph, if any.
        stride: how far what is tuned goes, where all weights go 1; see `stride`.
        chosen: the value of each setting.

    Raises:
        InputError: a setting there is none of or that is out of range, or weights in which the
            method's roundings would add up or its updates get lost.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    full_lr: ClassVar[float] = 1e-5
    graph: ClassVar[str] = ""

    weight_decay = Number(0.0, least=0)

    #: The largest slope that the update can take without overflow.
    most: ClassVar[float] = math.inf

    def __init__(self, arena: Arena, seed: int, /, **settings: Any) -> None:
        self.arena = arena
        self.seed = seed
        self.stride = stride_of(arena.parameters)
        self.chosen = choose(type(self), f"method {self.name}", settings, self.stride)
        self._check_dtypes()
        self._past: deque[tuple[int, Taken]] = deque(maxlen=self.memory)

    # What it takes.

    @property
    def lr(self) -> float:
        """The learning rate where none is given: `full_lr`, for slopes as small as the stride."""
        smaller = Probe(SLOPE / self.stride, 1 / self.stride**2)
        return self.full_lr * (self.rate(smaller) / self.rate(Probe(SLOPE, 1)))

    @property
    @abc.abstractmethod
    def forwards(self) -> int:
        """Forward passes per step, the most that one takes."""

    @property
    @abc.abstractmethod
    def scalars(self) -> int:
        """Numbers that a record holds besides the learning rate."""

    @property
    def estimates(self) -> int:
        """How many slopes an update takes the mean of; a record holds them first."""
        return 1

    @property
    def memory(self) -> int:
        """How many of the last records a step looks back on."""
        return 0

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        """Returns dtype and length of each array of the state."""
        return {}

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """The arrays that steps change besides the weights, zero at first; snapshots hold them."""
        device = self.arena.device
        layout = self.state_layout()
        return {name: device.zeros(n, np.dtype(d)) for name, (d, n) in layout.items()}

    @property
    def state_bytes(self) -> int:
        """Bytes that it keeps between steps besides the weights."""
        return sum(np.dtype(d).itemsize * n for d, n in self.state_layout().values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of it that are in memory at once: all."""
        return self.state_bytes

    def settings(self) -> dict[str, Any]:
        """Returns the settings that, with the seed, make this method again."""
        return dict(self.chosen)

    # Steps.

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        """Takes a step, as `start` does, and waits for what it found out."""
        return self.start(number, loss, lr).wait()

    def start(self, number: int, loss: Callable[[], float], lr: np.float32) -> Taken:
        """Estimates the gradient with calls of `loss` and updates the arena.

        Args:
            number: the step's number, from 1.
            loss: returns the loss of this step's batch at the arena's present weights.
            lr: this step's learning rate.
        """
        stay = self.late and self.arena.sweeper.descends
        walk = Measured(self.arena, number, lr, loss, self.most, stay)
        self.take(walk)

        taken = Taken(lambda: self._estimate(walk), walk.late)
        self._past.append((number, taken))
        return taken

    def _estimate(self, walk: Measured) -> Estimate:
        walk.finish()
        return Estimate(float(np.mean(walk.losses)), walk.record)

    def replay(self, number: int, record: Record) -> None:
        """Changes the arena and the state as step `number` did, to the last bit."""
        self.take(Replayed(number, record))
        self._past.append((number, Taken.of(record)))
        self.arena.settle()

    def recall(self, records: Sequence[Record]) -> None:
        """Looks back on the run's first `records`, whose effects are in weights and state."""
        first = max(0, len(records) - self.memory)
        for number, record in enumerate(records[first:], start=first + 1):
            self._past.append((number, Taken.of(record)))

    @property
    def past(self) -> list[tuple[int, Record]]:
        """The last steps' numbers and records; that of a step on its way is waited for."""
        return [(number, taken.wait().record) for number, taken in self._past]

    def take(self, walk: Walk) -> None:
        """Goes through one step."""
        self.prepare(walk.number)
        slopes = self.measure(walk)
        if walk.skipped:
            self.restore(slopes)
        else:
            self.apply(walk, slopes)

    # The parts.

    def prepare(self, number: int) -> None:  # noqa: B027 - most methods have nothing to prepare
        """Brings up to date what the directions of step `number` depend on."""

    @abc.abstractmethod
    def direction(self, number: int, sample: int = 0) -> AnyDirection:
        """Returns a direction of step `number`."""

    @abc.abstractmethod
    def measure(self, walk: Walk) -> list[Slope]:
        """Measures slopes along the step's directions, and leaves the weights as they then are."""

    @abc.abstractmethod
    def apply(self, walk: Walk, slopes: Sequence[Slope]) -> None:
        """Takes the weights back and updates them."""

    @abc.abstractmethod
    def rate(self, probe: Probe) -> float:
        """Returns the learning rate that suits a loss of this shape."""

    # What parts share.

    @property
    def late(self) -> bool:
        """Whether steps take numbers that only the device knows yet: they branch on none."""
        return True

    @functools.cached_property
    def narrow(self) -> bool:
        """Whether weights are float16, so that what rounding does has to be minded."""
        return any(p.dtype == dtypes.FLOAT16.name for p in self.arena.parameters)

    @property
    def updates_at_once(self) -> bool:
        """Whether the way back and the whole update are one addition, rounded once.

        Only then do updates much smaller than the spacing of float16 survive, on average: rounding
        on the way out has left the perturbed weight at a random place between two neighbours.
        """
        return False

    def _check_dtypes(self) -> None:
        for parameter in self.arena.parameters:
            if parameter.dtype == dtypes.BFLOAT16.name:
                raise InputError(
                    f"{parameter.name} is bfloat16, whose roundings add up to several per cent of "
                    "the weights within 20,000 steps: export the model as float32 or float16"
                )
        if self.narrow and not self.updates_at_once:
            raise InputError(
                f"{self.name} would lose its small updates in float16 weights: use mezo, or export "
                "the model as float32"
            )

    def move(self, direction: AnyDirection, coefficient: float) -> None:
        """Moves the weights along a direction."""
        self.arena.defer(along(direction, coefficient))

    def losses(self, walk: Walk, moves: Sequence[Sequence[Term]]) -> list[Scalar]:
        """Returns the loss after each of `moves`; all passes are started before one is awaited."""
        started = []
        for number, terms in enumerate(moves, start=1):
            self.arena.defer(*terms)
            started.append(walk.later(moves[number:]))
        return [wait() for wait in started]

    def descend(self, walk: Walk, ways: Sequence[tuple[AnyDirection, Scalar, float]]) -> None:
        """Updates the weights by additions, and lets them decay.

        Args:
            walk: of the step.
            ways: for each addition its direction, how far it goes along that, and how much of it is
                the way back to the weights before the step.
        """
        lengths = walk.rounded(*(length for _, length, _ in ways))
        decays = [ONE] * (len(ways) - 1) + [self.decay(walk)]
        for (direction, _, back), length, decay in zip(ways, lengths, decays, strict=True):
            self.arena.defer(walk.term(direction, length, back, decay))

    def restore(self, slopes: Sequence[Slope]) -> None:
        """Takes the weights back to where they were before the step."""
        for slope in slopes:
            if slope.back:
                self.move(slope.direction, slope.back)

    def decay(self, walk: Walk) -> np.float32:
        """Returns what matrices are multiplied by after an update."""
        return np.float32(1 - walk.lr * self.weight_decay)


def along(direction: AnyDirection, coefficient: float) -> Term:
    """Returns a move along a direction."""
    return Term(direction, np.float32(coefficient))
