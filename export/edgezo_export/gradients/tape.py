"""What the rules of reverse mode write on: new nodes, and the cotangents of the old values."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import onnx_ir as ir

from edgezo_export.gradients.writer import Dims, Writer, decided, dims


class Tape(Writer):
    """Collects the nodes of a backward pass.

    Args:
        graph: the forward pass.
        active: the values whose cotangents are needed.

    Attributes:
        inputs: what the backward pass takes besides cotangents.
    """

    def __init__(self, graph: ir.Graph, active: Set[ir.Value]) -> None:
        super().__init__(graph, "backward")
        self.inputs: list[ir.Value] = []
        self._active = active
        self._cotangents: dict[ir.Value, ir.Value] = {}

    def wants(self, value: ir.Value | None) -> bool:
        """Whether `value` needs a cotangent."""
        return value in self._active

    def give(self, value: ir.Value | None, cotangent: ir.Value) -> None:
        """Adds to the cotangent of `value`, if it needs one."""
        if value is None or not self.wants(value):
            return
        before = self._cotangents.get(value)
        if before is not None:
            cotangent = self.op("Add", before, cotangent)
        self._cotangents[value] = cotangent

    def take(self, value: ir.Value) -> ir.Value | None:
        """Returns what was given to `value` so far, which then has nothing."""
        return self._cotangents.pop(value, None)

    def rows(
        self, product: ir.Node, weight: ir.Value, x: ir.Value, dy: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Returns the rows of `x` and `dy` whose products add up to a weight's gradient: all.

        Args:
            product: of rows and a weight.
            weight: its operand.
            x: the rows that it was multiplied with, (rows, inputs).
            dy: the cotangent of the product, (rows, outputs).
        """
        return x, dy

    def beside(self, cotangent: ir.Value, value: ir.Value, axis: int) -> ir.Value:
        """Returns `cotangent` with the sizes of `value`, but as long along `axis` as it has to be.

        Args:
            cotangent: has those sizes, with any number of axes in place of `axis`.
            value: what it is the cotangent of a part of.
            axis: counted from the front.
        """
        sizes = dims(value)
        assert sizes is not None
        parts = [
            self.constant([-1]) if i == axis else self.size_of(value, i) for i in range(len(sizes))
        ]
        if all(isinstance(size, int) for i, size in enumerate(sizes) if i != axis):
            whole = [-1 if i == axis else size for i, size in enumerate(sizes)]
            return self.op("Reshape", cotangent, self.constant(whole))
        return self.op("Reshape", cotangent, self.op("Concat", *parts, axis=0))

    def sum_to(self, cotangent: ir.Value, wide: Dims | None, value: ir.Value) -> ir.Value:
        """Returns `cotangent` summed over the axes along which `value` was broadcast.

        Args:
            cotangent: of what was computed of the broadcast value.
            wide: its sizes, as far as they are known.
            value: has the shape of the result.
        """
        narrow = dims(value)
        if wide is None or narrow is None or not decided(wide, narrow):
            return self._sum_at_run_time(cotangent, value)
        lead = len(wide) - len(narrow)
        if lead:
            cotangent = self.summed(cotangent, range(lead), keep=False)
        pairs = zip(wide[lead:], narrow, strict=True)
        stretched = [axis for axis, (out, own) in enumerate(pairs) if own == 1 and out != 1]
        return self.summed(cotangent, stretched, keep=True) if stretched else cotangent

    def _sum_at_run_time(self, cotangent: ir.Value, value: ir.Value) -> ir.Value:
        wide, narrow = self.op("Shape", cotangent), self.shape_of(value)
        lead = self.op("Sub", self.op("Shape", wide), self.op("Shape", narrow))
        ones = self.op("ConstantOfShape", lead, value=ir.tensor(np.array([1], np.int64)))
        ones.type = ir.TensorType(ir.DataType.INT64)
        padded = self.op("Concat", ones, narrow, axis=0)
        differs = self.op("Not", self.op("Equal", padded, wide))
        axes = self.op("Reshape", self.op("NonZero", differs), self.constant([-1]))
        total = self.op("ReduceSum", cotangent, axes, keepdims=1, noop_with_empty_axes=1)
        return self.op("Reshape", total, narrow)


def only(cotangents: Sequence[ir.Value | None]) -> ir.Value:
    """Returns the cotangent of the first output."""
    cotangent = cotangents[0]
    assert cotangent is not None
    return cotangent
