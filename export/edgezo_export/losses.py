"""The loss of each row, added to the end of somebody else's graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgezo_export.loss_file import gives_one, read_loss
from edgezo_export.row_axes import ROWS
from edgezo_runtime.errors import InputError

CROSS_ENTROPY, MSE = "cross-entropy", "mse"
TARGETS, LOSSES = "targets", "losses"
_TINY = 1e-30  # keeps the logarithm of a probability finite


class Losses:
    """Adds a loss to a graph: a `targets` input and a `losses` output, (rows,) float32.

    Args:
        model: it is changed.
        output: what the loss judges.
        sample: what the output holds for random inputs, (rows, ...).
        path: named in errors.
    """

    def __init__(self, model: ir.Model, output: ir.Value, sample: np.ndarray, path: Path) -> None:
        self._graph = model.graph
        self._model = model
        self._opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
        self._output = output
        self._sample = sample
        self._path = path
        self.of_probabilities = False  # whether cross-entropy judges probabilities

    def attach(self, loss: str) -> None:
        """Adds the loss: ``"cross-entropy"``, ``"mse"`` or the path of an ONNX file.

        Raises:
            InputError: the output is not what the loss can judge.
        """
        if loss == CROSS_ENTROPY:
            targets, losses = self._cross_entropy()
        elif loss == MSE:
            targets, losses = self._mse()
        elif loss.endswith(".onnx"):
            targets, losses = self._custom(Path(loss))
        else:
            raise InputError(f"loss is {loss!r}; use {CROSS_ENTROPY}, {MSE} or an .onnx file")
        losses.name, losses.shape = LOSSES, ir.Shape([ROWS])
        losses.type = ir.TensorType(ir.DataType.FLOAT)
        self._graph.inputs.append(targets)
        self._graph.outputs.clear()
        self._graph.outputs.extend([losses, self._output])

    def _cross_entropy(self) -> tuple[ir.Value, ir.Value]:
        """-log softmax(scores)[target]."""
        shape = self._sample.shape
        if len(shape) != 2 or shape[1] < 2:
            raise InputError(
                f"output {self._output.name!r} of {self._path} has shape {list(shape)}; "
                f"{CROSS_ENTROPY} needs one score for each class, (rows, classes): use --loss "
                f"{MSE} where they are no classes"
            )
        scores = _before_softmax(self._output)
        self.of_probabilities = scores is not None or _are_probabilities(self._sample)
        if scores is not None:
            logs = self._add("LogSoftmax", [self._float(scores)], axis=1)
        elif self.of_probabilities:
            floor = self._constant("probability_floor", np.float32(_TINY))
            logs = self._add("Log", [self._add("Max", [self._float(self._output), floor])])
        elif _made_by(self._output, "Sigmoid"):
            raise InputError(
                f"output {self._output.name!r} of {self._path} is a Sigmoid, whose classes are not "
                f"exclusive: use --loss {MSE}, or a loss of your own as an .onnx file"
            )
        else:
            logs = self._add("LogSoftmax", [self._float(self._output)], axis=1)
        targets = _input(TARGETS, ir.DataType.INT64, [ROWS])
        column = self._constant("column_shape", np.array([-1, 1], np.int64))
        flat = self._constant("flat_shape", np.array([-1], np.int64))
        index = self._add("Reshape", [targets, column])
        chosen = self._add("Neg", [self._add("GatherElements", [logs, index], axis=1)])
        return targets, self._add("Reshape", [chosen, flat])

    def _mse(self) -> tuple[ir.Value, ir.Value]:
        """The mean of (output - target)^2 over a row."""
        shape = list(self._output.shape or [])
        free = [dim if isinstance(dim, int) else f"target_{i}" for i, dim in enumerate(shape)]
        targets = _input(TARGETS, ir.DataType.FLOAT, [ROWS, *free[1:]])
        error = self._add("Sub", [self._float(self._output), targets])
        row = self._add("Flatten", [self._add("Mul", [error, error])], axis=1)
        if self._opset >= 18:
            axes = self._constant("mean_axes", np.array([1], np.int64))
            return targets, self._add("ReduceMean", [row, axes], keepdims=0)
        return targets, self._add("ReduceMean", [row], axes=[1], keepdims=0)

    def _custom(self, path: Path) -> tuple[ir.Value, ir.Value]:
        """Merges the loss at `path` in; a scalar becomes every row's loss."""
        loss = read_loss(path, self._opset)
        one = gives_one(loss, path, self._output.name or "", self._sample)
        output, targets = loss.graph.inputs
        output.replace_all_uses_with(self._output)
        found = loss.graph.outputs[0]
        loss.graph.inputs.clear()
        loss.graph.outputs.clear()
        taken = {value.name for node in self._graph for value in node.outputs}
        taken |= {value.name for value in (*self._graph.inputs, *self._graph.initializers.values())}
        for name, value in list(loss.graph.initializers.items()):
            del loss.graph.initializers[name]
            value.name = _free(f"loss_{name}", taken)
            self._graph.register_initializer(value)
        nodes = list(loss.graph)
        loss.graph.remove(nodes)
        for node in nodes:
            node.name = None
            for value in node.outputs:
                value.name = _free(f"loss_{value.name}", taken)
        self._graph.extend(nodes)
        flat = self._constant("flat_shape", np.array([-1], np.int64))
        losses = self._add("Reshape", [self._float(found), flat])
        if one:
            first = self._constant("first_axis", np.array([0], np.int64))
            second = self._constant("second_axis", np.array([1], np.int64))
            shape = self._add("Shape", [self._output])
            rows = self._add("Slice", [shape, first, second])
            losses = self._add("Expand", [losses, rows])
        targets.name = TARGETS
        return targets, losses

    def _float(self, value: ir.Value) -> ir.Value:
        """Returns `value` in float32, in which losses are computed."""
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self._add("Cast", [value], to=int(ir.DataType.FLOAT))

    def _constant(self, name: str, array: np.generic | np.ndarray) -> ir.Value:
        name = f"loss_{name}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.asarray(array), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]

    def _add(
        self, operator: str, inputs: Sequence[ir.Value], **attributes: int | list[int]
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes)
        self._graph.append(node)
        output = node.outputs[0]
        output.name = f"loss_{operator.lower()}_{len(self._graph)}"
        whole = operator == "Shape" or (operator != "Cast" and inputs[0].dtype == ir.DataType.INT64)
        output.type = ir.TensorType(ir.DataType.INT64 if whole else ir.DataType.FLOAT)
        return output


def _before_softmax(output: ir.Value) -> ir.Value | None:
    """Returns what goes into the softmax that makes `output`, whole or in pieces, if one does."""
    node = output.producer()
    while node is not None and node.op_type == "Identity":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None:
        return None
    if node.op_type == "Softmax" and node.attributes.get_int("axis", -1) in (-1, 1):
        return node.inputs[0]
    if node.op_type == "Div" and node.inputs[0] is not None and _made_by(node.inputs[0], "Exp"):
        power = node.inputs[0].producer()
        below = node.inputs[1]
        while below is not None and below is not node.inputs[0]:
            made = below.producer()
            if made is None or made.op_type not in ("Expand", "Reshape", "Identity", "ReduceSum"):
                return None
            if made.op_type == "ReduceSum":
                return power.inputs[0] if power and made.inputs[0] is node.inputs[0] else None
            below = made.inputs[0]
    return None


def _made_by(value: ir.Value, operator: str) -> bool:
    node = value.producer()
    return node is not None and node.op_type == operator


def _are_probabilities(sample: np.ndarray) -> bool:
    return bool((sample >= 0).all() and np.allclose(sample.sum(axis=1), 1, atol=1e-3))


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.val(name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _free(name: str, taken: set[str | None]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
