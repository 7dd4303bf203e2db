"""Collects new nodes that are to go into a graph: what rules of differentiation write with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgezo_runtime.errors import InputError

_COMPUTED_WHOLE = ("Shape", "NonZero", "ArgMin")  # int64 whatever they take
_WITH_PLACES = ("TopK", "MaxPool")  # int64 is their second output
_COMPUTED_BOOL = ("Equal", "Greater", "Less", "Not")
Dims = Sequence[int | str | None]


class Writer:
    """Collects the nodes of a derivative; the caller puts them into the graph.

    Sizes are taken from the graph's inputs wherever the graph says which: a value of the forward
    pass that is read for its shape alone would have to be kept or computed again.

    Args:
        graph: the forward pass.
        prefix: what the names of new values begin with.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._graph, self._prefix = graph, prefix
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._shapes: dict[tuple[Any, ...], ir.Value] = {}
        self._sizes = _sizes(graph.inputs)

    def op(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Returns the output of a new node."""
        return self.ops(operator, inputs, 1, **attributes)[0]

    def ops(
        self, operator: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Returns the outputs of a new node."""
        node = ir.node(operator, inputs, attributes=attributes or None, num_outputs=outputs)
        self.nodes.append(node)
        for i, value in enumerate(node.outputs):
            value.name = f"{self._prefix}.{len(self.nodes)}" + (f".{i}" if i else "")
            value.type = ir.TensorType(_dtype(operator, inputs, i))
        return node.outputs

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Returns `value` in another dtype."""
        cast = self.op("Cast", value, to=int(dtype))
        cast.type = ir.TensorType(dtype)
        return cast

    def named(self, value: ir.Value, name: str) -> ir.Value:
        """Returns `value` under another name."""
        renamed = self.op("Identity", value)
        renamed.name = name
        return renamed

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """Returns an initializer that holds `value`, the same one for equal values."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self._prefix}.constant.{len(self._constants)}"
            made = ir.val(name, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(made)
            self._constants[key] = made
        return self._constants[key]

    def number(self, value: float) -> ir.Value:
        """Returns a float32 scalar."""
        return self.constant(value, np.float32)

    def shape_of(self, value: ir.Value) -> ir.Value:
        """Returns the shape of `value`, as an int64 vector."""
        sizes = dims(value)
        if sizes is None or not all(self._known(size) for size in sizes):
            return self.op("Shape", value)
        return self._vector(tuple(sizes))

    def reshaped(self, array: ir.Value, sizes: Dims | None, value: ir.Value) -> ir.Value:
        """Returns `array` with the `sizes` given, of which one may be unknown.

        Args:
            array: what is reshaped.
            sizes: of the result; None: those of `value`, which is read for them.
            value: has that shape.
        """
        unknown = [] if sizes is None else [s for s in sizes if not self._known(s)]
        if sizes is None or len(unknown) > 1:
            return self.op("Reshape", array, self.op("Shape", value))
        shape = self._vector(tuple(size if self._known(size) else -1 for size in sizes))
        return self.op("Reshape", array, shape)

    def like(self, array: ir.Value, value: ir.Value) -> ir.Value:
        """Returns `array` in the shape of `value`, which has as many elements."""
        return self.reshaped(array, dims(value), value)

    def size_of(self, value: ir.Value, axis: int) -> ir.Value:
        """Returns the size of `value` along `axis`, counted from the front, (1,) int64."""
        sizes = dims(value)
        if sizes is not None and self._known(sizes[axis]):
            return self._vector((sizes[axis],))
        return self.op("Shape", value, start=axis, end=axis + 1)

    def flat(self, array: ir.Value, like: ir.Value) -> ir.Value:
        """Returns `array`, which has the shape of `like`, as a matrix of its last axis."""
        sizes = dims(like)
        if sizes is not None and len(sizes) == 2:
            return array
        if sizes is not None and self._known(sizes[-1]):
            return self.op("Reshape", array, self._vector((-1, sizes[-1])))
        last = self.op("Shape", array, start=-1)
        return self.op("Reshape", array, self.op("Concat", self.constant([-1]), last, axis=0))

    def zeros(self, value: ir.Value) -> ir.Value:
        """Returns zeros of the shape of `value`."""
        return self.op("ConstantOfShape", self.shape_of(value))

    def summed(self, array: ir.Value, axes: Sequence[int], keep: bool) -> ir.Value:
        """Returns `array` summed over `axes`."""
        return self.op("ReduceSum", array, self.constant(list(axes)), keepdims=int(keep))

    def transposed(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """Returns `value` with its axes in the order `perm`; two transpositions become one."""
        made = value.producer()
        if made is not None and made.op_type == "Transpose":
            inner = made.attributes.get_ints("perm", [])
            if inner:
                value, perm = first(made), [inner[axis] for axis in perm]
        if list(perm) == list(range(len(perm))):
            return value
        return self.op("Transpose", value, perm=list(perm))

    def swapped(self, value: ir.Value, rank: int) -> ir.Value:
        """Returns `value`, of `rank` axes, with its last two swapped."""
        return self.transposed(value, [*range(rank - 2), rank - 1, rank - 2])

    def _known(self, size: int | str | None) -> bool:
        return isinstance(size, int) or size in self._sizes

    def _vector(self, sizes: tuple[Any, ...]) -> ir.Value:
        """Returns an int64 vector of sizes that are numbers or names of sizes of inputs."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(list(sizes))
        if sizes not in self._shapes:
            parts = []
            for size in sizes:
                if isinstance(size, int):
                    parts.append(self.constant([size]))
                else:
                    port, axis = self._sizes[size]
                    parts.append(self.op("Shape", port, start=axis, end=axis + 1))
            self._shapes[sizes] = self.op("Concat", *parts, axis=0)
        return self._shapes[sizes]


def no_gradient(node: ir.Node, what: str = "") -> InputError:
    """Returns the error that says that edgezo cannot differentiate `node`, which is `what`."""
    return InputError(
        f"edgezo has no gradient of node {node.name!r}, {node.op_type}{what}: tune the model with "
        "mezo or es, which need none"
    )


def dims(value: ir.Value) -> list[int | str | None] | None:
    """Returns the sizes of `value`: numbers, names, or None for unknown ones."""
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def rank(value: ir.Value) -> int | None:
    """Returns the number of axes of `value`, if the graph says."""
    return None if value.shape is None else len(value.shape)


def first(node: ir.Node) -> ir.Value:
    """Returns the first input of `node`."""
    value = node.inputs[0]
    assert value is not None
    return value


def decided(wide: Dims, narrow: Dims) -> bool:
    """Whether the sizes alone say along which axes `narrow` was broadcast to `wide`."""
    pairs = zip(wide[len(wide) - len(narrow) :], narrow, strict=True)
    return all(own == 1 or (own is not None and own == out) for out, own in pairs)


def _sizes(inputs: Sequence[ir.Value]) -> Mapping[str | None, tuple[ir.Value, int]]:
    """Returns the input and the axis that each named size can be read from."""
    found: dict[str | None, tuple[ir.Value, int]] = {}
    for value in inputs:
        for axis, name in enumerate(dims(value) or []):
            if isinstance(name, str):
                found.setdefault(name, (value, axis))
    return found


def _dtype(operator: str, inputs: Sequence[ir.Value | None], output: int) -> ir.DataType:
    if operator in _COMPUTED_WHOLE or (operator in _WITH_PLACES and output == 1):
        return ir.DataType.INT64
    if operator in _COMPUTED_BOOL:
        return ir.DataType.BOOL
    kind = inputs[1 if operator == "Where" else 0]
    if operator == "ConstantOfShape" or kind is None or kind.dtype is None:
        return ir.DataType.FLOAT
    return kind.dtype
