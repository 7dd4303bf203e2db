"""Graphs cut in two where the trained weights begin."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.split import split

GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
two_layers (float[batch, 4] x, int64[1] ask, float[4, 4] first, float[4, 4] second)
    => (float[batch, 4] y)
<float[batch, 4] h, float[batch, 4] a, float[batch, 4] z>
{
    h = MatMul(x, first)
    a = Relu(h)
    z = MatMul(a, second)
    s = ReduceSum(z, ask)
    y = Add(z, s)
}
"""


def run(model: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    found = session.run(None, {name: feeds[name] for name in names})
    outputs = [node.name for node in session.get_outputs()]
    return dict(zip(outputs, found, strict=True))


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": (3, 4), "first": (4, 4), "second": (4, 4)}
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn | {"ask": np.array([1])}


def test_both_parts_together_are_the_graph(feeds: dict[str, np.ndarray]) -> None:
    model = parser.parse_model(GRAPH)
    whole = model.SerializeToString()
    parts = split(whole, {"second", "ask"}, {"first"})
    assert parts and parts.boundary == ("a",)
    for part in (parts.prefix, parts.suffix):
        onnx.checker.check_model(onnx.load_from_string(part))
    prefix, suffix = onnx.load_from_string(parts.prefix), onnx.load_from_string(parts.suffix)
    assert [node.op_type for node in prefix.graph.node] == ["MatMul", "Relu"]
    assert [value.name for value in prefix.graph.input] == ["x", "first"]
    assert {value.name for value in suffix.graph.input} == {"ask", "second", "a"}
    assert prefix.opset_import == model.opset_import
    between = run(parts.prefix, feeds)
    found = run(parts.suffix, feeds | between)
    np.testing.assert_allclose(found["y"], run(whole, feeds)["y"], rtol=1e-6)


@pytest.mark.parametrize(
    ("changing", "frozen"),
    [
        ({"first", "second"}, set()),  # nothing heavy is frozen
        ({"first"}, {"second"}),  # what is frozen comes after
        ({"x"}, {"first", "second"}),  # everything depends on what changes
        (set(), {"first", "second"}),  # nothing changes: the output itself is in the prefix
    ],
)
def test_no_cut_where_it_gains_nothing(changing: set[str], frozen: set[str]) -> None:
    assert split(parser.parse_model(GRAPH).SerializeToString(), changing, frozen) is None


def test_no_cut_through_a_value_of_unknown_type() -> None:
    model = parser.parse_model(GRAPH)
    del model.graph.value_info[:]
    assert split(model.SerializeToString(), {"second", "ask"}, {"first"}) is None


def test_a_value_that_both_parts_need_goes_to_both(feeds: dict[str, np.ndarray]) -> None:
    text = GRAPH.replace("y = Add(z, s)", "w = Add(z, s)\n    y = Add(w, x)")
    parts = split(parser.parse_model(text).SerializeToString(), {"second", "ask"}, {"first"})
    assert parts
    suffix = onnx.load_from_string(parts.suffix)
    assert {value.name for value in suffix.graph.input} == {"ask", "second", "a", "x"}


def test_weights_read_inside_a_subgraph_are_seen(feeds: dict[str, np.ndarray]) -> None:
    """The branch of an If may read a trained weight that is not among the node's own inputs."""
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    branches (float[batch, 4] x, bool go, float[4, 4] first, float[4, 4] second)
        => (float[batch, 4] y)
    <float[batch, 4] h, float[batch, 4] z>
    {
        h = MatMul(x, first)
        z = If(go) <
            then_branch = yes () => (float[batch, 4] t) { t = MatMul(h, second) },
            else_branch = no () => (float[batch, 4] e) { e = Neg(h) }
        >
        y = Relu(z)
    }
    """
    whole = parser.parse_model(text).SerializeToString()
    parts = split(whole, {"second"}, {"first"})
    assert parts and parts.boundary == ("h",)
    given = {**feeds, "go": np.array(True)}
    found = run(parts.suffix, given | run(parts.prefix, given))
    np.testing.assert_allclose(found["y"], run(whole, given)["y"], rtol=1e-6)
