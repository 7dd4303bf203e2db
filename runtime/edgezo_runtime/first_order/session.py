"""Loss and gradients of a batch, over weights that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.bundle import GRADIENTS, Bundle
from edgezo_runtime.devices import Device
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.draws import NO_RUN, Draws
from edgezo_runtime.first_order.graph import cotangent_of, gradient_of
from edgezo_runtime.first_order.pieces import Pieces, Values, fed, fed_weights
from edgezo_runtime.first_order.required import check_differentiable, read_graph
from edgezo_runtime.first_order.stages import Plan, plan
from edgezo_runtime.inputs import Inputs

_MOST_DRAWS = 1 << 16  # of a product

#: Takes a weight's name and its gradient, on the weights' device, which is the taker's to change.
Taker = Callable[[str, Any], None]


class GradientSession:
    """Runs a bundle's gradient graph, one stage of it at a time.

    Args:
        bundle: one with a gradient graph.
        weights: every parameter by name: C-contiguous arrays of the device in storage dtype. They
            are aliased.
        device: where the weights lie.
        keep: how much is kept between the passes; see `stages.plan`.

    Raises:
        InputError: the bundle has no gradient graph, or it is damaged.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: Mapping[str, Any],
        device: Device,
        keep: float = 0,
    ) -> None:
        self._graph = read_graph(bundle, device, GRADIENTS)
        self._folder, self._keep, self._device = bundle.folder, keep, device
        self._inputs = Inputs(bundle.manifest.inputs)
        self._outputs = [port.name for port in bundle.manifest.outputs]
        self._weights = fed_weights(bundle, weights, device)
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}
        self._pieces = Pieces(bundle.folder, device)

    def run(
        self,
        batch: BaseBatch,
        names: Sequence[str],
        take: Taker,
        given: Mapping[str, np.ndarray] | None = None,
        draws: Draws = NO_RUN,
    ) -> float:
        """Gives `take` the gradients of the batch's mean loss by the weights `names`.

        Each is handed over as soon as it is whole, the last layer's first, and nothing that is
        still to be computed reads its weight: it may be changed at once, in place.

        Args:
            batch: the data, and the objective.
            names: of trained float32 weights.
            take: called once for each; not at all if the loss is not finite.
            given: what is known of the batch already: values below all that is differentiated.
            draws: names the numbers by which rows are chosen, where gradients are estimated.

        Returns:
            The mean loss of the batch, in nats.

        Raises:
            InputError: a weight has no gradient in the graph, or it lacks a value that is given; or
                the batch does not give what the graph takes.
            EdgezoError: ONNX Runtime failed.
        """
        given = given or {}
        check_differentiable(batch)
        inputs = self._inputs.of(batch)
        chosen = self._plan(tuple(names), tuple(given))
        feeds = {name: fed(array) for name, array in {**inputs, **given}.items()}
        known = {**self._weights, **feeds}
        values = Values(self._device, known, [*chosen.forward, *chosen.backward])
        for piece in chosen.forward:
            self._pieces.run(piece, values)
        outputs = {name: values.host(name) for name in self._outputs}
        loss = batch.objective.loss(outputs)
        if not np.isfinite(loss):
            return loss
        for name, cotangent in batch.objective.cotangents(outputs).items():
            values.give(cotangent_of(name), fed(cotangent))
        weights = {gradient_of(name): name for name in names}
        count = min(max(array.size for array in inputs.values()), _MOST_DRAWS)
        products = {name: number for number, name in enumerate(self._graph.uniforms)}
        for piece in chosen.backward:
            for name in products.keys() & {name for name, _ in piece.inputs}:
                drawn = draws.uniform(products[name], len(products), count)
                values.give(name, fed(drawn))
            self._pieces.run(piece, values)
            for name, _ in piece.outputs:
                if name in weights:
                    take(weights[name], values.pop(name))
        return loss

    def gradients(self, batch: BaseBatch, names: Sequence[str]) -> dict[str, Any]:
        """Returns the gradients by the weights `names`, all at once."""
        found: dict[str, Any] = {}
        self.run(batch, names, found.__setitem__)
        return found

    def _plan(self, names: tuple[str, ...], given: tuple[str, ...]) -> Plan:
        if (names, given) not in self._plans:
            if not self._graph.made_by.keys() >= {*given}:
                raise InputError(
                    f"the gradient graph of {self._folder} was made of another graph: make it "
                    "again with `edgezo export --gradients`"
                )
            missing = [n for n in names if gradient_of(n) not in self._graph.outputs]
            if missing:
                raise InputError(
                    f"the gradient graph of {self._folder} has no gradient by {missing[0]!r}: "
                    "tune other weights, or with a method that needs no gradients, such as mezo"
                )
            self._plans[names, given] = plan(
                self._graph, self._outputs, self._weights.keys(), names, self._keep, given
            )
        return self._plans[names, given]
