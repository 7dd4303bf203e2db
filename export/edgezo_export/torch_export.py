"""torch's exporter, as edgezo calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from edgezo_export.lift import ParameterNames, lifted
from edgezo_export.quiet import quiet
from edgezo_runtime.errors import InputError

OPSET = 18
#: The attribute of a wrapper that holds the model, and so what its parameters' names begin with.
WRAPPED = "model"


def export_wrapper(
    wrapper: nn.Module, example: Mapping[str, Any], shapes: Mapping[str, Any], outputs: list[str]
) -> ir.Model:
    """Returns the weight-free graph of `wrapper`: data inputs first, then its model's parameters.

    Args:
        wrapper: holds the model as its attribute `model`; its weights' values do not matter.
        example: its inputs by name; sizes that differ from each other and from 0 and 1, or torch
            takes them for constants.
        shapes: which dimensions are free, as `torch.export` has it.
        outputs: names of the outputs.

    Raises:
        InputError: the model cannot be exported; the message quotes the exporter's reason.
    """
    model = wrapper.get_submodule(WRAPPED)
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                wrapper.eval(),
                (),
                kwargs=dict(example),
                dynamo=True,
                optimize=False,
                dynamic_shapes=dict(shapes),
                output_names=outputs,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"torch cannot export {type(model).__name__}: {reason}") from error
    assert program is not None
    return lifted(program.model, ParameterNames.of(model, f"{WRAPPED}."))
