"""Random inputs that an ONNX file takes, found by trying."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgezo_export.onnx_reader import reason_of
from edgezo_export.row_axes import ROWS, ArrayInput
from edgezo_runtime.errors import InputError

#: Tried in turn for the sizes that a file leaves free, and as bounds of whole numbers.
_SIZES = (64, 32, 16, 8, 512, 224, 1024)
_BOUNDS = (127, 32, 2)  # the first fits int8 too
_SEEDS = range(3)
_MOST_FLAGS = 4  # all combinations of so many are tried


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
            reason = reason_of(error)
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
