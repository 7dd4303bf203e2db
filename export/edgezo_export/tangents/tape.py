"""What the rules of forward mode write on: new nodes, and the tangents of the old values."""

from __future__ import annotations

from collections.abc import Sequence, Set

import onnx_ir as ir

from edgezo_export.gradients.writer import Writer, decided, dims


class Tape(Writer):
    """Collects the nodes that follow tangents forward.

    A tangent is a sum of parts, each of which follows from one other tangent: whoever knows that
    one is zero leaves its parts out (see `Graph.without`). So sums are Adds of two tangents,
    and every other node reads one tangent, or several that are zero together.

    Args:
        graph: the forward pass.
        nodes: of `graph`, in topological order.
        active: the values that have tangents.
        wanted: the weights whose tangents are given.
    """

    def __init__(
        self,
        graph: ir.Graph,
        nodes: Sequence[ir.Node],
        active: Set[ir.Value],
        wanted: Sequence[ir.Value],
    ) -> None:
        super().__init__(graph, "tangent")
        self._active = active
        self._tangents: dict[ir.Value, ir.Value] = {}
        self._weights = {value: 1 << i for i, value in enumerate(wanted)}  # as sets of bits
        for node in nodes:
            found = 0
            for value in node.inputs:
                found |= self._weights.get(value, 0) if value is not None else 0
            self._weights.update((v, found) for v in node.outputs if v in active)

    def wants(self, value: ir.Value) -> bool:
        """Whether `value` has a tangent that an output depends on."""
        return value in self._active

    def of(self, value: ir.Value | None) -> ir.Value | None:
        """Returns the tangent of `value`; None if it is zero whatever the weights' are."""
        return None if value is None else self._tangents.get(value)

    def give(self, value: ir.Value, part: ir.Value) -> None:
        """Adds to the tangent of `value`, whose shape `part` has."""
        if value in self._active:
            before = self._tangents.get(value)
            self._tangents[value] = part if before is None else self.op("Add", before, part)

    def give_wide(self, value: ir.Value, part: ir.Value, narrow: ir.Value) -> None:
        """Adds to the tangent of `value` what has the shape of `narrow`, and is broadcast."""
        wide, own = dims(value), dims(narrow)
        if wide is None or own is None or wide != own or not decided(wide, own):
            part = self.op("Expand", part, self.shape_of(value))
        self.give(value, part)

    def rename(self, value: ir.Value, name: str) -> ir.Value:
        """Calls the tangent of `value` by `name`, and returns it."""
        renamed = self.named(self._tangents[value], name)
        renamed.shape = value.shape
        self._tangents[value] = renamed
        return renamed

    def together(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        """Returns the tangents of `values`, all of which are zero where one node can read them."""
        each = [self._weights.get(value, 0) for value in values]
        whole = 0
        for weights in each:
            whole |= weights
        found = []
        for value, weights in zip(values, each, strict=True):
            tangent = self.of(value)
            if tangent is None:
                tangent = self.zeros(value)
            elif weights != whole:
                tangent = self.op("Add", tangent, self.zeros(value))
            found.append(tangent)
        return found
