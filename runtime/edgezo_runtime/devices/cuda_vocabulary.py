"""The end of a lean graph on a card: a product of our own, and one kernel that reads it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgezo_runtime import dtypes
from edgezo_runtime.devices.cuda_kernels import THREADS, kernel
from edgezo_runtime.devices.cuda_part import CardPart, RecordedPart
from edgezo_runtime.errors import InputError
from edgezo_runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edgezo_runtime.devices.base import Binder
    from edgezo_runtime.devices.cuda import CudaDevice

_BYTES = 1 << 27  # of scores at once: more take memory, fewer are products of few rows
#: What CuPy multiplies.
MULTIPLIED = {np.dtype(np.float16): dtypes.FLOAT16, np.dtype(np.float32): dtypes.FLOAT32}


@dataclass(frozen=True)
class _Output:
    """What a session would say of an output."""

    name: str
    type: str = "tensor(float)"


class VocabularyPart(CardPart):
    """A recorded part whose graph lacks its end, and that end.

    The end's scores lie in one buffer, whatever the shapes, and are not computed where nobody asks.

    Args:
        device: where it runs.
        body: the graph without its end.
        end: what is lacking.
        weight: its matrix, (vocabulary, features) float16 or float32 on the card, as it will be.
    """

    def __init__(
        self, device: CudaDevice, body: RecordedPart, end: Vocabulary, weight: Any
    ) -> None:
        self._device, self._body, self._end, self._weight = device, body, end, weight
        self._scores = device.empty((0,), weight.dtype)
        self.inputs = body.inputs
        others = {name: node for name, node in body.outputs.items() if name != end.hidden}
        self.outputs = others | {end.output: _Output(end.output)}

    def keep(self, name: str, binder: Binder) -> None:
        self._body.keep(name, binder)

    def hold(self, name: str, value: Any) -> None:
        self._body.hold(name, value)

    def launch(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, Any]:
        values = dict(self._body.launch(feeds, [*self._body.outputs]))
        if self._end.output in outputs:
            hidden = values[self._end.hidden]
            with self._device.stream:
                values[self._end.output] = self._logprobs(hidden, feeds[self._end.targets])
        return values

    def _logprobs(self, hidden: Any, targets: np.ndarray) -> Any:
        """Queues what computes the targets' log-probabilities, and returns them.

        Raises:
            InputError: a target is none of the vocabulary.
        """
        xp, weight = self._device.xp, self._weight
        answers, columns = len(hidden), len(weight)
        if targets.shape != (answers,) or targets.min(initial=0) < 0 or (
            targets.max(initial=0) >= columns
        ):
            raise InputError(f"targets must be {answers} tokens from 0 to {columns - 1}")
        logprobs = xp.empty(answers, np.float32)
        wanted = xp.empty(answers, np.int64)
        wanted.set(np.ascontiguousarray(targets, np.int64))
        most = max(_BYTES // (columns * weight.dtype.itemsize), 1)
        pieces = -(-answers // most)
        size = -(-answers // max(pieces, 1))
        if self._scores.size < size * columns:
            self._scores = self._device.empty((size * columns,), weight.dtype)
        given = (("DTYPE", MULTIPLIED[weight.dtype].onnx),)
        for start in range(0, answers, max(size, 1)):
            rows = hidden[start : start + size]
            scores = self._scores[: len(rows) * columns].reshape(len(rows), columns)
            xp.dot(rows, weight.T, out=scores)
            arguments = (scores, wanted[start:], logprobs[start:], np.uint64(columns))
            kernel("vocabulary.cu", "vocabulary", given)((len(rows),), (THREADS,), arguments)
        return logprobs
