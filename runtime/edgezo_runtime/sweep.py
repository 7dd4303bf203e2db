"""What a sweep is, whichever device runs it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.late import Single
from edgezo_runtime.noise import AnyDirection

ONE = np.float32(1)
Result = TypeVar("Result")

#: Returns new weights, and what changes of the state: ``rule(xp, weights, state, *zs)``.
Rule = Callable[..., tuple[Any, Mapping[str, Any]]]
State = Mapping[str, Any]


@dataclass(frozen=True)
class Term:
    """One addition of a sweep: ``w <- (w + coefficient * z) * decay``.

    Attributes:
        direction: names z.
        coefficient: rounded to float32.
        decay: multiplies the weights that decay (matrices), after the addition.
    """

    direction: AnyDirection
    coefficient: np.float32
    decay: np.float32 = ONE


@dataclass(frozen=True, kw_only=True)
class Descent(Term):
    """The term of an update, where only the device knows yet whether its step is skipped.

    ``w <- (w + taken * z) * decay``; if the step is skipped, ``w <- w + coefficient * z``, and
    nothing at all where that is 0.

    Attributes:
        coefficient: the way back to the weights before the step.
        taken: the way back and down.
        skipped: the device's array of whether the step is skipped, (1,) float64: 0 if it is not.
    """

    taken: Single
    skipped: Any


@dataclass(frozen=True)
class Placed:
    """A parameter and where it lies.

    Attributes:
        parameter: name, shape and dtype.
        weights: its elements, flat, on the arena's device.
        offset: of its first element in the noise's index space.
    """

    parameter: Parameter
    weights: Any
    offset: int

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices only."""
        return len(self.parameter.shape) >= 2


class Sweeper(abc.ABC):
    """Changes the weights of one arena where they lie.

    Attributes:
        most_terms: that one pass over the memory takes.
        descends: whether it takes a `Descent`, and a rule of `LateSingle`s.
        most_directions: that such a rule takes.
    """

    most_terms = 4
    descends = False
    most_directions = 0

    def foresee(self, groups: Sequence[Sequence[Term]]) -> None:  # noqa: B027 - most go on at once
        """Is told what will be added before each of the next losses; see `Arena.foresee`."""

    def finish(self) -> None:  # noqa: B027 - most sweep at once
        """Brings the memory up to date, where sweeps are put off."""

    def forget(self) -> None:  # noqa: B027 - most sweep at once
        """Drops what was put off: the memory is about to be overwritten."""

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Returns what `work` makes of each of `items`, in their order."""
        return [work(item) for item in items]

    @abc.abstractmethod
    def sweep(self, terms: Sequence[Term]) -> None:
        """Adds each of `terms`, at most `most_terms`, rounding to the storage dtype between."""

    @abc.abstractmethod
    def update(
        self, rule: Rule, directions: Sequence[AnyDirection], decay: np.float32, state: State
    ) -> None:
        """Replaces weights and state by what `rule` makes of them; see `Arena.update`."""

    @abc.abstractmethod
    def count(self, place: int, upper: int | None = None) -> np.ndarray:
        """Returns how many weights of a tensor have each upper half of the bits of |w|.

        Args:
            place: of the tensor.
            upper: if given, those that have this one are counted by their lower half.

        Returns:
            (2**16,) counts.
        """

    @abc.abstractmethod
    def mask(self, limits: Any, out: Any, above: bool) -> None:
        """Writes which weights exceed a limit, as bits; see `magnitudes.mask`."""


def update_with(
    xp: Any,
    placed: Sequence[Placed],
    rule: Rule,
    directions: Sequence[AnyDirection],
    decay: np.float32,
    state: State,
    most: int,
) -> None:
    """Updates the weights `placed` with whole-array operations, up to `most` elements at once."""
    size = max((one.offset + one.parameter.size for one in placed), default=0)
    ranges = directions[0].support.ranges if directions else None
    draws = [direction.draw(xp, size) for direction in directions]
    for one, index in _parts(placed, ranges or ((0, size),), most):
        weights = one.weights[index.start - one.offset : index.stop - one.offset]
        dtype = dtypes.named(one.parameter.dtype)
        zs = [draw(index.start, index.stop) for draw in draws]
        apply_rule(xp, rule, index, weights, dtype, zs, state, decay if one.decays else ONE)


def apply_rule(
    xp: Any,
    rule: Rule,
    index: slice,
    weights: Any,
    dtype: dtypes.Dtype,
    zs: Sequence[Any],
    state: State,
    decay: np.float32,
) -> None:
    """Replaces a piece of `weights`, and of the state, by what `rule` makes of them."""
    wide = weights if dtype == dtypes.FLOAT32 else dtypes.to_float32(weights, dtype)
    held = {name: array[index] for name, array in state.items()}
    new, changed = rule(xp, wide, held, *zs)
    # What a rule hands on as it got it lies where something else is about to be written.
    given = (wide, *held.values())
    changed = {n: a.copy() if any(a is each for each in given) else a for n, a in changed.items()}
    if decay != 1:
        new = new * decay
    weights[...] = dtypes.from_float32(new, dtype)
    for name, array in changed.items():
        held[name][...] = array


def _parts(
    placed: Sequence[Placed], ranges: Sequence[tuple[int, int]], most: int
) -> Iterator[tuple[Placed, slice]]:
    """Yields the parts of parameters that lie in `ranges`, at most `most` elements each."""
    for one in placed:
        end = one.offset + one.parameter.size
        for start, stop in ranges:
            low, high = max(start, one.offset), min(stop, end)
            for at in range(low, high, most):
                yield one, slice(at, min(at + most, high))
