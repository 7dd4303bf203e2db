"""What a batch gives a graph, checked against what the graph takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.bundle import Port
from edgezo_runtime.errors import InputError

_COUNTED = {"rows": "rows", "batch": "rows", "answers": "answers"}  # by an axis's name


class Inputs:
    """The data inputs of a graph.

    Args:
        ports: as a manifest names them.
    """

    def __init__(self, ports: Sequence[Port]) -> None:
        self._names = frozenset(port.name for port in ports)
        self._counted = [
            (port.name, axis, _COUNTED[dim])
            for port in ports
            for axis, dim in enumerate(port.shape)
            if isinstance(dim, str) and dim in _COUNTED
        ]

    def of(self, batch: BaseBatch) -> dict[str, np.ndarray]:
        """Returns what `batch` gives the graph, by name.

        Raises:
            InputError: it lacks an input, gives one that is no array, or has no rows or answers, or
                not as many in one input as in another.
        """
        feeds = batch.feeds()
        if not feeds.keys() >= self._names:
            lacking = ", ".join(sorted(self._names - feeds.keys()))
            raise InputError(
                f"the batch lacks {lacking}, which the model takes; it has {', '.join(feeds)}"
            )
        for name in self._names:
            if not isinstance(feeds[name], np.ndarray):
                kind = type(feeds[name]).__name__
                raise InputError(f"the batch's {name} is of type {kind}: give a NumPy array")
        sizes: dict[str, tuple[int, str]] = {}
        for name, axis, what in self._counted:
            shape = feeds[name].shape
            if axis >= len(shape):
                raise InputError(
                    f"the batch's {name} has shape {list(shape)}, whose axis {axis} should count "
                    f"{what}"
                )
            size, other = sizes.setdefault(what, (shape[axis], name))
            if shape[axis] != size:
                raise InputError(
                    f"the batch has {size} {what} of {other} and {shape[axis]} of {name}: give as "
                    "many of each"
                )
            if not size:
                raise InputError(f"the batch has no {what}: give at least one")
        return feeds
