"""Linear layers as one product each, their bias apart.

ONNX Runtime turns MatMul and Add into Gemm, whose bias is a slow kernel of its own on CUDA; it
leaves FusedMatMul alone. The bias is an Add then, which attention and skip norms take in.
"""

from __future__ import annotations

import onnx_ir as ir

from edgezo_export.lean.edit import Editor, describe, made_by, operand, permutes, sizes, take_place


class FuseLinear(ir.passes.InPlacePass):
    """Writes products with a weight as FusedMatMul, which reads it as it lies, and Add."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        editor = Editor(model.graph)
        found = False
        for node in list(model.graph):
            if node.op_type == "MatMul" and not node.domain:
                found |= _matmul(editor, node)
            elif node.op_type == "Gemm":
                found |= _gemm(editor, node)
        return ir.passes.PassResult(model, modified=found)


def _matmul(editor: Editor, node: ir.Node) -> bool:
    rows, weight = operand(node, 0), operand(node, 1)
    transpose = weight.producer()
    flipped = permutes(transpose, 1, 0)
    if flipped and transpose is not None:
        weight = operand(transpose, 0)
    if not weight.is_graph_input():
        return False
    made = editor.put(node, "FusedMatMul", rows, weight, transB=int(flipped))
    take_place(node.outputs[0], made)
    return True


def _gemm(editor: Editor, node: ir.Node) -> bool:
    rows, weight = operand(node, 0), operand(node, 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    attributes = node.attributes
    plain = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
    if not weight.is_graph_input() or not plain or attributes.get_int("transA", 0):
        return False
    made = editor.put(node, "FusedMatMul", rows, weight, transB=attributes.get_int("transB", 0))
    old = node.outputs[0]
    if bias is None:
        take_place(old, made)
        return True
    assert old.shape is not None
    describe(made, f"{old.name}_product", old, old.shape)
    take_place(old, editor.put(node, "Add", made, bias))
    return True


class BiasLast(ir.passes.InPlacePass):
    """Adds a bias after the product is reshaped to (batch, length, features), not before."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        editor = Editor(model.graph)
        found = False
        for node in list(model.graph):
            add = made_by(node.inputs[0], "Add") if node.op_type == "Reshape" else None
            if add is None or len(add.outputs[0].uses()) > 1:
                continue
            product, bias = operand(add, 0), operand(add, 1)
            new = sizes(node.outputs[0])
            if made_by(product, "FusedMatMul") and len(new) == 3 and sizes(bias) == new[-1:]:
                rows = editor.put(node, "Reshape", product, node.inputs[1], **_copied(node))
                old = node.outputs[0]
                assert old.shape is not None
                describe(rows, f"{old.name}_product", old, old.shape)
                take_place(old, editor.put(node, "Add", rows, bias))
                found = True
        return ir.passes.PassResult(model, modified=found)


def _copied(node: ir.Node) -> dict[str, int]:
    return {"allowzero": node.attributes.get_int("allowzero", 0)}
