"""A loss that came as an ONNX file: read, and tried on what the model gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from edgezo_export.onnx_reader import read_onnx, reason_of
from edgezo_export.plain_session import session_of
from edgezo_export.random_operators import check_repeatable
from edgezo_export.row_axes import ROWS, check_numbers
from edgezo_runtime.errors import InputError


def read_loss(path: Path, opset: int) -> ir.Model:
    """Returns the loss at `path` in opset `opset`, for any number of rows.

    Raises:
        InputError: it is none.
    """
    loss = read_onnx(path)
    own = loss.opset_imports.get("", opset)
    if own != opset:
        try:
            proto = version_converter.convert_version(onnx.load_model(path), opset)
        except Exception as error:
            raise InputError(
                f"{path} has opset {own}, the model {opset}, and cannot be converted: "
                f"write the loss with opset {opset}"
            ) from error
        loss = ir.from_proto(proto)
    if len(loss.graph.inputs) != 2 or len(loss.graph.outputs) != 1:
        raise InputError(f"{path} must take two inputs, output and targets, and give one loss")
    check_repeatable(loss, path)
    for value in loss.graph.inputs:
        check_numbers(value, path)
    output, targets = loss.graph.inputs
    targets.shape = ir.Shape([ROWS, *list(targets.shape or [])[1:]])
    output.shape = output.shape and ir.Shape([ROWS, *list(output.shape)[1:]])
    for node in loss.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    return loss


def gives_one(loss: ir.Model, path: Path, output: str, sample: np.ndarray) -> bool:
    """Runs the loss of `path` alone; returns whether it gives one for all rows.

    Args:
        loss: from `read_loss`.
        path: named in errors.
        output: the name of what it judges.
        sample: what that holds, (rows, ...).

    Raises:
        InputError: it does not take that, or gives neither one loss nor one for each row.
    """
    judged, targets = loss.graph.inputs
    assert targets.dtype is not None and targets.shape is not None
    drawn = random_targets(targets.dtype.numpy(), list(targets.shape), sample)
    try:
        session = session_of(path, graph=ir.to_proto(loss).SerializeToString())
        shape = session.run(None, {judged.name: sample, targets.name: drawn})[0].shape
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise InputError(
            f"the loss {path} must take output {output!r}, {_described(sample)}, and targets, of "
            f"which {_described(drawn)} were tried: {reason_of(error)}"
        ) from error
    if math.prod(shape) not in (1, len(sample)):
        raise InputError(wrong_shape(path, shape, len(sample)))
    return math.prod(shape) == 1


def wrong_shape(loss: Path | str, shape: Sequence[int], rows: int) -> str:
    """Returns what is told of a loss whose `shape` for so many `rows` is of no use."""
    return (
        f"the loss {loss} gives shape {list(shape)} for {rows} rows: it must give one loss, or one "
        "for each row"
    )


def random_targets(dtype: np.dtype, shape: Sequence[object], output: np.ndarray) -> np.ndarray:
    """Returns targets for the rows of `output`.

    Args:
        dtype: whole numbers are classes.
        shape: what a graph takes; dimensions behind the rows that are free are those of `output`.
        output: (rows, ...).
    """
    sizes = [len(output)]
    for axis, dim in enumerate(shape[1:], 1):
        free = output.shape[axis] if axis < output.ndim else 1
        sizes.append(dim if isinstance(dim, int) else free)
    generator = np.random.Generator(np.random.Philox(9))
    if dtype.kind in "iu":
        classes = output.shape[1] if output.ndim > 1 else 2
        return generator.integers(0, classes, sizes).astype(dtype)
    return generator.standard_normal(sizes).astype(dtype)


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
