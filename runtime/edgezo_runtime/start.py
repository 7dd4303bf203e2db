"""What a run begins with beside its base: rows of a matrix, fitted before the first step.

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
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.errors import InputError

FILE = "start.safetensors"
_ROWS = "rows"


@dataclass(frozen=True)
class Start:
    """Rows of a matrix, perhaps of its bias too, and their first values.

    Attributes:
        rows: which rows, (rows,) int64.
        values: what they begin with, by the parameter's name, float32: (rows, width) of a matrix,
            (rows,) of a bias.
    """

    rows: np.ndarray
    values: Mapping[str, np.ndarray]

    def put(self, name: str, array: Any, dtype: dtypes.Dtype, xp: Any) -> None:
        """Writes the rows of the parameter `name` into its `array`, of the array module `xp`."""
        array[xp.asarray(self.rows)] = xp.asarray(dtypes.from_float32(self.values[name], dtype))

    @property
    def digest(self) -> str:
        """SHA-256 of the file that `write` makes."""
        return safetensors_file.digest(self._tensors())

    def write(self, run: Path) -> None:
        """Writes it into the run's folder."""
        safetensors_file.write(run / FILE, self._tensors())

    def describe(self) -> dict[str, Any]:
        """Returns what a journal's header says of it."""
        return {"parameters": [*self.values], "rows": len(self.rows), "sha256": self.digest}

    def _tensors(self) -> list[tuple[str, dtypes.Dtype, np.ndarray]]:
        fitted = [(name, dtypes.FLOAT32, values) for name, values in self.values.items()]
        return [*fitted, (_ROWS, dtypes.INT64, self.rows)]


def restore(header: Mapping[str, Any], run: Path, bundle: Bundle) -> Start | None:
    """Returns what the run of a journal began with, from its folder; None if that is its base.

    Args:
        header: the journal's.
        run: the run's folder.
        bundle: the base.

    Raises:
        InputError: the file is missing, or not what the run began with.
    """
    told = header.get("start")
    if told is None:
        return None
    path = run / FILE
    if not path.is_file():
        raise InputError(f"{path} is missing, which the run began with: restore it")
    shapes = {parameter.name: parameter.shape for parameter in bundle.manifest.stored}
    names, rows = [str(name) for name in told["parameters"]], np.empty(int(told["rows"]), np.int64)
    for name in names:
        if name not in shapes:
            raise InputError(f"the run began with rows of {name}, which its base does not have")
    values = {name: np.empty((len(rows), *shapes[name][1:]), np.float32) for name in names}
    if safetensors_file.read_into(path, {**values, _ROWS: rows}) != told["sha256"]:
        raise InputError(f"{path} is not what the run began with: it was changed or damaged")
    return Start(rows, values)
