"""Weights that no output depends on, in graphs of several layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgezo_export import mutations
from edgezo_export.mutations import dead_weights

_WIDTH = 4


def layers(count: int) -> tuple[bytes, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns a residual network, its weights and its input.

    Of each layer, `used` moves the output, `rounded` by a rounding alone, `zeroed` not at all, and
    `handed` makes something that the last layer multiplies with zero.
    """
    nodes, last = [], "x"
    names = [f"layers.{i}.{part}" for i in range(count) for part in ("used", "rounded", "zeroed")]
    names.append("layers.0.handed")
    nodes.append(helper.make_node("MatMul", ["x", names[-1]], ["aside"]))
    for i in range(count):
        for part in ("used", "rounded", "zeroed"):
            made = f"{i}.{part}"
            nodes.append(helper.make_node("MatMul", [last, f"layers.{i}.{part}"], [made]))
            nodes.append(helper.make_node("Mul", [made, f"scale.{part}"], [f"{made}.scaled"]))
            nodes.append(helper.make_node("Add", [last, f"{made}.scaled"], [f"{made}.sum"]))
            last = f"{made}.sum"
    nodes.append(helper.make_node("Mul", ["aside", "scale.zeroed"], ["nothing"]))
    nodes.append(helper.make_node("Add", [last, "nothing"], ["y"]))
    scales = {"used": 0.5, "rounded": 1e-7, "zeroed": 0.0}
    rows = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", _WIDTH]) for n in "xy"]
    square = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [_WIDTH, _WIDTH]) for n in names]
    graph = helper.make_graph(
        nodes,
        "layers",
        [rows[0], *square],
        [rows[1]],
        [
            numpy_helper.from_array(np.array(v, np.float32), f"scale.{part}")
            for part, v in scales.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    generator = np.random.default_rng(0)
    weights = {
        name: generator.standard_normal((_WIDTH, _WIDTH), np.float32) for name in sorted(names)
    }
    return model.SerializeToString(), weights, {"x": np.ones((3, _WIDTH), np.float32)}


def test_a_rounding_is_a_change_and_what_comes_to_nothing_is_none() -> None:
    graph, weights, feeds = layers(3)
    before = {name: array.copy() for name, array in weights.items()}
    dead = dead_weights(graph, weights, feeds, ["y"])
    assert dead == ["layers.0.handed", *(f"layers.{i}.zeroed" for i in range(3))]
    for name, array in before.items():
        np.testing.assert_array_equal(weights[name], array)


def test_twice_the_layers_cost_twice_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running all of a deep model for each of its weights would cost four times as much."""
    read = 0
    run = mutations._run

    def counted(session: Any, stage: Any, values: Any) -> Any:
        nonlocal read
        read += len(stage.weights)
        return run(session, stage, values)

    monkeypatch.setattr(mutations, "_run", counted)
    costs = []
    for count in (8, 16):
        read = 0
        graph, weights, feeds = layers(count)
        assert len(dead_weights(graph, weights, feeds, ["y"])) == count + 1
        costs.append(read)
    assert costs[1] < 2.2 * costs[0]
