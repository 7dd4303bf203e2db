"""Graphs that draw random numbers each time they run: no two losses of theirs can be compared."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgezo_runtime.errors import InputError

_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip
_TRAINING = 2  # which input of Dropout says whether it drops anything


def check_repeatable(model: ir.Model, path: Path) -> None:
    """Raises InputError where the graph of the file at `path` gives something else each time."""
    for node in model.graph.all_nodes():
        if node.op_type in _RANDOM:
            raise InputError(
                f"{path} draws random numbers ({node.op_type}), so that two runs of it do not "
                "compare: export it without"
            )
        if node.op_type == "Dropout" and _drops(node):
            raise InputError(
                f"{path} has a Dropout in training mode, so that two runs of it do not compare: "
                "export it for inference"
            )


def _drops(dropout: ir.Node) -> bool:
    training = dropout.inputs[_TRAINING] if len(dropout.inputs) > _TRAINING else None
    if training is None:
        return False
    return training.const_value is None or bool(training.const_value.numpy().any())
