"""A bundle of layers that all compute the same, between a table and its transpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, shape_inference
from runtime_helpers import write_array_bundle

from edgezo_runtime.batch import ArrayBatch, RowLoss

ROWS, LAYERS = 150, 6


def write_tied(folder: Path, dtype: str = "float32", width: int = 80) -> Path:
    """Writes the bundle into `folder`, which it returns."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"table": (ROWS, width)}
    for number in range(LAYERS):
        shapes |= {f"layers.{number}.w": (width, width), f"layers.{number}.b": (width,)}
    shapes["spare"] = (7,)  # which nothing reads
    tensors = {n: (rng.normal(size=s) / width**0.5).astype(dtype) for n, s in shapes.items()}
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    data = [helper.make_tensor_value_info(n, TensorProto.INT64, ["rows"]) for n in ("x", "targets")]
    weights = [helper.make_tensor_value_info(n, kind, s) for n, s in shapes.items()]
    losses = helper.make_tensor_value_info("losses", TensorProto.FLOAT, ["rows"])
    graph = helper.make_graph(_nodes(), "layered", data + weights, [losses])
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    graph = shape_inference.infer_shapes(model).SerializeToString()
    inputs = {name: ("int64", ("rows",)) for name in ("x", "targets")}
    return write_array_bundle(folder, tensors, graph, inputs)


def _nodes() -> list[NodeProto]:
    def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(operator, inputs.split(), [output], **attributes)

    # What reads the table again stands in front, as exporters may put it.
    nodes = [
        node("Transpose", "table", "across", perm=[1, 0]),
        node("Gather", "table targets", "wanted"),
        node("Gather", "table x", "h0"),
    ]
    for i in range(LAYERS):
        nodes += [
            node("MatMul", f"h{i} layers.{i}.w", f"product{i}"),
            node("Add", f"product{i} layers.{i}.b", f"sum{i}"),
            node("Relu", f"sum{i}", f"active{i}"),
            node("Add", f"h{i} active{i}", f"h{i + 1}"),
        ]
    return [
        *nodes,
        node("Add", f"h{LAYERS} wanted", "last"),
        node("MatMul", "last across", "narrow"),
        node("Cast", "narrow", "logits", to=TensorProto.FLOAT),
        node("SoftmaxCrossEntropyLoss", "logits targets", "losses", reduction="none"),
    ]


def rows_for_tied(rows: int, seed: int) -> ArrayBatch:
    """Returns a batch of random rows."""
    rng = np.random.default_rng(seed)
    x, targets = rng.integers(0, ROWS, (2, rows))
    return ArrayBatch({"x": x}, targets, RowLoss())
