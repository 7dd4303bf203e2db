"""New nodes for a graph, with names of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


class Maker:
    """Makes nodes and constants whose names begin with `name`; the caller puts the nodes in."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.nodes: list[ir.Node] = []
        self._graph, self._name = graph, name

    def node(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Returns the output of a new node."""
        self.nodes.append(ir.node(operator, inputs, attributes=attributes or None))
        self.nodes[-1].outputs[0].name = f"{self._name}.{len(self.nodes)}"
        return self.nodes[-1].outputs[0]

    def constant(self, name: str, value: int | list[int]) -> ir.Value:
        """Returns a new int64 initializer."""
        tensor = ir.tensor(np.array(value, np.int64), name=f"{self._name}.{name}")
        made = ir.val(str(tensor.name), const_value=tensor)
        self._graph.register_initializer(made)
        return made
