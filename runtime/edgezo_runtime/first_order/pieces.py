"""Pieces of a graph as ONNX Runtime sessions, and the values that they hand to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.bundle import Bundle
from edgezo_runtime.devices import Device
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
        self._sessions: dict[bytes, tuple[Any, set[str]]] = {}

    def run(self, piece: Piece, values: Values) -> None:
        """Runs one piece on `values`, and adds what it makes to them.

        Raises:
            InputError: ONNX Runtime cannot load it.
            EdgezoError: ONNX Runtime failed.
        """
        session, sizes = self._session(piece.model)
        feeds = {own: values.get(name) for name, own in piece.inputs}
        try:
            made = self._device.run(session, feeds, [own for _, own in piece.outputs], sizes)
        except Exception as error:
            raise EdgezoError(f"ONNX Runtime failed on a gradient: {error}") from error
        del feeds
        values.done([name for name, _ in piece.outputs], made)

    def _session(self, model: bytes) -> tuple[Any, set[str]]:
        """Returns the session of a piece, and which outputs ONNX Runtime reads on the host."""
        if model not in self._sessions:
            try:
                session = self._device.open_session(model, piece=True)
            except Exception as error:
                raise InputError(
                    f"ONNX Runtime cannot load the graph of gradients of {self._folder}: {error}"
                ) from error
            self._sessions[model] = session, {o.name for o in session.get_outputs() if _is_size(o)}
        return self._sessions[model]


class Values:
    """The values that pieces hand to each other; each is freed after the piece that uses it last.

    Args:
        device: where they lie.
        given: weights and data, which stay; see `Device.run`.
        pieces: in the order in which they run.
    """

    def __init__(self, device: Device, given: Mapping[str, Any], pieces: Sequence[Piece]) -> None:
        self._device = device
        self._given = dict(given)
        self._made: dict[str, Any] = {}
        self._uses = {
            name: number for number, piece in enumerate(pieces) for name, _ in piece.inputs
        }
        self._ran = 0

    def get(self, name: str) -> Any:
        """Returns the value `name`, as `Device.run` takes it."""
        return self._given[name] if name in self._given else self._made[name]

    def give(self, name: str, value: Any) -> None:
        """Adds a value that stays."""
        self._given[name] = value

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


def fed_weights(bundle: Bundle, weights: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """Returns each parameter of `bundle`, over the memory of its array in `weights`."""
    return {
        p.name: device.handle(weights[p.name], dtypes.named(p.dtype))
        for p in bundle.manifest.parameters
    }


def _is_size(output: Any) -> bool:
    """Whether an output says how large something is, and is no data."""
    return output.type == "tensor(int64)" and len(output.shape) < 2


def fed(array: np.ndarray) -> Any:
    """Returns data of the host."""
    return onnxruntime().OrtValue.ortvalue_from_numpy(array)
