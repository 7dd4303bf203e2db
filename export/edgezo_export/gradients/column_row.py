r"""Winner-take-all column-row sampling: a weight's gradient from some of the rows of its product.

With :math:`y = x W^T` the gradient by W is a sum over rows, :math:`G = \sum_i \bar y_i^T x_i`. Let
:math:`q_i = |x_i| |\bar y_i|`. Of k rows those of C, the largest, are taken as they are, and the
other :math:`s = k - |C|` are drawn from the rest, with replacement, as often as q says:

.. math::
    \hat G = \sum_{i \in C} \bar y_i^T x_i
    + \frac{T_C}{s} \sum_{j=1}^{s} \frac{\bar y_{i_j}^T x_{i_j}}{q_{i_j}}, \quad
    T_C = \sum_{i \notin C} q_i

The mean of :math:`\hat G` is G, whatever C is; the one that makes :math:`T_C / s` least is taken,
which bounds the variance. Rows with a q of 0, such as padding, are never taken.

References:
    Liu et al., "Winner-Take-All Column Row Sampling for Memory Efficient Adaptation of Language
    Model", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from edgezo_export.gradients.tape import Tape
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import uniform_of

_FEWEST = 10  # rows; the sum over the answers of a batch may have no more, and costs little
_TINY = 1e-200  # in place of a divisor of 0, where what is divided is 0 too or is not used


class SampledTape(Tape):
    """Writes a backward pass that estimates the gradients of linear layers' weights.

    Cotangents stay exact, and so does every other gradient.

    Args:
        graph: the forward pass.
        active: the values whose cotangents are needed.
        weights: what is computed of trained weights alone.
        fraction: of the rows; above 0, at most 1.

    Raises:
        InputError: `fraction` is out of range.
    """

    def __init__(
        self, graph: ir.Graph, active: Set[ir.Value], weights: Set[ir.Value], fraction: float
    ) -> None:
        super().__init__(graph, active)
        if not 0 < fraction <= 1:
            raise InputError(
                f"column-row sampling takes a fraction of the rows, not {fraction}: give a number "
                "above 0 and at most 1, such as 0.3"
            )
        self._weights = weights
        self._fraction = Fraction(fraction).limit_denominator(10**6)

    def rows(
        self, product: ir.Node, weight: ir.Value, x: ir.Value, dy: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        if weight not in self._weights:
            return x, dy
        uniform = ir.val(
            uniform_of(str(product.outputs[0].name)),
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(["draws"]),
        )
        self.inputs.append(uniform)
        chosen, factors = self._choose(self._importance(x, dy), uniform)
        columns = self.op("Unsqueeze", factors, self.constant([1]))
        scaled = self.op("Mul", self.op("Gather", x, chosen), columns)
        return scaled, self.op("Gather", dy, chosen)

    def _importance(self, x: ir.Value, dy: ir.Value) -> ir.Value:
        """Returns q, (rows,) float64."""
        sums = [self.summed(self.op("Mul", side, side), [1], keep=False) for side in (x, dy)]
        wide = [self.cast(total, ir.DataType.DOUBLE) for total in sums]
        return self.op("Sqrt", self.op("Mul", *wide))

    def _choose(self, importance: ir.Value, uniform: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns the rows that are taken, (n,) int64, and what each is multiplied by, float32."""
        op, zero, one = self.op, self.constant([0]), self.constant([1])
        rows = op("Shape", importance)
        budget = self._budget(rows)
        ranked, order = self.ops("TopK", [importance, rows], 2)
        sums = op("CumSum", ranked, self.constant(0), reverse=1)
        tails = op("Concat", sums, self.constant([0], np.float64), axis=0)  # of C by its size
        winners = self._winners(tails, budget)
        rest = op("Gather", tails, winners)
        # Fewer numbers than draws are no harm: a mean over fewer draws has the same mean.
        draws = op("Slice", uniform, zero, op("Sub", budget, winners))
        points = op("Mul", self.cast(draws, ir.DataType.DOUBLE), rest)
        hits = self._hits(op("Slice", tails, one, self.constant([1 << 62])), points)
        divisor = op("Mul", ranked, self.cast(op("Shape", draws), ir.DataType.DOUBLE))
        scale = op("Div", rest, op("Max", divisor, self._tiny))
        drawn = op("Mul", self.cast(hits, ir.DataType.DOUBLE), scale)
        won = op("Less", self._count(rows), winners)
        whole = op("Where", won, self.constant(1, np.float64), drawn)
        factors = self.cast(whole, ir.DataType.FLOAT)
        taken = op("Reshape", op("NonZero", factors), self.constant([-1]))
        return op("Gather", order, taken), op("Gather", factors, taken)

    def _budget(self, rows: ir.Value) -> ir.Value:
        """Returns k, (1,) int64."""
        above, below = self._fraction.as_integer_ratio()
        product = self.op("Mul", rows, self.constant([above]))
        rounded = self.op("Add", product, self.constant([below - 1]))
        part = self.op("Div", rounded, self.constant([below]))
        return self.op("Min", self.op("Max", part, self.constant([_FEWEST])), rows)

    def _winners(self, tails: ir.Value, budget: ir.Value) -> ir.Value:
        """Returns the size of C, (1,) int64; it is k where nothing is left for draws."""
        op, zero = self.op, self.constant([0])
        sizes = op("Add", budget, self.constant([1]))
        left = self.cast(op("Sub", budget, self._count(sizes)), ir.DataType.DOUBLE)
        bounds = op("Div", op("Slice", tails, zero, sizes), op("Max", left, self._tiny))
        return op("ArgMin", bounds, axis=0, keepdims=1)

    def _hits(self, ends: ir.Value, points: ir.Value) -> ir.Value:
        """Returns how many of the `points` fall to each row, (rows,) int64.

        A row's share of the line lies above its end, up to the end of the row before it. One sort
        of ends and points finds all of them.
        """
        op, zero = self.op, self.constant([0])
        both = op("Concat", ends, points, axis=0)
        _, places = self.ops("TopK", [both, op("Shape", both)], 2)  # of equal ones the ends first
        is_end = op("Less", places, op("Shape", ends))
        passed = op("CumSum", self.cast(op("Not", is_end), ir.DataType.INT64), self.constant(0))
        above = op("Compress", passed, is_end, axis=0)
        before = op("Concat", zero, op("Slice", above, zero, self.constant([-1])), axis=0)
        return op("Sub", above, before)

    def _count(self, size: ir.Value) -> ir.Value:
        """Returns the numbers from 0 to below `size`, (1,) int64."""
        return self.op("Range", self.constant(0), self.op("Squeeze", size), self.constant(1))

    @property
    def _tiny(self) -> ir.Value:
        return self.constant(_TINY, np.float64)


def weights_alone(nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> set[ir.Value]:
    """Returns what is computed of the weights `wanted` alone, themselves included."""
    found = set(wanted)
    for node in nodes:
        inputs = [v for v in node.inputs if v is not None and v.const_value is None]
        if inputs and found.issuperset(inputs):
            found.update(node.outputs)
    return found
