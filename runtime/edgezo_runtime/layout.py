"""How what crosses the cut between frozen and trained layers falls into rows.

The graph names the axes of a value that count rows and positions. What stands at a row's real
positions belongs to that row, whatever batch it is in and however much padding it has there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime.bundle import Port
from edgezo_runtime.errors import InputError

MASK = "attention_mask"
_ROWS, _LENGTH = "rows", "length"
_BOTH = "rows*length"  # positions, row by row
_NAMES = {"batch": _ROWS}  # as the manifest of a graph of text says it
_DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


@dataclass(frozen=True)
class Value:
    """One value that crosses the cut.

    Attributes:
        name: the graph's.
        dtype: of its elements.
        axes: what each counts, or its fixed size.
    """

    name: str
    dtype: np.dtype
    axes: tuple[int | str, ...]

    def shape(self, rows: int, length: int) -> tuple[int, ...]:
        """Returns its shape in a batch."""
        sizes = {_ROWS: rows, _LENGTH: length, _BOTH: rows * length}
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    def size(self, length: int) -> int:
        """Returns how many elements belong to a row of `length` real positions."""
        fixed = math.prod(axis for axis in self.axes if isinstance(axis, int))
        return fixed if _LENGTH not in self._single() else fixed * length

    def by_row(self, array: np.ndarray, rows: int, length: int) -> np.ndarray:
        """Returns `array`, of `shape`, seen as (rows, length, ...); length 1 if it has none."""
        axes = self._single()
        sizes = {_ROWS: rows, _LENGTH: length}
        array = array.reshape([axis if isinstance(axis, int) else sizes[axis] for axis in axes])
        if _LENGTH not in axes:
            array, axes = array[..., None], [*axes, _LENGTH]
        return np.moveaxis(array, [axes.index(_ROWS), axes.index(_LENGTH)], [0, 1])

    def _single(self) -> list[int | str]:
        """Returns the axes with one that counts two things as two."""
        parts = ([_ROWS, _LENGTH] if axis == _BOTH else [axis] for axis in self.axes)
        return [axis for part in parts for axis in part]


class Layout:
    """The rows of the batches that a prefix runs on.

    Args:
        ports: the graph's data inputs.
        inputs: what the prefix takes, as ONNX Runtime describes it, by name.
        read: those of them whose content it reads, and not their sizes alone.
        outputs: what crosses the cut, as ONNX Runtime describes it.

    Raises:
        InputError: something does not fall into rows.

    Attributes:
        values: what crosses the cut.
    """

    def __init__(
        self,
        ports: Sequence[Port],
        inputs: Mapping[str, Any],
        read: Iterable[str],
        outputs: Sequence[Any],
    ) -> None:
        read = {*read, MASK}
        shapes = {
            port.name: tuple(_NAMES.get(str(axis), axis) for axis in port.shape) for port in ports
        }
        self._inputs = {name: axes for name, axes in shapes.items() if name in read}
        known = {_ROWS, _LENGTH} if MASK in self._inputs else {_ROWS}
        for name, axes in self._inputs.items():
            odd = [axis for axis in axes if isinstance(axis, str) and axis not in known]
            if odd:
                raise _unfit(name, f"is read, whose axis {odd[0]!r} has padding that no mask tells")
        own: dict[str, str] = {}  # the graph's name of what an axis counts
        for name, axes in shapes.items():
            if name in inputs:
                pairs = zip(axes, inputs[name].shape, strict=True)
                own |= {axis: str(size) for axis, size in pairs if axis in known}
        counted = {size: axis for axis, size in own.items()}
        if len(own) == 2:
            counted[f"{own[_ROWS]}*{own[_LENGTH]}"] = _BOTH
        self.values = tuple(_value(node, counted) for node in outputs)

    def sizes(self, feeds: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Returns how many rows a batch has, and how many positions each with its padding."""
        if MASK in self._inputs:
            rows, length = feeds[MASK].shape
            return rows, length
        axes = {name: axes.index(_ROWS) for name, axes in self._inputs.items() if _ROWS in axes}
        return next(feeds[name].shape[axis] for name, axis in axes.items()), 1

    def lengths(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the real positions of each row, up to its last token, (rows,) int64."""
        rows, length = self.sizes(feeds)
        if MASK not in self._inputs:
            return np.ones(rows, np.int64)
        real = feeds[MASK] != 0
        return np.where(real.any(axis=1), length - real[:, ::-1].argmax(axis=1), 1)

    def keys(self, feeds: Mapping[str, np.ndarray]) -> list[bytes]:
        """Returns 16 bytes for each row that say what the prefix reads of it."""
        keys = []
        for row, length in enumerate(self.lengths(feeds)):
            digest = hashlib.blake2b(digest_size=16)
            parts = {_ROWS: row, _LENGTH: slice(length)}
            for name, axes in self._inputs.items():
                own = feeds[name][tuple(parts.get(str(axis), slice(None)) for axis in axes)]
                digest.update(f"{name} {own.dtype} {own.shape}".encode() + own.tobytes())
            keys.append(digest.digest())
        return keys

    def size(self, length: int) -> int:
        """Returns how many elements belong to a row of `length` real positions."""
        return sum(value.size(length) for value in self.values)

    def take(
        self, arrays: Sequence[np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """Returns what belongs to each row of a batch: `size` elements of all values, flat.

        Args:
            arrays: the values of the batch.
            feeds: the batch.

        Raises:
            InputError: a value does not have the shape that the graph tells.
        """
        rows, length = self.sizes(feeds)
        for value, array in zip(self.values, arrays, strict=True):
            if array.shape != value.shape(rows, length):
                raise _unfit(value.name, f"has shape {list(array.shape)} in a batch of {rows} rows")
        pairs = zip(self.values, arrays, strict=True)
        seen = [value.by_row(array, rows, length) for value, array in pairs]
        return [
            np.concatenate([view[row, :real].reshape(-1) for view in seen])
            for row, real in enumerate(self.lengths(feeds))
        ]

    def give(
        self, pieces: Sequence[np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns the values of a batch, made of what `take` gave for each of its rows.

        Padding holds what the row's last position does, which the layers above can compute with.
        """
        rows, length = self.sizes(feeds)
        lengths = self.lengths(feeds)
        starts = [0] * rows
        values: dict[str, np.ndarray] = {}
        for value in self.values:
            array = np.empty(value.shape(rows, length), value.dtype)
            view = value.by_row(array, rows, length)
            for row, piece in enumerate(pieces):
                stop = starts[row] + value.size(int(lengths[row]))
                own = piece[starts[row] : stop].reshape(-1, *view.shape[2:])
                view[row, : len(own)] = own
                view[row, len(own) :] = own[-1]
                starts[row] = stop
            values[value.name] = array
        return values


def _value(node: Any, counted: Mapping[str, str]) -> Value:
    """Returns a value of the cut; raises InputError if it does not fall into rows."""
    if node.type not in _DTYPES:
        raise _unfit(node.name, f"is {node.type}")
    axes: list[int | str] = []
    for size in node.shape:
        if not isinstance(size, int) and size not in counted:
            raise _unfit(node.name, f"has shape {node.shape}")
        axes.append(size if isinstance(size, int) else counted[size])
    value = Value(node.name, _DTYPES[node.type], tuple(axes))
    names = [axis for axis in value._single() if isinstance(axis, str)]
    if _ROWS not in names or len(set(names)) < len(names):
        raise _unfit(node.name, f"has shape {node.shape}")
    return value


def _unfit(name: str, what: str) -> InputError:
    return InputError(
        f"the frozen layers' outputs cannot be kept row by row, because {name} {what}: leave "
        "--prefix-cache out, or tune other layers"
    )
