"""Which axis of an ONNX file's inputs counts rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgezo_runtime.errors import InputError

ROWS = "rows"
_NUMBERS = {
    ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BOOL,
    ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
    ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
}  # fmt: skip
_LARGEST_ROW = 1 << 28  # numbers: random ones take a gigabyte


@dataclass(frozen=True)
class ArrayInput:
    """One input of an ONNX file.

    Attributes:
        name: its name.
        dtype: its NumPy dtype.
        shape: a number, a name or `ROWS` for each dimension; without `ROWS` it is the same for
            all rows of a batch.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str, ...]

    @property
    def axis(self) -> int | None:
        """The axis that counts rows."""
        return self.shape.index(ROWS) if ROWS in self.shape else None


def array_inputs(model: ir.Model, output: ir.Value, path: Path) -> tuple[ArrayInput, ...]:
    """Returns the inputs of `model`, with the axis of each that counts rows.

    That is the one named like the first of `output`, else the first whose size is free. Where all
    first axes are 1, the file was made for one row, and they are taken to be free.

    Raises:
        InputError: an input is no array of numbers.
    """
    shapes = [_shape(value, path) for value in model.graph.inputs]
    named = _dimension(output.shape[0]) if output.shape else None
    fixed = not any(isinstance(dim, str) for shape in shapes for dim in shape)
    inputs = []
    for value, shape in zip(model.graph.inputs, shapes, strict=True):
        free = [i for i, dim in enumerate(shape) if isinstance(dim, str)]
        axis = free[0] if free else None
        if isinstance(named, str) and named in shape:
            axis = shape.index(named)
        elif fixed and shape[:1] == (1,):
            axis = 0
        assert value.dtype is not None and value.name is not None
        dims = tuple(ROWS if i == axis else dim for i, dim in enumerate(shape))
        inputs.append(ArrayInput(value.name, value.dtype.numpy(), dims))
    return tuple(inputs)


def check_numbers(value: ir.Value, path: Path) -> None:
    """Raises InputError unless an input of the file at `path` takes numbers that NumPy has."""
    kind = value.type
    if not isinstance(kind, ir.TensorType):
        name = type(kind).__name__.removesuffix("Type").lower()
        raise InputError(f"input {value.name!r} of {path} is of type {name}: edgezo feeds tensors")
    if kind.dtype not in _NUMBERS:
        raise InputError(
            f"input {value.name!r} of {path} takes {kind.dtype.name.lower()}: edgezo feeds "
            "float16, float32, float64, bool and whole numbers of 8 to 64 bits"
        )


def _shape(value: ir.Value, path: Path) -> tuple[int | str, ...]:
    check_numbers(value, path)
    if value.shape is None:
        raise InputError(f"input {value.name!r} of {path} has no shape: export it with one")
    dims = list(map(_dimension, value.shape))
    if math.prod(dim for dim in dims if isinstance(dim, int)) > _LARGEST_ROW:
        raise InputError(f"input {value.name!r} of {path} has the shape {dims}, too large to try")
    return tuple(dim if dim is not None else f"{value.name}_{i}" for i, dim in enumerate(dims))


def _dimension(dim: object) -> int | str | None:
    """Returns a size, a free one's name, or None; some exporters write 0, -1 or ? for free."""
    if isinstance(dim, int):
        return dim if dim > 0 else None
    name = getattr(dim, "value", None)
    return name if isinstance(name, str) and name not in ("", "?", ROWS) else None
