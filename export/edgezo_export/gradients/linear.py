"""Reverse mode through products of matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients.tape import Tape, only
from edgezo_export.gradients.writer import dims, no_gradient, rank


def _matmul(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    left, right = node.inputs
    dy = only(cotangents)
    assert left is not None and right is not None
    left_rank, right_rank, output = rank(left), rank(right), node.outputs[0]
    if left_rank is None or right_rank is None or min(left_rank, right_rank) < 2:
        raise no_gradient(node, ", of vectors or of no known number of axes")
    output_rank = max(left_rank, right_rank)
    if tape.wants(left):
        product = tape.op("MatMul", dy, tape.swapped(right, right_rank))
        tape.give(left, _batch_sum(tape, product, output, left))
    if tape.wants(right):
        if right_rank == 2:
            x, dy = tape.rows(node, right, tape.flat(left, left), tape.flat(dy, output))
            tape.give(right, tape.swapped(tape.op("Gemm", dy, x, transA=1), 2))
        else:
            # Computed transposed: what was multiplied with is a Transpose more often than not.
            product = tape.op("MatMul", tape.swapped(dy, output_rank), left)
            product = tape.swapped(product, output_rank)
            tape.give(right, _batch_sum(tape, product, output, right))


def _batch_sum(tape: Tape, product: ir.Value, output: ir.Value, value: ir.Value) -> ir.Value:
    """Returns `product` summed over the batch axes along which `value` was broadcast."""
    batch, own = dims(output), dims(value)
    wide = None if batch is None or own is None else [*batch[:-2], *own[-2:]]
    return tape.sum_to(product, wide, value)


def _gemm(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    a, b, *rest = node.inputs
    dy = only(cotangents)
    assert a is not None and b is not None
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    flip_a = bool(node.attributes.get_int("transA", 0))
    flip_b = bool(node.attributes.get_int("transB", 0))

    def product(left: ir.Value, right: ir.Value, left_flip: bool, right_flip: bool) -> ir.Value:
        flips = {"transA": int(left_flip), "transB": int(right_flip)}
        return tape.op("Gemm", left, right, alpha=alpha, **flips)

    if tape.wants(a):
        da = product(b, dy, flip_b, True) if flip_a else product(dy, b, False, not flip_b)
        tape.give(a, da)
    if tape.wants(b):
        x, dy_rows = tape.rows(node, b, tape.swapped(a, 2) if flip_a else a, dy)
        db = product(dy_rows, x, True, False) if flip_b else product(x, dy_rows, True, False)
        tape.give(b, db)
    if rest and rest[0] is not None and tape.wants(rest[0]):
        scaled = dy if beta == 1 else tape.op("Mul", dy, tape.number(beta))
        tape.give(rest[0], tape.sum_to(scaled, dims(node.outputs[0]), rest[0]))


RULES: Mapping[str, Any] = {"MatMul": _matmul, "Gemm": _gemm}
