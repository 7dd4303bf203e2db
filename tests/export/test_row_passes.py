"""The passes that move and reshape row-wise layers: fewer rows, the same numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgezo_export.gather_early import GatherEarly
from edgezo_export.keep_rows import KeepRows

# One block behind an "attention" that mixes tokens; its MLP is flattened, as OPT's is.
GRAPH = """<ir_version: 8, opset_import: ["" : 18]>
g (float[batch, length, 4] x, int64[answers] positions, float[6, 4] up, float[6] bias,
   float[4, 6] down, float[4] scale, float[4] shift) => (float[answers, 4] y)
<int64[2] flat = {-1, 4}, float[batch, length, 4] mixed, float[batch, 4, length] turned,
 float[batch, 4, 4] product, float[batch, length, 4] residual, float[n, 4] rows,
 float[n, 4] normed, float[n, 6] wide, float[n, 6] active, float[n, 4] narrow, float[n, 4] sum,
 int64[3] whole, float[batch, length, 4] back, float[n, 4] last> {
    turned = Transpose <perm = [0, 2, 1]> (x)
    product = MatMul (turned, x)
    mixed = MatMul (x, product)
    residual = Add (x, mixed)
    rows = Reshape (residual, flat)
    normed = LayerNormalization <axis = -1> (rows, scale, shift)
    wide = Gemm <transB = 1> (normed, up, bias)
    active = Relu (wide)
    narrow = Gemm <transB = 1> (active, down)
    sum = Add (rows, narrow)
    whole = Shape (x)
    back = Reshape (sum, whole)
    last = Reshape (BACK, flat)
    y = Gather <axis = 0> (last, positions)
}"""


def graph(mixing_after: bool = False) -> ir.Model:
    """Returns the graph; with `mixing_after`, its MLP's output is mixed over the tokens too."""
    text = GRAPH.replace("BACK", "later" if mixing_after else "back")
    if mixing_after:
        text = text.replace("last = R", "later = MatMul (back, product)\n    last = R").replace(
            "int64[3] whole", "int64[3] whole, float[batch, length, 4] later"
        )
    return ir.from_onnx_text(text)


def run(model: ir.Model) -> np.ndarray:
    """Returns the output for fixed inputs."""
    draw = np.random.Generator(np.random.Philox(3)).standard_normal
    shapes = {"x": (2, 5, 4), "up": (6, 4), "bias": 6, "down": (4, 6), "scale": 4, "shift": 4}
    feeds = {name: draw(shape, np.float32) for name, shape in shapes.items()}
    feeds["positions"] = np.array([4, 1, 7], np.int64)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, feeds)[0])


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def shape_of(model: ir.Model, operator: str) -> Iterable[object]:
    node = next(node for node in model.graph if node.op_type == operator)
    return [str(n) for n in node.outputs[0].shape or ()]


@pytest.mark.parametrize(
    "passes", [(GatherEarly,), (KeepRows,), (GatherEarly, KeepRows)], ids=["early", "keep", "both"]
)
@pytest.mark.parametrize("mixing_after", [False, True])
def test_the_numbers_stay(
    passes: tuple[type[ir.passes.InPlacePass], ...], mixing_after: bool
) -> None:
    before, model = run(graph(mixing_after)), graph(mixing_after)
    assert all([step()(model).modified for step in passes][:1])
    np.testing.assert_allclose(run(model), before, rtol=1e-5, atol=1e-6)


def test_only_the_answers_pass_the_last_mlp() -> None:
    model = graph()
    GatherEarly()(model)
    assert shape_of(model, "Gemm") == ["answers", "6"]
    order = operators(model)
    assert order.index("Gather") < order.index("LayerNormalization")
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_an_mlp_that_later_tokens_need_sees_all_rows() -> None:
    model = graph(mixing_after=True)
    GatherEarly()(model)
    assert shape_of(model, "Gemm") != ["answers", "6"]


def test_flattened_layers_keep_the_batch() -> None:
    model = graph(mixing_after=True)
    KeepRows()(model)
    assert "Gemm" not in operators(model)
    assert shape_of(model, "Relu") == ["batch", "length", "6"]
    assert operators(model).count("Reshape") == 1  # that of the gather


def test_a_graph_without_such_layers_is_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { y = MatMul (x, w) }"""
    model = ir.from_onnx_text(text)
    assert not GatherEarly()(model).modified
    assert not KeepRows()(model).modified
