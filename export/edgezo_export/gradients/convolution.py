"""Reverse mode through convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgezo_export.gradients.movement import known_rank
from edgezo_export.gradients.tape import Tape, only
from edgezo_export.gradients.writer import Writer, dims, no_gradient


@dataclass(frozen=True)
class Convolution:
    """What a Conv node says, for each of its spatial axes.

    Raises:
        InputError: its padding depends on the input's size.
    """

    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    groups: int

    @classmethod
    def of(cls, node: ir.Node) -> Convolution:
        axes = known_rank(node) - 2
        if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
            raise no_gradient(node, ", padded by the size of its input")
        pads = list(node.attributes.get_ints("pads", [])) or [0] * (2 * axes)
        strides, dilations = (
            list(node.attributes.get_ints(name, [])) or [1] * axes
            for name in ("strides", "dilations")
        )
        groups = node.attributes.get_int("group", 1)
        return cls(strides, dilations, pads[:axes], pads[axes:], groups)

    @property
    def skips(self) -> bool:
        """Whether its strides may leave out the input's last places."""
        return any(stride > 1 for stride in self.strides)

    @property
    def spatial(self) -> list[int]:
        return [2 + i for i in range(len(self.strides))]


def _convolution(tape: Tape, node: ir.Node, cotangents: Sequence[ir.Value | None]) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    assert x is not None and weight is not None
    said, dy = Convolution.of(node), only(cotangents)
    if tape.wants(x):
        tape.give(x, _input_slope(tape, said, dy, x, weight))
    if tape.wants(weight):
        tape.give(weight, _weight_slope(tape, node, said, dy, x, weight))
    if bias is not None and tape.wants(bias):
        tape.give(bias, tape.summed(dy, [0, *said.spatial], keep=False))


def _input_slope(
    tape: Writer, said: Convolution, dy: ir.Value, x: ir.Value, weight: ir.Value
) -> ir.Value:
    """Spreads each output over the places that it was summed from."""
    after = [0] * len(said.after) if said.skips else said.after
    spread = tape.op(
        "ConvTranspose",
        *(dy, weight),
        strides=said.strides,
        dilations=said.dilations,
        pads=[*said.before, *after],
        group=said.groups,
    )
    if not said.skips:
        return spread
    # Places behind the last output's are as many as the strides leave out: cut, or zeros.
    axes, rank = said.spatial, 2 + len(said.spatial)
    zeros = [0] * rank + [0, 0] + [stride - 1 for stride in said.strides]
    longer = tape.op("Pad", spread, tape.constant(zeros))
    sizes = tape.op("Shape", x, start=2)
    return tape.op("Slice", longer, tape.constant([0] * len(axes)), sizes, tape.constant(axes))


def _weight_slope(
    tape: Writer,
    node: ir.Node,
    said: Convolution,
    dy: ir.Value,
    x: ir.Value,
    weight: ir.Value,
) -> ir.Value:
    """Convolves the input with the output's cotangent: rows are summed over as channels are.

    Strides of the one are dilations of the other.
    """
    size, axes = dims(weight), said.spatial
    if size is None or not all(isinstance(each, int) for each in size):
        raise no_gradient(node, ", whose weight has no fixed shape")
    turned = [1, 0, *axes]
    rows = tape.transposed(x, turned)  # (channels, rows, ...)
    if said.groups > 1:  # (channels of a group, groups * rows, ...)
        own = tape.constant([said.groups, size[1]])
        ends = tape.op("Shape", x, end=1), tape.op("Shape", x, start=2)
        apart = tape.op("Reshape", x, tape.op("Concat", ends[0], own, ends[1], axis=0))
        apart = tape.transposed(apart, [2, 1, 0, *(axis + 1 for axis in axes)])
        merged = tape.op("Concat", tape.constant([size[1], -1]), ends[1], axis=0)
        rows = tape.op("Reshape", apart, merged)
    found = tape.op(
        "Conv",
        *(rows, tape.transposed(dy, turned)),
        strides=said.dilations,
        dilations=said.strides,
        pads=[*said.before, *said.after],
        group=said.groups,
    )
    if said.skips:  # what the strides left out would be seen by places behind the kernel's
        starts, ends = tape.constant([0] * len(axes)), tape.constant(size[2:])
        found = tape.op("Slice", found, starts, ends, tape.constant(axes))
    return tape.transposed(found, turned)


RULES: Mapping[str, Any] = {"Conv": _convolution}
