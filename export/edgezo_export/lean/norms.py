"""Norms as one operator each, and together with the sum that they normalise."""

from __future__ import annotations

import onnx_ir as ir

from edgezo_export.lean.edit import (
    Editor,
    constant,
    is_vector,
    made_by,
    only_reader,
    operand,
    scalar,
    sizes,
    take_place,
    uncast,
)


class FuseRmsNorm(ir.passes.InPlacePass):
    """Writes `gamma * x / sqrt(mean(x^2) + epsilon)` as SimplifiedLayerNormalization."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        editor = Editor(model.graph)
        found = False
        for node in list(model.graph):
            matched = _rms_norm(node)
            if matched is not None:
                rows, gamma, epsilon = matched
                made = editor.put(
                    node, "SimplifiedLayerNormalization", rows, gamma, epsilon=epsilon, axis=-1
                )
                take_place(node.outputs[0], made)
                found = True
        return ir.passes.PassResult(model, modified=found)


def _rms_norm(node: ir.Node) -> tuple[ir.Value, ir.Value, float] | None:
    """Returns x, gamma and epsilon, where `node` is the product with gamma."""
    if node.op_type != "Mul":
        return None
    gamma, normal = operand(node, 0), operand(node, 1)
    if not is_vector(gamma):
        gamma, normal = normal, gamma
    quotient = made_by(uncast(normal), "Div")
    if quotient is None or not is_vector(gamma):
        return None
    rows, root = operand(quotient, 0), operand(quotient, 1)
    everything = rows
    numerator, picked = made_by(rows, "Gather"), made_by(root, "Gather")
    if numerator is not None and picked is not None:
        # Only the answers are normalised, by the mean squares of all rows.
        if numerator.inputs[1] is not picked.inputs[1]:
            return None
        everything, root = _flattened(numerator), _flattened(picked)
    epsilon = _epsilon(uncast(root), uncast(everything))
    rows = uncast(rows)
    if epsilon is None or rows.dtype != node.outputs[0].dtype:
        return None
    return rows, gamma, epsilon


def _flattened(gather: ir.Node) -> ir.Value:
    """Returns the value of all rows that `gather` picks some of."""
    rows = operand(gather, 0)
    reshape = made_by(rows, "Reshape")
    return rows if reshape is None else operand(reshape, 0)


def _epsilon(root: ir.Value, rows: ir.Value) -> float | None:
    """Returns epsilon, where `root` is `sqrt(mean(rows^2) + epsilon)` of each row."""
    sqrt = made_by(root, "Sqrt")
    add = made_by(sqrt.inputs[0], "Add") if sqrt is not None else None
    mean = made_by(add.inputs[0], "ReduceMean") if add is not None else None
    square = made_by(mean.inputs[0], "Pow") if mean is not None else None
    if add is None or mean is None or square is None:
        return None
    axes = constant(mean.inputs[1])
    if axes is None or axes.tolist() != [-1] or scalar(square.inputs[1]) != 2:
        return None
    return scalar(add.inputs[1]) if uncast(operand(square, 0)) is rows else None


class FuseSkipNorm(ir.passes.InPlacePass):
    """Adds the residual and the bias of the layer before in the norm's own kernel."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        editor = Editor(model.graph)
        found = False
        for node in list(model.graph):
            if node.op_type in ("LayerNormalization", "SimplifiedLayerNormalization"):
                found |= _fuse(editor, node)
        model.graph.sort()  # sums may be read before their norm
        return ir.passes.PassResult(model, modified=found)


def _fuse(editor: Editor, norm: ir.Node) -> bool:
    total = operand(norm, 0)
    add = made_by(total, "Add")
    if add is None or len(norm.outputs) > 1 or total.is_graph_output():
        return False
    rows, skip = operand(add, 0), operand(add, 1)
    rank = len(sizes(total))
    last = norm.attributes.get_int("axis", -1) in (-1, rank - 1)
    if sizes(rows) != sizes(skip) or rank not in (2, 3) or not last:
        return False
    layer, bias = _biased(skip)
    if bias is None:
        layer, bias = _biased(rows)
        rows = skip
    simplified = norm.op_type == "SimplifiedLayerNormalization"
    inputs = [layer, rows, *norm.inputs[1:]]
    if not simplified and len(inputs) == 3:
        inputs.append(None)
    if bias is not None:
        inputs.append(bias)
    made = editor.put_many(
        4,
        norm,
        "Skip" + norm.op_type,
        *inputs,
        epsilon=norm.attributes.get_float("epsilon", 1e-5),
    )
    take_place(norm.outputs[0], made[0])
    for unused in made[1:3]:
        unused.name = ""
    take_place(total, made[3])
    norm.replace_input_with(0, None)  # it is dead, and no reader of the sum
    return True


def _biased(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Returns the product and the bias that `value` is the sum of, if nobody else reads it."""
    add = made_by(value, "Add")
    if add is not None and only_reader(value) is not None and is_vector(add.inputs[1]):
        return operand(add, 0), add.inputs[1]
    return value, None
