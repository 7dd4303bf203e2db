"""The passes that turn an exported graph into one whose weights are inputs."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from edgezo_export.lift import DivideBySqrt, LiftParameters, ParameterNames, lifted
from edgezo_runtime.errors import InputError


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.table = torch.nn.Embedding(5, 3)
        self.unused = torch.nn.Linear(3, 2)


def test_names_of_tied_parameters() -> None:
    names = ParameterNames.of(Scaled(), "model.")
    assert names.source["model.second.weight"] == "first.weight"
    assert names.aliases == {"first.weight": ("second.weight",)}
    assert names.kinds == {
        "first.weight": "linear",
        "table.weight": "embedding",
        "unused.weight": "linear",
        "unused.bias": "bias",
    }


class Sum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(3))
        self.equal = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("offset", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.zero + 2 * self.equal + self.get_buffer("offset")


def exported(model: torch.nn.Module) -> ir.Model:
    program = torch.onnx.export(
        model.eval(), (torch.zeros(2, 3),), dynamo=True, optimize=False, verbose=False
    )
    assert program is not None
    return program.model


def test_equal_values_are_not_merged_and_buffers_stay() -> None:
    graph = lifted(exported(Sum()), ParameterNames.of(Sum())).graph
    assert [value.name for value in graph.inputs] == ["x", "zero", "equal"]
    assert all(value.uses() for value in graph.inputs)
    kept = [v.const_value.numpy().tolist() for v in graph.initializers.values() if v.const_value]
    assert [0.0, 1.0, 2.0] in kept


def test_a_parameter_the_graph_does_not_read_is_named() -> None:
    class Longer(Sum):
        def __init__(self) -> None:
            super().__init__()
            self.forgotten = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(InputError, match="'forgotten'"):
        LiftParameters(ParameterNames.of(Longer()))(exported(Longer()))


@pytest.mark.parametrize("product", ["Mul (x, i)", "Mul (i, x)"])
def test_rms_norm_becomes_a_division(product: str) -> None:
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[4] x, float[1] v) => (float[4] y) {{
            s = Sqrt (v)
            i = Reciprocal (s)
            y = {product}
        }}"""
    )
    assert DivideBySqrt()(model).modified
    last = model.graph.node(-1)
    assert last.op_type == "Div"
    assert [value.name for value in last.inputs if value is not None] == ["x", "s"]
