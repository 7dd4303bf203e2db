"""Updates on an NVIDIA card: one kernel for each rule, compiled from what the rule does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from edgezo_runtime.devices.cuda_chunks import Chunks
from edgezo_runtime.devices.cuda_kernels import THREADS
from edgezo_runtime.devices.cuda_kernels import kernel as compiled
from edgezo_runtime.devices.cuda_noise import DIRECTION, Draws, plain
from edgezo_runtime.devices.trace import Formula, trace
from edgezo_runtime.dtypes import Dtype
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.sweep import Rule, State

MOST_DIRECTIONS = 32  # that a kernel's arguments, 4 KiB, have room for
_C = {
    "weights": "weights",
    "state": "state[{}]",
    "z": "z[{}]",
    "number": "numbers[{}]",
    "late": "late[{}]",
    "add": "add({}, {})",
    "subtract": "subtract({}, {})",
    "multiply": "mul({}, {})",
    "divide": "divide({}, {})",
    "negative": "negative({})",
    "absolute": "size_of({})",
    "sqrt": "root({})",
    "sign": "sign_of({})",
    "maximum": "larger({}, {})",
    "minimum": "smaller({}, {})",
    "less": "less({}, {})",
    "less_equal": "at_most({}, {})",
    "greater": "less({1}, {0})",
    "greater_equal": "at_most({1}, {0})",
    "where": "{} ? {} : {}",
}
_GIVEN = {"weights", "state", "z", "number", "late"}
_COMPARISONS = {"less", "less_equal", "greater", "greater_equal"}


def launch(
    rule: Rule,
    directions: Sequence[AnyDirection],
    decay: np.float32,
    state: State,
    swept: Iterable[tuple[Any, Chunks]],
    draws: Draws,
) -> None:
    """Queues an update on the current stream; see `Arena.update`.

    Args:
        rule: of at most `MOST_DIRECTIONS`.
        directions: likewise.
        decay: likewise.
        state: likewise, on the card.
        swept: buffers of weights, and their chunks.
        draws: of the directions.
    """
    formula = trace(rule, list(state), len(directions))
    packed = np.zeros(1, arguments(formula, len(state)))  # one value: CuPy passes no others
    rows = packed["directions"][0]
    kept = [draws.pack(rows[i : i + 1], direction) for i, direction in enumerate(directions)]
    packed["state"][0, : len(state)] = [array.data.ptr for array in state.values()]
    packed["numbers"][0, : len(formula.numbers)] = formula.numbers
    packed["late"][0, : len(formula.late)] = [late.number.data.ptr for late in formula.late]
    packed["skipped"] = formula.late[0].skipped.data.ptr if formula.late else 0
    packed["decay"] = decay
    for buffer, chunks in swept:
        update = kernel(formula, len(state), chunks.dtype, all(map(plain, directions)))
        update((chunks.count,), (THREADS,), (buffer, chunks.table, packed))
    del kept  # what is freed now, nothing queued later can overwrite before the kernel is done


def arguments(formula: Formula, states: int) -> np.dtype:
    """Returns the type of what a kernel is handed: `Rule` of rule.cu."""
    fields = [
        ("directions", DIRECTION, (max(formula.directions, 1),)),
        ("state", "<u8", (max(states, 1),)),
        ("late", "<u8", (max(len(formula.late), 1),)),
        ("skipped", "<u8"),
        ("numbers", "<f4", (max(len(formula.numbers), 1),)),
        ("decay", "<f4"),
    ]
    return np.dtype(fields, align=True)


@functools.cache
def kernel(formula: Formula, states: int, dtype: Dtype, unmasked: bool) -> Callable[..., None]:
    """Returns the kernel of a formula for weights of `dtype`."""
    given = (
        ("DTYPE", dtype.onnx),
        ("DIRECTIONS", formula.directions),
        ("STATES", states),
        ("NUMBERS", len(formula.numbers)),
        ("LATE", len(formula.late)),
        ("PLAIN", int(unmasked)),
        ("WRITTEN", f"{sum(1 << i for i, _ in formula.changed)}u"),
    )
    return compiled("rule.cu", "update_by", given, code(formula))


def code(formula: Formula) -> str:
    """Returns a formula in CUDA's language."""
    lines = [
        "__device__ __forceinline__ float formula(float weights, const float* z, float* state,",
        "                                         const float* numbers, const float* late) {",
    ]
    for place, (operation, *operands) in enumerate(formula.nodes):
        names = operands if operation in _GIVEN else [f"v{operand}" for operand in operands]
        kind = "bool" if operation in _COMPARISONS else "float"
        lines.append(f"    const {kind} v{place} = {_C[operation].format(*names)};")
    lines += [f"    state[{i}] = v{place};" for i, place in formula.changed]
    return "\n".join([*lines, f"    return v{formula.weights};", "}\n"])
