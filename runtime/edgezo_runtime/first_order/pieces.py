"""Pieces of a graph as ONNX Runtime sessions, and the values that they hand to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.devices import Binder, Device
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.first_order.graph import Piece
from edgezo_runtime.ort import onnxruntime


class Pieces:
    """Runs pieces on a device; those that compute the same share a session.

    Args:
        folder: of the bundle, for errors.
        device: where the values lie that they hand to each other.
    """

    def __init__(self, folder: Path, device: Device) -> None:
        self._folder, self._device = folder, device
        self._sessions: dict[bytes, Any] = {}

    def run(self, piece: Piece, values: Values) -> None:
        """Runs one piece on `values`, and adds what it makes to them.

        Raises:
            InputError: ONNX Runtime cannot load it.
            EdgezoError: ONNX Runtime failed.
        """
        session = self._sessions.get(piece.model)
        if session is None:
            try:
                session = self._device.open_session(piece.model, piece=True)
            except Exception as error:
                raise InputError(
                    f"ONNX Runtime cannot load the graph of gradients of {self._folder}: {error}"
                ) from error
            self._sessions[piece.model] = session
        binding = session.io_binding()  # a fresh one: it would keep these values alive
        try:
            for name, own in piece.inputs:
                values.bind(name, binding, own)
            for _, own in piece.outputs:
                self._device.bind_output(binding, own)
            session.run_with_iobinding(binding)
        except Exception as error:
            raise EdgezoError(f"ONNX Runtime failed on a gradient: {error}") from error
        made = binding.get_outputs()
        del binding
        values.done([name for name, _ in piece.outputs], made)


class Values:
    """The values that pieces hand to each other; each is freed after the piece that uses it last.

    Args:
        device: where they lie.
        given: bind weights and data, which stay.
        pieces: in the order in which they run.
    """

    def __init__(
        self, device: Device, given: Mapping[str, Binder], pieces: Sequence[Piece]
    ) -> None:
        self._device = device
        self._given = dict(given)
        self._made: dict[str, Any] = {}
        self._uses = {
            name: number for number, piece in enumerate(pieces) for name, _ in piece.inputs
        }
        self._ran = 0

    def bind(self, name: str, binding: Any, own: str) -> None:
        """Binds the input `own` of a piece to the value `name`."""
        if name in self._given:
            self._given[name](binding, own)
        else:
            binding.bind_ortvalue_input(own, self._made[name])

    def give(self, name: str, binder: Binder) -> None:
        """Adds a value that stays."""
        self._given[name] = binder

    def host(self, name: str) -> np.ndarray:
        """Returns what a piece made as NumPy's array."""
        return self._device.host(self._device.adopt(self._made[name]))

    def pop(self, name: str) -> Any:
        """Returns what a piece made as the device's array; nothing else needs it."""
        return self._device.adopt(self._made.pop(name))

    def done(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Adds what the next piece made, and frees what nothing after it uses."""
        self._made.update(zip(names, values, strict=True))
        for name in [n for n in self._made if self._uses.get(n, len(self._uses)) <= self._ran]:
            del self._made[name]
        self._ran += 1


def bind_weights(bundle: Bundle, weights: Mapping[str, Any], device: Device) -> dict[str, Binder]:
    """Returns what binds each parameter of `bundle` to the memory of its array in `weights`."""
    return {
        p.name: device.binder(weights[p.name], dtypes.named(p.dtype))
        for p in bundle.manifest.parameters
    }


def fed(array: np.ndarray) -> Binder:
    """Returns what binds an input to data of the host."""
    value = onnxruntime().OrtValue.ortvalue_from_numpy(array)
    return lambda binding, name: binding.bind_ortvalue_input(name, value)
