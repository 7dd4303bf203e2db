"""Which axis of an ONNX file's inputs counts rows, tried out with inputs that fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgezo_runtime.errors import InputError
from edgezo_runtime.ort import onnxruntime

ROWS = "rows"
#: Tried in turn for the sizes that a file leaves free, and as bounds of whole numbers.
_SIZES = (64, 32, 16, 8, 512, 224, 1024)
_BOUNDS = (127, 32, 2)  # the first fits int8 too
_SEEDS = range(3)
_NUMBERS = {
    ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BOOL,
    ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
    ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
}  # fmt: skip
_MOST_FLAGS = 4  # all combinations of so many are tried
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


@dataclass(frozen=True)
class Probe:
    """Sizes and values that an ONNX file accepts.

    Attributes:
        inputs: the file's inputs.
        size: of every free dimension.
        bound: whole numbers are drawn below it.
        shared: the values of whole numbers that are the same for all rows.
        scale: standard deviation of fractions.
        least: whole numbers are drawn from it on.
        flags: the values of inputs that are true or false; the others of them are drawn.
    """

    inputs: tuple[ArrayInput, ...]
    size: int
    bound: int
    shared: int
    scale: float = 1.0
    least: int = 0
    flags: Mapping[str, bool] = field(default_factory=dict)

    def draw(self, rows: int, seed: int) -> dict[str, np.ndarray]:
        """Returns random inputs of `rows` rows."""
        generator = np.random.Generator(np.random.Philox(seed))
        return {value.name: self._value(value, rows, generator) for value in self.inputs}

    def _value(self, value: ArrayInput, rows: int, generator: np.random.Generator) -> np.ndarray:
        free = {dim: rows if dim == ROWS else self.size for dim in value.shape}
        shape = [dim if isinstance(dim, int) else free[dim] for dim in value.shape]
        if value.dtype.kind == "f":
            drawn = self.scale * generator.standard_normal(shape)
        elif value.name in self.flags:
            drawn = np.full(shape, self.flags[value.name])
        elif value.dtype.kind == "b":
            drawn = generator.integers(0, 2, shape)
        elif value.axis is None:
            return np.full(shape, self.shared, value.dtype)
        else:
            drawn = generator.integers(self.least, self.bound, shape)
        return np.asarray(drawn, value.dtype)  # a single number may be no array

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields inputs of one row from several seeds."""
        for seed in _SEEDS:
            yield self.draw(1, seed)

    def corners(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields inputs of one row that hold the least and the largest whole number alone."""
        if any(value.axis is not None and value.dtype.kind in "iu" for value in self.inputs):
            yield replace(self, bound=self.least + 1).draw(1, 0)
            yield replace(self, least=self.bound - 1).draw(1, 0)


def session_of(path: Path, optimised: bool = True) -> Any:
    """Returns a plain session of a file; raises InputError with ONNX Runtime's reason."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise InputError(f"ONNX Runtime cannot load {path}: {_line(error)}") from error


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


def find_probe(
    model: ir.Model, inputs: tuple[ArrayInput, ...], output: str, path: Path, session: Any
) -> tuple[Probe, np.ndarray]:
    """Finds inputs that the file at `path` accepts with finite output.

    Whole numbers are accepted up to a bound only if the file has run with the largest below it.

    Returns:
        What draws them, and the outputs for its samples, (samples, ...).

    Raises:
        InputError: none of those tried; ONNX Runtime's reason for the last is quoted.
    """
    if not any(value.axis is not None for value in inputs):
        raise InputError(f"no input of {path} has an axis for rows: export it with a batch axis")
    reason = "its output is not finite"
    sizes = (
        _SIZES if any(isinstance(d, str) and d != ROWS for i in inputs for d in i.shape) else [1]
    )
    for size, bound, shared in itertools.product(sizes, _BOUNDS, [1, *_whole_numbers(model)]):
        probe = Probe(inputs, size, bound, shared)
        try:
            found = [session.run([output], feeds)[0] for feeds in probe.samples()]
            for feeds in probe.corners():
                session.run([output], feeds)
        except Exception as error:
            reason = _line(error)
            continue
        for one in found:
            _check_output(one, output, path)
        sample = _stacked(found, output)
        if np.isfinite(sample).all():
            return probe, sample
    raise InputError(f"{path} takes none of the random inputs that were tried: {reason}")


def _check_output(found: Any, output: str, path: Path) -> None:
    """Raises InputError unless what an `output` gives is one row of fractions."""
    if not isinstance(found, np.ndarray):
        raise InputError(f"output {output!r} of {path} is no tensor, which a loss could judge")
    if found.shape[:1] != (1,) or found.dtype.kind != "f":
        raise InputError(
            f"output {output!r} of {path} is {found.dtype} {list(found.shape)} for one row: "
            "edgezo needs fractions, and a first axis that counts rows"
        )


def probes_like(probe: Probe, model: ir.Model) -> Iterator[Probe]:
    """Yields `probe` with other scales, sizes, shared values and flags: they may reach others."""
    free = any(isinstance(dim, str) and dim != ROWS for v in probe.inputs for dim in v.shape)
    shared = any(value.axis is None and value.dtype.kind in "iu" for value in probe.inputs)
    sizes = _SIZES if free else [probe.size]
    numbers = [1, 0, *_whole_numbers(model)] if shared else [1]
    for flags, scale, size, number in itertools.product(
        _flags(probe.inputs), (1.0, 0.01), sizes, numbers
    ):
        yield replace(probe, size=size, shared=number, scale=scale, flags=flags)


def _flags(inputs: Sequence[ArrayInput]) -> Iterator[dict[str, bool]]:
    """Yields values for the first inputs that are true or false, first of all none."""
    yield {}
    names = [value.name for value in inputs if value.dtype.kind == "b"][:_MOST_FLAGS]
    if names:
        for values in itertools.product((True, False), repeat=len(names)):
            yield dict(zip(names, values, strict=True))


def rows_one_by_one(
    session: Any, probe: Probe, feeds: Mapping[str, np.ndarray], output: str
) -> np.ndarray:
    """Returns the outputs of each row run alone, (rows, ...)."""
    rows = next(feeds[v.name].shape[v.axis] for v in probe.inputs if v.axis is not None)
    found = [session.run([output], _row(probe, feeds, row))[0] for row in range(rows)]
    return _stacked(found, output)


def _stacked(rows: Sequence[np.ndarray], output: str) -> np.ndarray:
    """Returns (rows, ...) of single ones; raises InputError where their shapes differ."""
    for row in rows:
        if row.shape != rows[0].shape:
            raise InputError(
                f"output {output!r} has shape {list(rows[0].shape)} for one row and "
                f"{list(row.shape)} for another: edgezo needs one shape for all rows"
            )
    return np.concatenate(rows)


def _row(probe: Probe, feeds: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {
        value.name: feeds[value.name]
        if value.axis is None
        else np.ascontiguousarray(np.take(feeds[value.name], [row], value.axis))
        for value in probe.inputs
    }


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


def _whole_numbers(model: ir.Model) -> list[int]:
    """Returns the single whole numbers that the graph compares something with."""
    found: set[int] = set()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.size != 1 or not tensor.dtype.is_integer():
            continue
        if any(use.node.op_type in ("Equal", "Less", "Greater") for use in value.uses()):
            found.add(int(tensor.numpy().reshape(-1)[0]))
    return sorted(found)[:4]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
