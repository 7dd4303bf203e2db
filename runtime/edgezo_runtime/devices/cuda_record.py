"""What a step's losses come to, computed on an NVIDIA card while the host goes on.

A sheet on the card, float64, holds whether one of a program's numbers is of no use, the numbers as
float32 has them, and the cells that they are computed from. Of a step's record these are whether
the step is skipped, the scalars and the losses: the update reads them there, a copy goes to the
host meanwhile.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgezo_runtime.devices.cuda_kernels import kernel as compiled
from edgezo_runtime.devices.program import NUMBER, Program, program
from edgezo_runtime.late import CELL, Found, LateNumber, LateSingle, Scalar, Single
from edgezo_runtime.sweep import ONE

if TYPE_CHECKING:
    from edgezo_runtime.devices.cuda import CudaDevice

#: Rounded as IEEE 754 says, and never contracted.
_C = {
    CELL: "*cells[{}]",
    NUMBER: "numbers[{}]",
    "add": "__dadd_rn({}, {})",
    "subtract": "__dsub_rn({}, {})",
    "multiply": "__dmul_rn({}, {})",
    "divide": "__ddiv_rn({}, {})",
    "sqrt": "__dsqrt_rn({})",
    "negative": "-{}",
    "absolute": "fabs({})",
    "sign": "{0} > 0.0 ? 1.0 : {0} < 0.0 ? -1.0 : {0} != {0} ? {0} : 0.0",
    "maximum": "{0} != {0} || {0} >= {1} ? {0} : {1}",
    "minimum": "{0} != {0} || {0} <= {1} ? {0} : {1}",
    "equal": "{0} == {1} ? 1.0 : 0.0",
}


class CardRecord:
    """What the record of a step will hold; see `LateRecord`.

    Args:
        device: the card.
        sheet: on the card.
        count: of scalars.
    """

    def __init__(self, device: CudaDevice, sheet: Any, count: int) -> None:
        self._device, self._sheet, self._count = device, sheet, count
        self._wait: Callable[[], list[np.ndarray]] = device.bring([sheet])

    @classmethod
    def of(
        cls,
        device: CudaDevice,
        losses: Sequence[LateNumber],
        scalars: Sequence[Scalar],
        lr: np.float32,
        most: float,
    ) -> CardRecord:
        """Queues what computes the record; see `Device.record`."""
        sheet = _sheet(device, program(scalars, losses), lr, most)
        return cls(device, sheet, len(scalars))

    @property
    def scalars(self) -> list[LateNumber]:
        """The scalars, rounded to float32."""
        return [LateNumber(CELL, self._sheet[i : i + 1]) for i in range(1, 1 + self._count)]

    @property
    def skipped(self) -> Any:
        """The card's array of whether the step is skipped: (1,) float64, 0 if it is not."""
        return self._sheet[:1]

    def rounded(self, values: Sequence[Scalar]) -> list[Single]:
        """Returns numbers of the step's update; queues what computes those that are late."""
        late = [value for value in values if isinstance(value, LateNumber)]
        sheet = _sheet(self._device, program(late)) if late else None
        places = itertools.count(1)

        def single(value: Scalar) -> Single:
            if sheet is None or not isinstance(value, LateNumber):
                return np.float32(value)
            place = next(places)
            return LateSingle(sheet[place : place + 1], self.skipped)

        return [single(value) for value in values]

    def wait(self) -> Found:
        """Waits for all; the scalars are 0 if the step is skipped."""
        (sheet,) = self._wait()
        skipped, scalars = bool(sheet[0]), sheet[1 : 1 + self._count].astype(np.float32)
        losses = sheet[1 + self._count :].tolist()
        return Found(losses, tuple(np.zeros_like(scalars) if skipped else scalars), skipped)


def _sheet(device: CudaDevice, made: Program, lr: np.float32 = ONE, most: float = math.inf) -> Any:
    """Queues what fills a sheet; returns it."""
    packed = np.zeros(1, given(made))
    packed["cells"][0, : len(made.cells)] = [cell.data.ptr for cell in made.cells]
    packed["numbers"][0, : len(made.numbers)] = made.numbers
    with device.stream:
        table = device.xp.asarray(packed.view(np.uint8))  # too many for arguments
        sheet = device.xp.empty(1 + len(made.outputs) + len(made.cells), np.float64)
        kernel(made)((1,), (1,), (table, lr, np.float32(most), sheet))
    return sheet


def given(made: Program) -> np.dtype:
    """Returns the type of what a program is given: `Given` of record.cu."""
    sizes = max(len(made.cells), 1), max(len(made.numbers), 1)
    return np.dtype([("cells", "<u8", sizes[:1]), ("numbers", "<f8", sizes[1:])])


@functools.cache
def kernel(made: Program) -> Callable[..., None]:
    """Returns the kernel of a program."""
    sizes = (
        ("CELLS", len(made.cells)),
        ("NUMBERS", len(made.numbers)),
        ("OUTPUTS", len(made.outputs)),
        ("PLAIN", 1),
    )
    return compiled("record.cu", "compute", sizes, code(made))


def code(made: Program) -> str:
    """Returns a program in CUDA's language."""
    lines = [
        "__device__ __forceinline__ void formula(",
        "        const double* const* cells, const double* numbers, double* found) {",
    ]
    for place, (operation, *operands) in enumerate(made.nodes):
        given = operation in (CELL, NUMBER)
        names = operands if given else [f"v{operand}" for operand in operands]
        lines.append(f"    const double v{place} = {_C[operation].format(*names)};")
    lines += [f"    found[{i}] = v{place};" for i, place in enumerate(made.outputs)]
    return "\n".join([*lines, "}\n"])
