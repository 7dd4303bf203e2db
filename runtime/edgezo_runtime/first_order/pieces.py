"""Pieces of a graph as ONNX Runtime sessions, and the values that they hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgezo_runtime.devices.cpu import session_options
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.first_order.graph import Piece
from edgezo_runtime.ort import onnxruntime


class Pieces:
    """Runs pieces on the CPU; those that compute the same share a session.

    Args:
        folder: of the bundle, for errors.
        threads: that ONNX Runtime may use.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
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
                session = _open(piece.model, self._threads)
            except Exception as error:
                raise InputError(
                    f"ONNX Runtime cannot load the graph of gradients of {self._folder}: {error}"
                ) from error
            self._sessions[piece.model] = session
        feeds = {own: values.get(name) for name, own in piece.inputs}
        try:
            made = session.run_with_ort_values([own for _, own in piece.outputs], feeds)
        except Exception as error:
            raise EdgezoError(f"ONNX Runtime failed on a gradient: {error}") from error
        del feeds
        values.done([name for name, _ in piece.outputs], made)


class Values:
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


def _open(model: bytes, threads: int) -> Any:
    options = session_options(threads)
    # Many sessions take turns: what one keeps for its next run, the others would want.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"])
