"""What a run begins with beside its base: rows of one matrix, fitted before the first step.

They are the run's own, as an adapter's first values are: the run folder holds them, and the
journal's header their checksum, so that a replay needs neither data nor forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, safetensors_file
from edgezo_runtime.errors import InputError

FILE = "start.safetensors"
_ROWS = "rows"


@dataclass(frozen=True)
class Start:
    """Rows of a matrix and their first values.

    Attributes:
        parameter: the matrix.
        rows: which of its rows, (rows,) int64.
        values: what they begin with, (rows, width) float32.
    """

    parameter: str
    rows: np.ndarray
    values: np.ndarray

    def put(self, matrix: Any, dtype: dtypes.Dtype, xp: Any) -> None:
        """Writes the rows into `matrix`, of the array module `xp`."""
        matrix[xp.asarray(self.rows)] = xp.asarray(dtypes.from_float32(self.values, dtype))

    @property
    def digest(self) -> str:
        """SHA-256 of the file that `write` makes."""
        return safetensors_file.digest(self._tensors())

    def write(self, run: Path) -> None:
        """Writes it into the run's folder."""
        safetensors_file.write(run / FILE, self._tensors())

    def describe(self) -> dict[str, Any]:
        """Returns what a journal's header says of it."""
        return {"parameter": self.parameter, "rows": len(self.rows), "sha256": self.digest}

    def _tensors(self) -> list[tuple[str, dtypes.Dtype, np.ndarray]]:
        return [
            (self.parameter, dtypes.FLOAT32, self.values),
            (_ROWS, dtypes.INT64, self.rows),
        ]


def restore(header: Mapping[str, Any], run: Path, widths: Mapping[str, int]) -> Start | None:
    """Returns what the run of a journal began with, from its folder; None if that is its base.

    Args:
        header: the journal's.
        run: the run's folder.
        widths: of the base's matrices.

    Raises:
        InputError: the file is missing, or not what the run began with.
    """
    told = header.get("start")
    if told is None:
        return None
    path = run / FILE
    if not path.is_file():
        raise InputError(f"{path} is missing, which the run began with: restore it")
    name, count = str(told["parameter"]), int(told["rows"])
    if name not in widths:
        raise InputError(f"the run began with rows of {name}, which its base does not have")
    rows, values = np.empty(count, np.int64), np.empty((count, widths[name]), np.float32)
    if safetensors_file.read_into(path, {name: values, _ROWS: rows}) != told["sha256"]:
        raise InputError(f"{path} is not what the run began with: it was changed or damaged")
    return Start(name, rows, values)
