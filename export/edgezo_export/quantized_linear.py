"""Quantised linear layers: how a weight is stored, and the nodes that multiply with it.

A scale is clamped to `LEAST_SCALE` in the graph, so that no tuning step turns a weight's sign.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from edgezo_export.rows import rank
from edgezo_runtime.bundle import PACKED, QUANTIZED, Parameter

#: As QZO's code clamps them, see https://arxiv.org/abs/2505.13430.
LEAST_SCALE = 1e-7
_SCALE, _ZERO_POINT = "_scale", "_zero_point"
_CONTRIB = "com.microsoft"
_MIDDLE = 128  # what an integer of eight bits has for zero, unless a zero point says otherwise


class Format(abc.ABC):
    """How a weight (out, in) is stored."""

    @abc.abstractmethod
    def parameters(self, weight: Parameter, shape: tuple[int, int]) -> list[Parameter]:
        """Returns what takes the place of `weight`, whose (out, in) is `shape`."""

    @abc.abstractmethod
    def quantize(self, name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the values of those parameters for `weight`, (out, in) float32."""

    @abc.abstractmethod
    def product(
        self, x: ir.Value, stored: Sequence[ir.Value], shape: tuple[int, int]
    ) -> list[ir.Node]:
        """Returns nodes that multiply `x` (..., in) with the weight; the last gives (..., out)."""


@dataclass(frozen=True)
class BlockFormat(Format):
    r"""Blocks along the input share a scale and a zero point: :math:`w = s (q - z)`.

    ONNX Runtime's `MatMulNBits` reads it.

    Attributes:
        block: weights in a block, a power of two from 16 on.
    """

    block: int

    def parameters(self, weight: Parameter, shape: tuple[int, int]) -> list[Parameter]:
        out, blocks = shape[0], -(-shape[1] // self.block)
        part = _Parts(weight)
        return [
            part.of(PACKED, (out, blocks, self.block // 2), "uint8", QUANTIZED),
            part.of(_SCALE, (out, blocks), "float32", "scale"),
            part.of(_ZERO_POINT, (out, -(-blocks // 2)), "uint8", QUANTIZED),
        ]

    def quantize(self, name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
        config = DefaultWeightOnlyQuantConfig(block_size=self.block, is_symmetric=False)
        quantizer = DefaultWeightOnlyQuantizer(config)
        values = quantizer.qbits_block_quant(np.ascontiguousarray(weight.T))
        # A block of zeros has scale 0, which could never grow.
        values = (values[0], np.maximum(values[1], np.float32(LEAST_SCALE)), values[2])
        names = (PACKED, _SCALE, _ZERO_POINT)
        return {f"{name}{part}": value for part, value in zip(names, values, strict=True)}

    def product(
        self, x: ir.Value, stored: Sequence[ir.Value], shape: tuple[int, int]
    ) -> list[ir.Node]:
        packed, scale, zero_point = stored
        clamped = _clamped(scale)
        product = _matmul((x, packed, clamped[-1].outputs[0], zero_point), shape, 4, self.block)
        return [*clamped, product]


class RowFormat(Format):
    r"""int8 with a scale for each output, symmetric: :math:`w = s (q - 128)`.

    `MatMulNBits` reads it too: it takes the same scale for each block of a row.
    """

    _BLOCK = 32

    def parameters(self, weight: Parameter, shape: tuple[int, int]) -> list[Parameter]:
        part = _Parts(weight)
        return [
            part.of(PACKED, (shape[0], self._blocks(shape), self._BLOCK), "uint8", QUANTIZED),
            part.of(_SCALE, shape[:1], "float32", "scale"),
        ]

    def quantize(self, name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
        scale = np.maximum(np.abs(weight).max(axis=1) / np.float32(127), np.float32(LEAST_SCALE))
        out, blocks = len(weight), self._blocks(weight.shape)
        packed = np.full((out, blocks * self._BLOCK), _MIDDLE, np.uint8)
        packed[:, : weight.shape[1]] = np.rint(weight / scale[:, None]) + _MIDDLE
        return {
            f"{name}{PACKED}": packed.reshape(out, blocks, self._BLOCK),
            f"{name}{_SCALE}": scale,
        }

    def product(
        self, x: ir.Value, stored: Sequence[ir.Value], shape: tuple[int, int]
    ) -> list[ir.Node]:
        packed, scale = stored
        clamped = _clamped(scale)
        column = ir.node("Constant", [], attributes={"value_ints": [-1, 1]})
        sizes = ir.node("Constant", [], attributes={"value_ints": [1, self._blocks(shape)]})
        turned = ir.node("Reshape", [clamped[-1].outputs[0], column.outputs[0]])
        scales = ir.node("Expand", [turned.outputs[0], sizes.outputs[0]])
        product = _matmul((x, packed, scales.outputs[0]), shape, 8, self._BLOCK)
        return [*clamped, column, sizes, turned, scales, product]

    def _blocks(self, shape: Sequence[int]) -> int:
        return -(-shape[1] // self._BLOCK)


FORMATS: dict[str, Format] = {"int4": BlockFormat(32), "int8": RowFormat()}
#: Blocks of int4 that can be asked for.
BLOCKS = (32, 128)


@dataclass(frozen=True)
class _Parts:
    """Names what is stored of one weight."""

    weight: Parameter

    def of(self, part: str, shape: tuple[int, ...], dtype: str, kind: str) -> Parameter:
        return Parameter(f"{self.weight.name}{part}", shape, dtype, kind)


def _matmul(inputs: Sequence[ir.Value], shape: tuple[int, int], bits: int, block: int) -> ir.Node:
    attributes = {"K": shape[1], "N": shape[0], "bits": bits, "block_size": block}
    return ir.node("MatMulNBits", inputs, attributes=attributes, domain=_CONTRIB)


def _clamped(scale: ir.Value) -> list[ir.Node]:
    least = ir.node("Constant", [], attributes={"value_float": LEAST_SCALE})
    return [least, ir.node("Max", [scale, least.outputs[0]])]


@dataclass(frozen=True)
class _Use:
    """One product with a weight."""

    node: ir.Node
    transposed: bool  # the weight is (out, in)


class QuantizeLinears(ir.passes.InPlacePass):
    """Replaces each product with a weight by one with quantised integers.

    Args:
        form: how they are stored.
        parameters: the model's.
        chosen: which, of those that are `quantizable`.

    Attributes:
        parameters: the model's parameters afterwards, in order.
        replaced: the float32 weight of each new parameter, and whether it is (in, out).
    """

    def __init__(
        self, form: Format, parameters: Sequence[Parameter], chosen: Set[tuple[str, bool]]
    ) -> None:
        super().__init__()
        self._form = form
        self._before = parameters
        self._transposed = dict(chosen)
        self.parameters: list[Parameter] = []
        self.replaced: dict[str, tuple[str, bool]] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Runs the pass."""
        inputs = {value.name: value for value in model.graph.inputs}
        self.parameters = []
        for parameter in self._before:
            if parameter.name not in self._transposed:
                self.parameters.append(parameter)
                continue
            value, transposed = inputs[parameter.name], self._transposed[parameter.name]
            out, width = parameter.shape if transposed else parameter.shape[::-1]
            stored = self._form.parameters(parameter, (out, width))
            self.parameters += stored
            self.replaced |= {new.name: (parameter.name, not transposed) for new in stored}
            values = [_input(new) for new in stored]
            for use in _products(value):
                _replace(use.node, self._form.product(_rows(use.node), values, (out, width)))
            _remove_unused(value)
            place = model.graph.inputs.index(value)
            model.graph.inputs[place : place + 1] = values
        if self.replaced:
            model.opset_imports.setdefault(_CONTRIB, 1)
        return ir.passes.PassResult(model, modified=bool(self.replaced))


def quantizable(model: ir.Model, parameters: Sequence[Parameter]) -> set[tuple[str, bool]]:
    """Returns the linear float32 weights that `model` multiplies with and uses for nothing else.

    Returns:
        Their names, and whether they are (out, in).
    """
    inputs = {value.name: value for value in model.graph.inputs}
    linear = (p for p in parameters if p.kind == "linear" and p.dtype == "float32")
    uses = {p.name: _products(inputs[p.name]) for p in linear if not p.aliases}
    return {(name, found[0].transposed) for name, found in uses.items() if found}


def _products(weight: ir.Value) -> list[_Use]:
    """Returns the products with `weight`, none if it is used for anything else."""
    found: list[_Use] = []
    for node, index in weight.uses():
        if node.op_type == "Transpose" and rank(weight) == 2:
            users = node.outputs[0].uses()
            if not all(user.op_type == "MatMul" and place == 1 for user, place in users):
                return []
            found += [_Use(user, True) for user, _ in users]
        elif node.op_type == "Gemm" and index == 1 and _plain(node):
            found.append(_Use(node, bool(node.attributes.get_int("transB", 0))))
        elif node.op_type == "MatMul" and index == 1:
            found.append(_Use(node, False))
        else:
            return []
    return found if len({use.transposed for use in found}) == 1 else []


def _plain(gemm: ir.Node) -> bool:
    scaled = {gemm.attributes.get_float(name, 1.0) for name in ("alpha", "beta")} != {1.0}
    return not scaled and not gemm.attributes.get_int("transA", 0)


def _rows(product: ir.Node) -> ir.Value:
    rows = product.inputs[0]
    assert rows is not None
    return rows


def _replace(product: ir.Node, nodes: list[ir.Node]) -> None:
    graph = product.graph
    assert graph is not None
    output = product.outputs[0]
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    if bias is not None:
        nodes = [*nodes, ir.node("Add", [nodes[-1].outputs[0], bias])]
    graph.insert_before(product, nodes)
    result = nodes[-1].outputs[0]
    result.shape, result.type = output.shape, output.type
    name, output.name = output.name, None
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(product, safe=True)
    result.name = name


def _remove_unused(weight: ir.Value) -> None:
    for node, _ in list(weight.uses()):
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def _input(parameter: Parameter) -> ir.Value:
    dtype = ir.DataType[parameter.dtype.upper().replace("FLOAT32", "FLOAT")]
    shape, kind = ir.Shape(parameter.shape), ir.TensorType(dtype)
    return ir.Value(name=parameter.name, shape=shape, type=kind)
