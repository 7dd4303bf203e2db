"""Reverse mode through operators that move, cut, join and copy elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgezo_export.gradients.tape import Tape, only
from edgezo_export.gradients.writer import Dims, dims, first, no_gradient, rank


def _reshape(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x = first(node)
    tape.give(x, tape.like(only(cotangents), x))


def _transpose(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    perm = node.attributes.get_ints("perm", [])
    if not perm:
        perm = list(range(known_rank(node)))[::-1]
    inverse = [list(perm).index(axis) for axis in range(len(perm))]
    tape.give(first(node), tape.transposed(only(cotangents), inverse))


def _expand(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x = first(node)
    tape.give(x, tape.sum_to(only(cotangents), dims(node.outputs[0]), x))


def _concat(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    axis = node.attributes.get_int("axis", 0)
    inputs = [value for value in node.inputs if value is not None]
    sizes = [_size(tape, value, axis, node) for value in inputs]
    parts = tape.ops(
        "Split",
        [only(cotangents), tape.op("Concat", *sizes, axis=0)],
        len(inputs),
        axis=axis,
    )
    for value, part in zip(inputs, parts, strict=True):
        tape.give(value, part)


def _split(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    parts = [
        tape.zeros(value) if dy is None else dy
        for value, dy in zip(node.outputs, cotangents, strict=True)
    ]
    axis = node.attributes.get_int("axis", 0)
    tape.give(first(node), tape.op("Concat", *parts, axis=axis))


def _slice(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    """Scatters onto the rows, along each axis in turn, that a range sliced alike names."""
    x, starts, ends, axes, steps = (*node.inputs, None, None)[:5]
    assert x is not None and starts is not None and ends is not None
    own, cotangent = known_rank(node), only(cotangents)
    if axes is None or axes.const_value is None:
        chosen = None if axes is not None else list(range(own))
        known = starts.const_value
        if chosen is None or known is None:
            raise no_gradient(node, ", along axes that it computes")
        chosen = chosen[: known.size]
    else:
        chosen = [int(axis) % own for axis in axes.const_value.numpy()]
    for place, axis in reversed(list(enumerate(chosen))):
        padded = _pad(tape, node, cotangent, place, axis)
        if padded is None:
            at, after = tape.constant([place]), tape.constant([place + 1])
            one = [
                tape.constant([1])
                if value is None
                else tape.cast(tape.op("Slice", value, at, after), ir.DataType.INT64)
                for value in (starts, ends, steps)
            ]
            whole = tape.op("Range", *_range_of(tape, x, axis, node))
            rows = tape.op("Slice", whole, one[0], one[1], tape.constant([0]), one[2])
            before = tape.op("Slice", tape.op("Shape", cotangent), *_bounds(tape, 0, axis))
            beyond = tape.op("Slice", tape.op("Shape", cotangent), *_bounds(tape, axis + 1, own))
            size = _size(tape, x, axis, node)
            base = tape.op("ConstantOfShape", tape.op("Concat", before, size, beyond, axis=0))
            padded = _scattered(tape, base, rows, cotangent, axis, own)
        cotangent = padded
    tape.give(x, _joined(tape, tape.take(x), cotangent, dims(x)))


def _bounds(tape: Tape, start: int, end: int) -> tuple[ir.Value, ir.Value]:
    return tape.constant([start]), tape.constant([end])


def _range_of(
    tape: Tape, value: ir.Value, axis: int, node: ir.Node
) -> tuple[ir.Value, ir.Value, ir.Value]:
    size = tape.op("Squeeze", _size(tape, value, axis, node))
    return tape.constant(0), size, tape.constant(1)


def _pad(tape: Tape, node: ir.Node, cotangent: ir.Value, place: int, axis: int) -> ir.Value | None:
    """Returns `cotangent` padded with zeros, where the graph says how much of an axis was cut."""
    numbers = [None if value is None else value.const_value for value in node.inputs[1:3]]
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    step = None if steps is None else steps.const_value
    sizes = dims(first(node))
    size = None if sizes is None else sizes[axis]
    if any(n is None for n in numbers) or (steps is not None and step is None):
        return None
    start, end = (int(n.numpy()[place]) for n in numbers if n is not None)
    stride = 1 if step is None else int(step.numpy()[place])
    if not isinstance(size, int) or stride != 1:
        return None
    start, end, _ = slice(start, end).indices(size)
    if (start, end) == (0, size):
        return cotangent
    pads = np.zeros((2, len(sizes or ())), np.int64)
    pads[:, axis] = start, size - end
    return tape.op("Pad", cotangent, tape.constant(pads.reshape(-1)))


def _joined(
    tape: Tape, before: ir.Value | None, cotangent: ir.Value, sizes: Dims | None
) -> ir.Value:
    """Returns the sum of two cotangents of one value, of which the first may be None.

    Those of two parts that make up the whole are put side by side.
    """
    if before is None:
        return cotangent
    parts = []
    for value in (before, cotangent):
        made = value.producer()
        pads = made.inputs[1] if made is not None and made.op_type == "Pad" else None
        if made is None or pads is None or pads.const_value is None or sizes is None:
            return tape.op("Add", before, cotangent)
        ends = pads.const_value.numpy().reshape(2, -1)
        (axes,) = np.nonzero(ends.any(axis=0))
        parts.append((ends[:, axes].tolist(), axes.tolist(), first(made)))
    (low, axes, left), (high, others, right) = sorted(parts, key=lambda part: part[0])
    if len(axes) == 1 and axes == others and low[0] == high[1] == [0]:
        (stop,), (start,), size = low[1], high[0], sizes[axes[0]]
        if isinstance(size, int) and size - stop == start:
            return tape.op("Concat", left, right, axis=axes[0])
    return tape.op("Add", before, cotangent)


def _gather(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x, indices = node.inputs
    assert x is not None and indices is not None
    own = known_rank(node)
    axis = node.attributes.get_int("axis", 0) % own
    rows = indices if rank(indices) == 1 else tape.op("Reshape", indices, tape.constant([-1]))
    cotangent = only(cotangents)
    if rank(indices) != 1:
        cotangent = tape.beside(cotangent, x, axis)
    tape.give(x, _scattered(tape, _base(tape, x), rows, cotangent, axis, own))


def _gather_elements(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x, indices = node.inputs
    assert x is not None
    axis = node.attributes.get_int("axis", 0)
    base, dy = _base(tape, x), only(cotangents)
    tape.give(x, tape.op("ScatterElements", base, indices, dy, axis=axis, reduction="add"))


def _base(tape: Tape, value: ir.Value) -> ir.Value:
    """Returns what to scatter a cotangent of `value` onto: the one it has so far, or zeros."""
    before = tape.take(value)
    return tape.zeros(value) if before is None else before


def _scattered(
    tape: Tape, base: ir.Value, rows: ir.Value, cotangent: ir.Value, axis: int, own: int
) -> ir.Value:
    """Returns `base` with `cotangent` added to its `rows` (n,) along `axis`."""
    column = [1] * own
    column[axis] = -1
    indices = tape.op("Reshape", rows, tape.constant(column))
    indices = tape.op("Expand", indices, tape.op("Shape", cotangent))
    return tape.op("ScatterElements", base, indices, cotangent, axis=axis, reduction="add")


def _size(tape: Tape, value: ir.Value, axis: int, node: ir.Node) -> ir.Value:
    """Returns the size of `value` along `axis`, (1,) int64."""
    return tape.size_of(value, axis % known_rank(node))


def known_rank(node: ir.Node) -> int:
    """Returns the number of axes of the first input of `node`; raises InputError if unknown."""
    found = rank(first(node))
    if found is None:
        raise no_gradient(node, ", of no known number of axes")
    return found


RULES: Mapping[str, Any] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
}
