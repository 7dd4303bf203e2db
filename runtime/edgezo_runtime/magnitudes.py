"""Masks by the size of the weights: exact order statistics, and packed bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.sweep import Sweeper


def thresholds(arena: Arena, share: float, out: Any) -> None:
    """Writes for each tensor the size that a `share` of its weights do not exceed to `out`.

    It is the size of one of its weights, found by two counts of half its bits each: nothing is
    sorted or copied.
    """
    arena.settle()
    for place, parameter in enumerate(arena.parameters):
        wanted = math.ceil(share * parameter.size)
        out[place] = _smallest(arena.sweeper, place, wanted) if wanted else -1.0


def _smallest(sweeper: Sweeper, place: int, wanted: int) -> Any:
    """Returns the size that `wanted` of a tensor's weights do not exceed."""
    counts = sweeper.count(place)
    upper = int(np.searchsorted(np.cumsum(counts), wanted))
    wanted -= int(counts[:upper].sum())
    lower = int(np.searchsorted(np.cumsum(sweeper.count(place, upper)), wanted))
    return np.uint32(upper << 16 | lower).view(np.float32)


def mask(arena: Arena, limits: Any, out: Any, *, above: bool) -> None:
    """Writes which weights exceed their tensor's limit, or which do not, as packed bits to `out`.

    Args:
        arena: the weights, unperturbed.
        limits: of each tensor, (tensors,) float32.
        out: (size of the index space / 8,) uint8.
        above: whether the bits of larger weights are set, or those of the others.
    """
    arena.settle()
    arena.sweeper.mask(limits, out, above)
