"""Sweeps over weights of the host's memory, put off until the weights pass through a card.

What sweeps have added since the memory was last written is kept as a list of terms. Each time that
weights come to the card, it adds them there, in their order and with the rounding between them
that the memory would have seen: a forward pass gets the same bits, and the memory need not be
written for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgezo_runtime.devices.cpu_sweep import CpuSweeper
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.noise import EVERYWHERE, AnyDirection, Direction
from edgezo_runtime.sweep import Result, Rule, State, Sweeper, Term

_MOST_PENDING = 16  # terms that are added again for each visit before the memory is written


class PendingSweeper(Sweeper):
    """Puts off what the card adds, and lets the host do the rest.

    Args:
        host: sweeps over the memory.

    Attributes:
        pending: what the memory lacks.
        ahead: what will be added before each of the losses after the next one.
        version: changes whenever the memory does.
    """

    most_terms = 1 << 30

    def __init__(self, host: CpuSweeper) -> None:
        self._host = host
        self.pending: tuple[Term, ...] = ()
        self.ahead: tuple[tuple[Term, ...], ...] = ()
        self.version = 0
        self._stepping = False
        self._whole = True

    def sweep(self, terms: Sequence[Term]) -> None:
        self.ahead, self._stepping = (), False
        if all(map(_added_on_cards, terms)):
            self.pending += tuple(terms)
        else:
            self.finish()
            self._sweep(terms)

    def foresee(self, groups: Sequence[Sequence[Term]]) -> None:
        self._stepping = True
        if all(_added_on_cards(term) for terms in groups for term in terms):
            self.ahead = tuple(map(tuple, groups))

    def update(
        self, rule: Rule, directions: Sequence[AnyDirection], decay: np.float32, state: State
    ) -> None:
        self.ahead, self._stepping = (), False
        self.finish()
        self._host.update(rule, directions, decay, state)
        self.version += 1

    def count(self, place: int, upper: int | None = None) -> np.ndarray:
        return self._host.count(place, upper)

    def mask(self, limits: Any, out: Any, above: bool) -> None:
        self._host.mask(limits, out, above)

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        return self._host.each(work, items)

    def finish(self) -> None:
        self.check()
        if self.pending:
            pending, self.pending = self.pending, ()
            self._sweep(pending)

    def forget(self) -> None:
        self.pending, self.ahead, self._stepping = (), (), False
        self.version += 1
        self._whole = True

    def check(self) -> None:
        """Raises EdgezoError if the memory was left half written."""
        if not self._whole:
            raise EdgezoError("a step broke off while weights were written: load the model again")

    @property
    def writes(self) -> bool:
        """Whether the next visit of the weights to the card shall write them to the memory.

        Only within a step: one that breaks off is rebuilt, and the weights with it.
        """
        return self._stepping and len(self.pending) > _MOST_PENDING

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Within it, the memory is given all that it lacks."""
        self._whole = False
        yield
        self.pending = ()
        self.version += 1
        self._whole = True

    def _sweep(self, terms: Sequence[Term]) -> None:
        self.version += 1
        for start in range(0, len(terms), Sweeper.most_terms):
            self._host.sweep(terms[start : start + Sweeper.most_terms])


def _added_on_cards(term: Term) -> bool:
    """Whether a term is added as weights pass: one that moves all along the pooled direction."""
    direction = term.direction
    return isinstance(direction, Direction) and direction.pooled and direction.support == EVERYWHERE
