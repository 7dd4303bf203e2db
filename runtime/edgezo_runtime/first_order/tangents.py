"""Loss of a batch and its derivative along a direction, by forward mode, at still weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.arena import ALIGNMENT, Arena
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.bundle import TANGENTS, Bundle
from edgezo_runtime.devices import Device
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import Piece, tangent_of
from edgezo_runtime.first_order.pieces import Pieces, Values, fed, fed_weights
from edgezo_runtime.first_order.required import check_differentiable, read_graph
from edgezo_runtime.first_order.stages import tangent_plan
from edgezo_runtime.inputs import Inputs
from edgezo_runtime.noise import AnyDirection
from edgezo_runtime.noise import Values as Elements

#: Products with weights that a pass takes, each worth a forward pass: of value and weight, of the
#: value's tangent and the weight, and of the value and the weight's tangent.
FORWARDS = 3


@dataclass(frozen=True)
class _Tangent:
    """The tangent of one weight, as one stage needs it.

    Attributes:
        name: of the value in the graph.
        elements: where it is written, flat.
        value: over the same memory, in the weight's shape, as `Device.run` takes it.
        offset: of its first element in the noise's index space.
    """

    name: str
    elements: Any
    value: Any
    offset: int


#: The pieces of a pass in their order, each with the tangents that it reads.
Stages = Sequence[tuple[Piece, Sequence[_Tangent]]]


class TangentSession:
    """Runs a bundle's tangent graph, one stage of it at a time.

    The tangents of the weights are elements of a direction. Those of one stage at a time are drawn,
    into one buffer.

    Args:
        bundle: one with a tangent graph.
        weights: every parameter by name: C-contiguous arrays of the device in storage dtype. They
            are aliased.
        arena: the trained ones among them, which have tangents.
        device: where they lie.

    Raises:
        InputError: the bundle has no tangent graph, or it is damaged.
    """

    def __init__(
        self, bundle: Bundle, weights: Mapping[str, Any], arena: Arena, device: Device
    ) -> None:
        self._graph = read_graph(bundle, device, TANGENTS)
        self._bundle, self._arena, self._device = bundle, arena, device
        self._inputs = Inputs(bundle.manifest.inputs)
        self._outputs = [port.name for port in bundle.manifest.outputs]
        self._weights = fed_weights(bundle, weights, device)
        self._pieces = Pieces(bundle.folder, device)
        self._plans: dict[tuple[str, ...], Stages] = {}

    def run(
        self,
        batch: BaseBatch,
        direction: AnyDirection,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[float, float]:
        r"""Returns the batch's mean loss, in nats, and its derivative along a direction.

        .. math:: g = \langle \nabla L(\theta), z \rangle

        It is not a number where the loss is not finite.

        Args:
            batch: the data, and the objective.
            direction: of the arena's index space; without ranges.
            given: what is known of the batch already: values below all weights that have tangents.

        Raises:
            InputError: the loss has no derivative, or the graph lacks a value that is given; or the
                batch does not give what the graph takes.
            EdgezoError: ONNX Runtime failed.
        """
        check_differentiable(batch)
        drawn = direction.draw(self._device.xp, self._arena.size)
        given = given or {}
        stages = self._stages(tuple(given))
        feeds = {name: fed(array) for name, array in {**self._inputs.of(batch), **given}.items()}
        known = {**self._weights, **feeds}
        values = Values(self._device, known, [piece for piece, _ in stages])
        for piece, tangents in stages:
            for tangent in tangents:
                _fill(tangent.elements, drawn, tangent.offset, self._device.span)
                values.give(tangent.name, tangent.value)
            self._pieces.run(piece, values)
        made = {name for piece, _ in stages for name, _ in piece.outputs}
        outputs = {name: values.host(name) for name in self._outputs}
        loss = batch.objective.loss(outputs)
        if not np.isfinite(loss):
            return loss, math.nan
        slope = 0.0
        for name, cotangent in batch.objective.cotangents(outputs).items():
            if tangent_of(name) in made:
                tangent = values.host(tangent_of(name)).astype(np.float64)
                slope += float(np.vdot(cotangent, tangent))
        return loss, slope

    def _stages(self, given: tuple[str, ...] = ()) -> Stages:
        """The pieces in their order, each with the tangents of the weights that it reads."""
        if given not in self._plans:
            self._plans[given] = self._planned(given)
        return self._plans[given]

    def _planned(self, given: tuple[str, ...]) -> Stages:
        if not self._graph.made_by.keys() >= {*given}:
            raise InputError(
                f"the tangent graph of {self._bundle.folder} was made of another graph: make it "
                "again with `edgezo export --tangents`"
            )
        trained = {tangent_of(p.name): p for p in self._arena.parameters}
        missing = [p.name for name, p in trained.items() if name not in self._graph.inputs]
        if missing:
            raise InputError(
                f"the tangent graph of {self._bundle.folder} has no tangent of {missing[0]!r}: "
                "tune other weights, or with a method that needs none, such as mezo"
            )
        wanted = self._arena.views.keys()
        pieces = tangent_plan(self._graph, self._outputs, self._weights.keys(), set(wanted), given)
        read = [[trained[n] for n, _ in piece.inputs if n in trained] for piece in pieces]
        starts = [np.cumsum([0, *(_padded(p.size) for p in each)]) for each in read]
        room = self._device.zeros(max(int(each[-1]) for each in starts), np.dtype(np.float32))
        stages = []
        for piece, parameters, places in zip(pieces, read, starts, strict=True):
            tangents = []
            for parameter, start in zip(parameters, places, strict=False):
                flat = room[start : start + parameter.size]
                value = self._device.handle(flat.reshape(parameter.shape), dtypes.FLOAT32)
                offset = self._arena.noise_offsets[parameter.name]
                tangents.append(_Tangent(tangent_of(parameter.name), flat, value, offset))
            stages.append((piece, tangents))
        return stages


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _fill(out: Any, elements: Elements, offset: int, span: int) -> None:
    """Writes elements of a direction from `offset` on to `out`, span by span."""
    start = 0
    while start < out.size:
        stop = min(out.size, start + span - (offset + start) % span)
        out[start:stop] = elements(offset + start, offset + stop)
        start = stop
