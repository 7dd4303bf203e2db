"""Graphs of derivatives, small enough to be written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort


def run(model: ir.Model, feeds: Mapping[str, np.ndarray], outputs: list[str]) -> list[Any]:
    """Returns the outputs of a sound graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(outputs, dict(feeds)))


def graph_of(text: str) -> ir.Model:
    """Returns the model of one function of `w`, written as ONNX text."""
    header = '<ir_version: 9, opset_import: ["" : 18]>'
    return ir.from_proto(onnx.parser.parse_model(f"{header} graph {text}"))
