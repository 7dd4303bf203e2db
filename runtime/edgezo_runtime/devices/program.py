"""Arithmetic that was written down with late numbers, as a list of operations in their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgezo_runtime.late import CELL, LateNumber, Scalar

#: An operation by NumPy's name and the places of its operands, or what is given and its place.
Node = tuple[Any, ...]
NUMBER = "number"


@dataclass(frozen=True)
class Program:
    """Operations in float64, each on what those before it gave.

    Two of them are equal where only their cells and numbers differ.

    Attributes:
        nodes: of what is given, ``("cell", i)`` and ``("number", i)``; and of operations, such as
            ``("add", place, place)``.
        outputs: the places of what is wanted.
        cells: the device's arrays of one float64 each.
        numbers: that the host knows.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    cells: tuple[Any, ...] = field(compare=False)
    numbers: tuple[float, ...] = field(compare=False)


def program(values: Sequence[Scalar], cells: Iterable[LateNumber] = ()) -> Program:
    """Returns the program that computes `values`; `cells` come first in it."""
    writer = _Writer()
    for cell in cells:
        writer.place(cell)
    outputs = tuple(map(writer.place, values))
    return Program(tuple(writer.nodes), outputs, tuple(writer.cells), tuple(writer.numbers))


class _Writer:
    """Writes nodes down, one for each object: what is used twice is computed once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.cells: list[Any] = []
        self.numbers: list[float] = []
        self._places: dict[int, int] = {}  # by identity; the values keep their operands alive

    def place(self, value: Scalar) -> int:
        """Returns the place of a value's node, after those of all that it is made of."""
        left = [value]  # no recursion: a sum over samples is as deep as there are samples
        while left:
            operands = _operands(left[-1])
            missing = [one for one in operands if id(one) not in self._places]
            if id(left[-1]) in self._places:
                left.pop()
            elif missing:
                left += reversed(missing)
            else:
                self._write(left.pop())
        return self._places[id(value)]

    def _write(self, value: Scalar) -> None:
        if not isinstance(value, LateNumber):
            self.numbers.append(float(value))
            node = NUMBER, len(self.numbers) - 1
        elif value.operation == CELL:
            self.cells.append(value.operands[0])
            node = CELL, len(self.cells) - 1
        else:
            node = value.operation, *(self._places[id(one)] for one in value.operands)
        self._places[id(value)] = len(self.nodes)
        self.nodes.append(node)


def _operands(value: Scalar) -> tuple[Any, ...]:
    if isinstance(value, LateNumber) and value.operation != CELL:
        return value.operands
    return ()
