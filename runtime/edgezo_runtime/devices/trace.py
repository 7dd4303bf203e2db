"""Rules as formulas: what a rule does to one element, written down as it is handed symbols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgezo_runtime.late import LateSingle
from edgezo_runtime.sweep import Rule

#: An operation, and what it takes: places of nodes, or for what is given its name or number.
Node = tuple[Any, ...]


@dataclass(frozen=True)
class Formula:
    """A rule's operations, each on what those before it gave; all are float32 or comparisons.

    Two of them are equal where only their numbers differ.

    Attributes:
        nodes: of what is given, ``("weights",)``, ``("state", i)``, ``("z", i)``,
            ``("number", i)`` and ``("late", i)``; and of operations, such as
            ``("add", place, place)``.
        weights: the place of the new weights.
        changed: of the arrays of the state that change, with the places of what they become.
        directions: how many z there are.
        numbers: that the rule holds; another step has others.
        late: those of them that only the device knows yet.
    """

    nodes: tuple[Node, ...]
    weights: int
    changed: tuple[tuple[int, int], ...]
    directions: int
    numbers: tuple[np.float32, ...] = field(compare=False)
    late: tuple[LateSingle, ...] = field(compare=False)


def trace(rule: Rule, state: Sequence[str], directions: int) -> Formula:
    """Returns the formula of `rule`.

    Args:
        rule: see `Arena.update`.
        state: the names of its arrays.
        directions: how many it takes.
    """
    recorder = Recorder()
    weights = recorder.write("weights")
    held = {name: recorder.write("state", i) for i, name in enumerate(state)}
    zs = [recorder.write("z", i) for i in range(directions)]
    new, changed = rule(recorder, weights, held, *zs)
    order = list(state)
    places = tuple((order.index(name), recorder.place(value)) for name, value in changed.items())
    weights = recorder.place(new)
    given = tuple(recorder.numbers), tuple(recorder.late)
    return Formula(tuple(recorder.nodes), weights, places, directions, *given)


def _operator(operation: str, turned: bool = False) -> Callable[[Symbol, Any], Symbol]:
    def apply(self: Symbol, other: Any) -> Symbol:
        operands = (other, self) if turned else (self, other)
        return self.recorder.do(operation, *operands)

    return apply


class Symbol:
    """What stands for the elements of an array."""

    __array_ufunc__ = None  # NumPy's numbers leave operations with it to it

    def __init__(self, recorder: Recorder, place: int) -> None:
        self.recorder = recorder
        self.place = place

    __add__, __radd__ = _operator("add"), _operator("add", True)
    __sub__, __rsub__ = _operator("subtract"), _operator("subtract", True)
    __mul__, __rmul__ = _operator("multiply"), _operator("multiply", True)
    __truediv__, __rtruediv__ = _operator("divide"), _operator("divide", True)
    __lt__, __le__ = _operator("less"), _operator("less_equal")
    __gt__, __ge__ = _operator("greater"), _operator("greater_equal")

    def __neg__(self) -> Symbol:
        return self.recorder.do("negative", self)

    def __bool__(self) -> bool:
        raise TypeError("a rule takes no branch for single elements: use where")


class Recorder:
    """What stands for the array module; it writes down what is done.

    Attributes:
        nodes: so far.
        numbers: so far.
        late: likewise.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.numbers: list[np.float32] = []
        self.late: list[LateSingle] = []

    def write(self, *node: Any) -> Symbol:
        """Returns the symbol of a new node."""
        self.nodes.append(node)
        return Symbol(self, len(self.nodes) - 1)

    def place(self, value: Any) -> int:
        """Returns the place of a symbol, or of a number, which is a new one each time."""
        if isinstance(value, Symbol):
            return value.place
        if isinstance(value, LateSingle):
            self.late.append(value)
            return self.write("late", len(self.late) - 1).place
        self.numbers.append(np.float32(value))
        return self.write("number", len(self.numbers) - 1).place

    def do(self, operation: str, *operands: Any) -> Symbol:
        """Returns the symbol of what an operation gives."""
        places = [self.place(operand) for operand in operands]
        return self.write(operation, *places)

    # NumPy's names.

    def sqrt(self, value: Any) -> Symbol:
        return self.do("sqrt", value)

    def sign(self, value: Any) -> Symbol:
        return self.do("sign", value)

    def abs(self, value: Any) -> Symbol:
        return self.do("absolute", value)

    def maximum(self, one: Any, other: Any) -> Symbol:
        return self.do("maximum", one, other)

    def minimum(self, one: Any, other: Any) -> Symbol:
        return self.do("minimum", one, other)

    def where(self, condition: Any, one: Any, other: Any) -> Symbol:
        return self.do("where", condition, one, other)
