"""What the passes of a lean graph share: reading patterns of nodes, and putting others there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

#: The domain of ONNX Runtime's own operators.
RUNTIME = "com.microsoft"
_RUNTIMES = {
    *("FusedMatMul", "MultiHeadAttention", "RotaryEmbedding"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
}


class Editor:
    """Makes nodes and constants of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def integers(self, *values: int) -> ir.Value:
        """Returns the constant (len(values),) int64."""
        return self._constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def table(self, rows: list[list[int]]) -> ir.Value:
        """Returns a constant matrix of int64."""
        flat = "_".join(str(value) for row in rows for value in row)
        return self._constant(f"table_{len(rows)}_{flat}", np.array(rows, np.int64))

    def first_position(self) -> ir.Value:
        """Returns the constant 0 of shape (1,), for operators that read it on the device."""
        return self._constant("first_position", np.zeros(1, np.int64))

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        name = f"lean.{name}"
        if name not in self.graph.initializers:
            made = ir.val(name, const_value=ir.tensor(array, name=name))
            self.graph.register_initializer(made)
        return self.graph.initializers[name]

    def put(
        self, before: ir.Node, operator: str, *inputs: ir.Value | None, **attributes: Any
    ) -> ir.Value:
        """Puts a node of one output before another, and returns the output."""
        return self.put_many(1, before, operator, *inputs, **attributes)[0]

    def put_many(
        self,
        count: int,
        before: ir.Node,
        operator: str,
        *inputs: ir.Value | None,
        **attributes: Any,
    ) -> list[ir.Value]:
        """Puts a node of `count` outputs before another, and returns the outputs."""
        domain = RUNTIME if operator in _RUNTIMES else ""
        node = ir.node(
            operator, inputs, attributes=attributes or None, domain=domain, num_outputs=count
        )
        self.graph.insert_before(before, node)
        return list(node.outputs)


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Gives `new` the name, the type and all readers of `old`."""
    new.name, old.name = old.name, None
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def describe(value: ir.Value, name: str, like: ir.Value, shape: ir.Shape) -> None:
    """Gives `value` a name, the type of another and a shape."""
    value.name, value.type, value.shape = name, like.type, shape


def made_by(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """Returns the node that makes `value`, if it is one of `operators`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in operators else None


def operand(node: ir.Node, index: int) -> ir.Value:
    """Returns an input of `node` that its operator demands."""
    value = node.inputs[index]
    assert value is not None
    return value


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Returns what `value` always is, if it is a constant."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """Returns what `value` always is, if it is one number."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def sizes(value: ir.Value) -> tuple[int | str | None, ...]:
    """Returns the dimensions of `value`: numbers, or names of free ones; () if nobody knows."""
    if value.shape is None:
        return ()
    return tuple(n if isinstance(n, int) else n.value for n in value.shape)


def is_vector(value: ir.Value | None) -> bool:
    """Whether `value` is an input of one dimension, as a bias is."""
    return value is not None and value.is_graph_input() and len(sizes(value)) == 1


def uncast(value: ir.Value) -> ir.Value:
    """Returns what `value` is, before it was cast between float types."""
    node = made_by(value, "Cast")
    return uncast(operand(node, 0)) if node is not None else value


def permutes(node: ir.Node | None, *axes: int) -> bool:
    """Whether `node` is a Transpose with these axes."""
    if node is None or node.op_type != "Transpose":
        return False
    return tuple(node.attributes.get_ints("perm", ())) == axes


def only_reader(value: ir.Value) -> ir.Node | None:
    """Returns the one node that reads `value`."""
    users = [user for user, _ in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None
