"""Arrays: whatever an ONNX file takes, judged by the loss that its graph computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo.data.arrays import ROWS, ArrayRows, stacked
from edgezo.data.rows import listed, quoted
from edgezo.tasks.base import BaseExample, BaseTask
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.bundle import Manifest, Port
from edgezo_runtime.errors import InputError

TARGETS = "targets"


@dataclass(frozen=True)
class ArrayExample(BaseExample):
    """One row.

    Attributes:
        inputs: each input's array without the rows' axis; what all rows share as it is.
        target: the right answer: a class, or an array.
    """

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray

    @property
    def length(self) -> int:
        """1: rows of arrays are not padded."""
        return 1


class Arrays(BaseTask):
    """The loss that the graph computes from its output and the targets.

    Args:
        manifest: of a bundle that takes arrays.

    Raises:
        InputError: the bundle takes no arrays.
    """

    name = "arrays"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self._settings = dict(manifest.task)
        ports = {port.name: port for port in manifest.inputs}
        outputs = {port.name: port for port in manifest.outputs}
        try:
            self._targets = ports.pop(TARGETS)
            self._output = outputs[str(self._settings["output"])]
            self.labels = tuple(map(str, self._settings.get("labels", ())))
            self._names = {name: index for index, name in enumerate(self.labels)}
        except (KeyError, TypeError) as error:
            raise InputError(f"the bundle's manifest has no task of arrays: {error!r}") from error
        self._inputs = ports
        self.chooses = self._targets.dtype.startswith("int") and len(self._output.shape) == 2

    def encode_rows(self, rows: ArrayRows) -> list[ArrayExample]:
        """Returns the examples of all rows, in order.

        Raises:
            InputError: an input is missing, or holds values of another type, shape or range; or a
                label is none of the bundle's.
        """
        targets = self._answers(rows)
        columns = {name: stacked(rows, port, name) for name, port in self._inputs.items()}
        for name, column in columns.items():
            if ROWS in self._inputs[name].shape and len(column) != len(targets):
                raise InputError(
                    f"{rows.path or 'the data'} has {len(column)} rows of {quoted(name)} and "
                    f"{len(targets)} answers; give one for each row"
                )
        if not len(targets):
            raise InputError(f"{rows.path or 'the data'} has no rows")
        return [
            ArrayExample(
                {
                    name: column[index] if ROWS in self._inputs[name].shape else column
                    for name, column in columns.items()
                },
                targets[index],
            )
            for index in range(len(targets))
        ]

    def collate(self, examples: Sequence[ArrayExample]) -> ArrayBatch:
        """Returns the batch of `examples`."""
        inputs = {
            name: _stack([example.inputs[name] for example in examples], port)
            for name, port in self._inputs.items()
        }
        targets = np.stack([example.target for example in examples])
        judge = RowLoss(targets, self._output.name) if self.chooses else RowLoss()
        return ArrayBatch(inputs, targets, judge)

    def right(self, examples: Sequence[ArrayExample]) -> np.ndarray:
        """Returns the right class of each example, (examples,) int64."""
        return np.array([example.target for example in examples], np.int64)

    def say(self, predictions: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns the names of the predicted classes, or their numbers."""
        return [self.labels[i] if i < len(self.labels) else str(i) for i in predictions]

    def settings(self) -> dict[str, Any]:
        """Returns the bundle's own task."""
        return self._settings

    def _answers(self, rows: ArrayRows) -> np.ndarray:
        """Returns the targets, (rows,) classes or (rows, ...) numbers."""
        name, column = rows.answers()
        if not self.chooses:
            return stacked(rows, self._targets, name)
        values = np.asarray(column, dtype=object) if rows.lists else np.asarray(column)
        if values.ndim != 1:
            raise InputError(
                f"{rows.path or 'the data'}: {quoted(name)} has shape {list(values.shape)}, "
                "the model takes one class a row"
            )
        classes = [self._class(value, rows.place(i)) for i, value in enumerate(values.tolist())]
        return np.array(classes, np.dtype(self._targets.dtype))

    def _class(self, value: object, place: str) -> int:
        if isinstance(value, str) and value in self._names:
            return self._names[value]
        count = self._output.shape[1]
        if type(value) is int and value >= 0 and (not isinstance(count, int) or value < count):
            return value
        known = f"one of {listed(self.labels)}" if self.labels else "a whole number"
        below = f" or a number from 0 to {count - 1}" if isinstance(count, int) else ""
        raise InputError(f"{place} has label {quoted(value)}; give {known}{below}")


def _stack(arrays: Sequence[np.ndarray], port: Port) -> np.ndarray:
    """Returns one array of all rows, with the rows where the graph wants them."""
    if ROWS not in port.shape:
        return arrays[0]
    return np.ascontiguousarray(np.stack(arrays, axis=port.shape.index(ROWS)))
