"""A graph of an old opset, said in a newer one."""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter

from edgezo_runtime.errors import InputError


def in_newer_opset(model: ir.Model, least: int) -> ir.Model:
    """Returns `model`, in opset `least` where its own is older; values keep their names.

    Raises:
        InputError: an operator of it cannot be said in the newer one.
    """
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    if opset >= least:
        return model
    try:
        return ir.from_proto(version_converter.convert_version(ir.to_proto(model), least))
    except Exception as error:  # of the converter, which has no class for them
        reason = str(error).strip().splitlines()
        raise InputError(
            f"the graph has opset {opset}, and does not go over to the {least} that its "
            f"derivatives need: {reason[-1] if reason else type(error).__name__}"
        ) from error
