"""Loss and gradients of a batch, over weights that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.bundle import GRADIENTS, Bundle
from edgezo_runtime.devices import Device
from edgezo_runtime.devices.cpu import alias, session_options
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.first_order.graph import Graph, Piece, cotangent_of, gradient_of
from edgezo_runtime.first_order.stages import Plan, plan
from edgezo_runtime.ort import onnxruntime

#: Takes a weight's name and its gradient, which is the taker's to change.
Taker = Callable[[str, np.ndarray], None]


def check_gradients(bundle: Bundle, device: Device) -> bytes:
    """Returns the bundle's gradient graph.

    Raises:
        InputError: it has none, and the message says how to make one; or the device is no CPU.
    """
    if device.name != "cpu":
        raise InputError(f"true gradients run on the CPU, not on {device.name}: use --device cpu")
    if not bundle.differentiates:
        raise InputError(
            f"{bundle.folder} has no gradient graph, which this method needs: make a bundle that "
            f"has one with `edgezo export {bundle.folder} --gradients --out NEW`"
        )
    return bundle.read_graph(GRADIENTS)


class GradientSession:
    """Runs a bundle's gradient graph on the CPU, one stage of it at a time.

    Args:
        bundle: one with a gradient graph.
        weights: every parameter by name: C-contiguous arrays in storage dtype. They are aliased.
        device: the CPU, with as many threads as ONNX Runtime may use.
        keep: whether products with weights are kept between the passes; see `stages.plan`.

    Raises:
        InputError: the bundle has no gradient graph, or it is damaged.
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: Mapping[str, np.ndarray],
        device: Device,
        keep: bool = False,
    ) -> None:
        try:
            self._graph = Graph(check_gradients(bundle, device))
        except (ValueError, IndexError) as error:
            raise InputError(f"{bundle.folder} has a damaged gradient graph: {error}") from error
        self._folder, self._threads, self._keep = bundle.folder, device.threads, keep
        self._outputs = [port.name for port in bundle.manifest.outputs]
        self._weights = {
            p.name: alias(weights[p.name], dtypes.named(p.dtype))
            for p in bundle.manifest.parameters
        }
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}
        self._sessions: dict[bytes, Any] = {}

    def run(
        self,
        batch: BaseBatch,
        names: Sequence[str],
        take: Taker,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> float:
        """Gives `take` the gradients of the batch's mean loss by the weights `names`.

        Each is handed over as soon as it is whole, the last layer's first, and nothing that is
        still to be computed reads its weight: it may be changed at once, in place.

        Args:
            batch: the data, and the objective.
            names: of trained float32 weights.
            take: called once for each; not at all if the loss is not finite.
            given: what is known of the batch already: values below all that is differentiated.

        Returns:
            The mean loss of the batch, in nats.

        Raises:
            InputError: a weight has no gradient in the graph, or it lacks a value that is given.
            EdgezoError: ONNX Runtime failed.
        """
        given = given or {}
        if type(batch).loss is not BaseBatch.loss:
            raise InputError(
                f"{type(batch).__name__} is judged by more than one forward pass, which has no "
                "gradient: tune with a method that needs none, such as mezo"
            )
        chosen = self._plan(tuple(names), tuple(given))
        value = onnxruntime().OrtValue.ortvalue_from_numpy
        feeds = {name: value(array) for name, array in {**batch.feeds(), **given}.items()}
        values = _Values({**self._weights, **feeds}, [*chosen.forward, *chosen.backward])
        for piece in chosen.forward:
            self._run(piece, values)
        outputs = {name: values.get(name).numpy() for name in self._outputs}
        loss = batch.objective.loss(outputs)
        if not np.isfinite(loss):
            return loss
        for name, cotangent in batch.objective.cotangents(outputs).items():
            values.put(cotangent_of(name), value(cotangent))
        weights = {gradient_of(name): name for name in names}
        for piece in chosen.backward:
            self._run(piece, values)
            for name, _ in piece.outputs:
                if name in weights:
                    take(weights[name], values.pop(name).numpy())
        return loss

    def gradients(self, batch: BaseBatch, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the gradients by the weights `names`, all at once."""
        found: dict[str, np.ndarray] = {}
        self.run(batch, names, found.__setitem__)
        return found

    def _run(self, piece: Piece, values: _Values) -> None:
        session = self._sessions.get(piece.model)
        if session is None:
            try:
                session = _open(piece.model, self._threads)
            except Exception as error:
                raise InputError(
                    f"ONNX Runtime cannot load the gradient graph of {self._folder}: {error}"
                ) from error
            self._sessions[piece.model] = session
        feeds = {own: values.get(name) for name, own in piece.inputs}
        try:
            made = session.run_with_ort_values([own for _, own in piece.outputs], feeds)
        except Exception as error:
            raise EdgezoError(f"ONNX Runtime failed on a gradient: {error}") from error
        del feeds
        values.done([name for name, _ in piece.outputs], made)

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


def _open(model: bytes, threads: int) -> Any:
    options = session_options(threads)
    # Many sessions take turns: what one keeps for its next run, the others would want.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Values:
    """The values that pieces hand to each other; each is freed after the piece that uses it last.

    Args:
        given: weights and data, which stay.
        pieces: in the order in which they run.
    """

    def __init__(self, given: dict[str, Any], pieces: Sequence[Piece]) -> None:
        self._given = given
        self._made: dict[str, Any] = {}
        self._uses = {
            name: number for number, piece in enumerate(pieces) for name, _ in piece.inputs
        }
        self._ran = 0

    def get(self, name: str) -> Any:
        """Returns the OrtValue `name`."""
        return self._given[name] if name in self._given else self._made[name]

    def put(self, name: str, value: Any) -> None:
        """Adds a value."""
        self._made[name] = value

    def pop(self, name: str) -> Any:
        """Returns the value `name`, which nothing else needs."""
        return self._made.pop(name)

    def done(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Adds what the next piece made, and frees what nothing after it uses."""
        self._made.update(zip(names, values, strict=True))
        for name in [n for n in self._made if self._uses.get(n, len(self._uses)) <= self._ran]:
            del self._made[name]
        self._ran += 1
