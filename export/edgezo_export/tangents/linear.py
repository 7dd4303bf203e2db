"""Forward mode through products of matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgezo_export.tangents.tape import Tape


def _matmul(tape: Tape, node: ir.Node) -> None:
    left, right = node.inputs
    dl, dr = tape.of(left), tape.of(right)
    if dl is not None:
        tape.give(node.outputs[0], tape.op("MatMul", dl, right))
    if dr is not None:
        tape.give(node.outputs[0], tape.op("MatMul", left, dr))


def _gemm(tape: Tape, node: ir.Node) -> None:
    a, b, c = (*node.inputs, None)[:3]
    output, da, db, dc = node.outputs[0], tape.of(a), tape.of(b), tape.of(c)
    factors = {n: v for n, v in node.attributes.items() if n != "beta"}
    if da is not None:
        tape.give(output, tape.op("Gemm", da, b, **factors))
    if db is not None:
        tape.give(output, tape.op("Gemm", a, db, **factors))
    if c is not None and dc is not None:
        beta = node.attributes.get_float("beta", 1.0)
        tape.give_wide(output, dc if beta == 1 else tape.op("Mul", dc, tape.number(beta)), c)


RULES: Mapping[str, Any] = {"MatMul": _matmul, "Gemm": _gemm}
