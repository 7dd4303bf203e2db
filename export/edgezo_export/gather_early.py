"""Gathers the answers' rows before the last block's row-wise layers, not after them.

Once the last attention has mixed the tokens, everything up to the vocabulary projection treats each
token by itself: only the tokens at the answers' positions need it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgezo_export.rows import first_input, is_rows, works_by_row


class GatherEarly(ir.passes.InPlacePass):
    """Moves the one Gather of the answers' rows up through all layers that work row by row."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass; it changes nothing where the graph has no such Gather."""
        gather = next((n for n in model.graph if _gathers_rows(n)), None)
        if gather is None:
            return ir.passes.PassResult(model, modified=False)
        moved = {gather}
        only_for_them = {gather}  # with what reads their shapes to reshape them again
        for node in reversed(model.graph):
            users = [user for value in node.outputs for user, _ in value.uses()]
            if not users or not only_for_them.issuperset(users):
                continue
            if works_by_row(node):
                moved.add(node)
                only_for_them.add(node)
            elif not any(is_rows(value) for value in node.outputs):
                only_for_them.add(node)
        rows = _Rows(gather, moved)
        result = rows.of(first_input(gather))
        model.graph.insert_before(gather, rows.nodes)
        result.name, gather.outputs[0].name = gather.outputs[0].name, None
        gather.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        model.graph.remove(gather, safe=True)
        for node in reversed(model.graph):
            if node in only_for_them and not any(value.uses() for value in node.outputs):
                model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=True)


class _Rows:
    """Builds, for values of all rows, the values of the gathered rows alone."""

    def __init__(self, gather: ir.Node, moved: set[ir.Node]) -> None:
        self.nodes: list[ir.Node] = []
        self._gather = gather
        self._moved = moved
        self._made: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        """Returns the gathered rows of `value`, (answers, features)."""
        if value not in self._made:
            node = value.producer()
            if node is None or node not in self._moved:
                self._made[value] = self._cut(value)
            elif node.op_type == "Reshape":
                self._made[value] = self.of(first_input(node))
            else:
                self._made[value] = self._again(node)
        return self._made[value]

    def _again(self, node: ir.Node) -> ir.Value:
        """Repeats a row-wise node on the gathered rows."""
        inputs = [self.of(v) if v is not None and is_rows(v) else v for v in node.inputs]
        return self._add(node.op_type, inputs, list(node.attributes.values()), node.outputs[0])

    def _cut(self, value: ir.Value) -> ir.Value:
        assert value.shape is not None
        flat = value
        if len(value.shape) == 3:
            flat = self._add("Reshape", [value, self._flat_shape(value)], [], value)
            flat.shape = ir.Shape(["batch*length", value.shape[2]])
        return self._add("Gather", [flat, self._gather.inputs[1]], [ir.AttrInt64("axis", 0)], value)

    def _flat_shape(self, value: ir.Value) -> ir.Value:
        features = value.shape[2] if value.shape is not None else None
        assert isinstance(features, int)
        size = ir.tensor([-1, features], name=f"{value.name}_flat_shape")
        shape = ir.val(str(size.name), const_value=size)
        graph = self._gather.graph
        assert graph is not None
        graph.register_initializer(shape)
        return shape

    def _add(
        self,
        operator: str,
        inputs: list[ir.Value | None],
        attributes: list[ir.Attr],
        like: ir.Value,
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes={a.name: a for a in attributes})
        output = node.outputs[0]
        assert like.shape is not None and self._gather.outputs[0].shape is not None
        output.name = f"{like.name}_{'flat' if operator == 'Reshape' else 'answers'}"
        output.type = like.type
        output.shape = ir.Shape([self._gather.outputs[0].shape[0], like.shape[-1]])
        self.nodes.append(node)
        return output


def _gathers_rows(node: ir.Node) -> bool:
    """Whether `node` picks rows of all tokens by an input of the graph."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    hidden, index = node.inputs
    if index is not None and (flattening := index.producer()) and flattening.op_type == "Reshape":
        index = flattening.inputs[0]
    if hidden is None or index is None or not index.is_graph_input():
        return False
    return is_rows(hidden) and len(hidden.shape or ()) == 2
