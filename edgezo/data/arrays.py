"""Rows of arrays: an `.npz` file, or JSON Lines whose columns are numbers and lists of them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edgezo.data.rows import listed, place_of, quoted, read_items
from edgezo_runtime.batch import ANSWERS
from edgezo_runtime.bundle import Port
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import sha256

#: The dimension of a port that counts rows.
ROWS = "rows"


@dataclass(frozen=True)
class ArrayRows:
    """Columns of arrays, one row behind another, and where they came from.

    Attributes:
        columns: by name, (rows, ...); of an `.npz` file, inputs that all rows share have no rows.
        places: how errors name each row; empty where rows have no lines of their own.
        path: the file, or None for arrays given in memory.
        sha256: of the file's bytes, or of the arrays in memory.
        lists: whether the columns are lists with one entry a row, as JSON has them.
    """

    columns: Mapping[str, Any] = field(repr=False)
    places: tuple[str, ...] = field(repr=False)
    path: Path | None
    sha256: str
    lists: bool = False

    def place(self, index: int) -> str:
        """Returns the words by which errors name row `index`."""
        if self.places:
            return self.places[index]
        return f"row {index} of {self.path or 'the data'}"

    def row(self, index: int) -> dict[str, Any]:
        """Returns the entries of row `index`, but not what all rows share."""
        count = len(self.answers()[1])
        columns = {n: c for n, c in self.columns.items() if np.ndim(c) and len(c) == count}
        return {name: column[index] for name, column in columns.items()}

    def column(self, name: str) -> Any:
        """Returns a column; raises InputError if there is none."""
        if name not in self.columns:
            raise InputError(
                f"{self.path or 'the data'} has no {quoted(name)}, which the model takes; "
                f"it has {listed(self.columns) or 'nothing'}"
            )
        return self.columns[name]

    def answers(self) -> tuple[str, Any]:
        """Returns the name of the column with the right answers, and the column."""
        name = next((name for name in ANSWERS if name in self.columns), None)
        if name is None:
            raise InputError(
                f'{self.path or "the data"} has neither "label" nor "target"; '
                f"it has {listed(self.columns) or 'nothing'}"
            )
        return name, self.columns[name]


def read_arrays(path: Path | str) -> ArrayRows:
    """Reads the `.npz` or JSONL file at `path`.

    Raises:
        InputError: the file is missing or damaged, or its rows have different columns.
    """
    path = Path(path)
    if path.suffix != ".npz":
        return _read_lines(path)
    try:
        with path.open("rb") as file:
            archive = zipfile.is_zipfile(file)
        if not archive:
            raise InputError(
                f"data file {path} is not an .npz file, or not all of one: write it with "
                "numpy.savez, or call a file of JSON Lines .jsonl"
            )
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name: _plain(arrays, name, path) for name in arrays.files}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"data file {path} does not exist; give an .npz or JSONL file") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"data file {path} cannot be read: {reason}") from error
    except Exception as error:  # zlib.error and what else a damaged archive raises
        raise InputError(f"data file {path} is damaged: {error}") from error
    return ArrayRows(columns, (), path, sha256(path))


def _plain(arrays: Any, name: str, path: Path) -> np.ndarray:
    """Returns an array of an archive."""
    try:
        return arrays[name]
    except ValueError as error:  # objects, or a damaged header
        raise InputError(
            f"data file {path}: {quoted(name)} is damaged or of objects; give plain arrays of "
            "numbers or text"
        ) from error


def arrays_from(columns: Mapping[str, ArrayLike]) -> ArrayRows:
    """Returns arrays given in memory, (rows, ...) each."""
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return ArrayRows(arrays, (), None, digest.hexdigest())


def stacked(rows: ArrayRows, port: Port, name: str) -> np.ndarray:
    """Returns the column `name` as the port takes it, but with the rows first.

    Args:
        rows: the data.
        port: what the graph takes; a port without rows gives one array for all of them.
        name: of the column.

    Returns:
        (rows, ...) in the port's dtype, C-contiguous; without rows where the port has none.

    Raises:
        InputError: the column is missing, or holds values of another type, shape or range.
    """
    column = rows.column(name)
    row_shape = tuple(dim for dim in port.shape if dim != ROWS)
    shared = ROWS not in port.shape
    if not rows.lists:
        shape = row_shape if shared else (None, *row_shape)
        array = _checked(np.asarray(column), port, name, str(rows.path or "the data"))
        _check_shape(array.shape, shape, name, str(rows.path or "the data"))
        return np.ascontiguousarray(array)
    values = [_row(value, port, name, rows.place(i)) for i, value in enumerate(column)]
    for index, value in enumerate(values):
        _check_shape(value.shape, row_shape, name, rows.place(index))
        if value.shape != values[0].shape:
            raise InputError(
                f"{rows.place(index)}: {quoted(name)} has shape {list(value.shape)}, but "
                f"{rows.place(0)} has {list(values[0].shape)}; pad the rows to one shape"
            )
        if shared and not np.array_equal(value, values[0]):
            raise InputError(
                f"{rows.place(index)}: {quoted(name)} differs from {rows.place(0)}, but the model "
                "takes one for all rows"
            )
    return values[0] if shared else np.stack(values)


def _read_lines(path: Path) -> ArrayRows:
    items, lines, digest = read_items(path)
    if not items:
        raise InputError(f"data file {path} has no rows; give one JSON object per line")
    places = tuple(place_of(path, line) for line in lines)
    for item, place in zip(items, places, strict=True):
        if item.keys() != items[0].keys():
            odd = sorted(item.keys() ^ items[0].keys())
            raise InputError(
                f"{place}: only one of it and line {lines[0]} has {listed(odd)}; "
                "give every row the same columns"
            )
    columns = {name: [item[name] for item in items] for name in items[0]}
    return ArrayRows(columns, places, path, digest, lists=True)


def _row(value: object, port: Port, name: str, place: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{place}: {quoted(name)} is ragged: give lists of one length") from error
    return _checked(array, port, name, place)


def _checked(array: np.ndarray, port: Port, name: str, place: str) -> np.ndarray:
    """Returns `array` in the port's dtype, if no value changes by that but in its last digits."""
    dtype = np.dtype(port.dtype)
    large = f"{place}: {quoted(name)} holds NaN, infinity or a number too large"
    beyond = f"{place}: {quoted(name)} holds numbers beyond {port.dtype}"
    if array.dtype == object and all(type(value) in (int, float) for value in array.flat):
        if dtype.kind in "iu":
            raise InputError(beyond)
        try:
            array = array.astype(np.float64)  # integers of more than 64 bits
        except OverflowError as error:
            raise InputError(large) from error
    takes = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[dtype.kind]
    if array.dtype.kind not in takes and array.size:
        raise InputError(
            f"{place}: {quoted(name)} holds {_kind(array)}, the model takes {port.dtype}"
        )
    with np.errstate(over="ignore"):
        found = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError(large)
    if dtype.kind in "iu" and not np.array_equal(found, array):
        raise InputError(beyond)
    return found


def _kind(array: np.ndarray) -> str:
    names = {"f": "fractions", "i": "whole numbers", "u": "whole numbers", "b": "true or false"}
    return names.get(array.dtype.kind, "something that is no number")


def _check_shape(
    found: tuple[int, ...], wanted: Sequence[int | str | None], name: str, place: str
) -> None:
    fits = len(found) == len(wanted) and all(
        not isinstance(b, int) or a == b for a, b in zip(found, wanted, strict=True)
    )
    if not fits:
        shown = ", ".join("rows" if dim is None else str(dim) for dim in wanted)
        raise InputError(
            f"{place}: {quoted(name)} has shape {list(found)}, the model takes [{shown}]"
        )
