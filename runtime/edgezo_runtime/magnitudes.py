"""Masks by the size of the weights: exact order statistics and packed bits, piece by piece."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.devices import Device

_CHUNK = 1 << 20
_HALF = 16


def thresholds(arena: Arena, share: float, out: Any) -> None:
    """Writes for each tensor the size that a `share` of its weights do not exceed to `out`.

    It is the size of one of its weights, found by two counts of half its bits each: nothing is
    sorted or copied.
    """
    arena.settle()
    for place, parameter in enumerate(arena.parameters):
        flat = arena.views[parameter.name].reshape(-1)
        wanted = math.ceil(share * parameter.size)
        out[place] = _smallest(arena.device, flat, wanted) if wanted else -1.0


def _smallest(device: Device, flat: Any, wanted: int) -> Any:
    """Returns the size that `wanted` of the weights do not exceed."""
    xp = device.xp
    counts = np.zeros(1 << _HALF, np.int64)
    for bits in _sizes(xp, flat):
        counts += device.host(xp.bincount(bits >> _HALF, minlength=counts.size))
    high = int(np.searchsorted(np.cumsum(counts), wanted))
    wanted -= int(counts[:high].sum())
    counts[:] = 0
    for bits in _sizes(xp, flat):
        low = bits[bits >> _HALF == high] & 0xFFFF
        counts += device.host(xp.bincount(low, minlength=counts.size))
    low = int(np.searchsorted(np.cumsum(counts), wanted))
    return np.uint32(high << _HALF | low).view(np.float32)


def _sizes(xp: Any, flat: Any) -> Any:
    """Yields the bits of |w|, which are in the order of |w|, as integers."""
    for start in range(0, flat.size, _CHUNK):
        values = flat[start : start + _CHUNK].astype(np.float32)
        yield (values.view(xp.uint32) & 0x7FFFFFFF).astype(xp.int64)


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
