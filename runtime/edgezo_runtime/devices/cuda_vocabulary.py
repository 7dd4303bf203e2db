"""The end of a lean graph on a card: a product of our own, and one kernel that reads it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

_BYTES = 100 << 20  # of scores at once: more take memory, fewer are products of few rows
_TILE = 256  # rows that products are computed by
MULTIPLIED = ("float16", "float32")  # the dtypes that CuPy multiplies


@dataclass(frozen=True)
class _Output:
    """What a session would say of an output."""

    name: str
    type: str = "tensor(float)"


class VocabularyPart(CardPart):
    """A recorded part whose graph lacks its end, and that end, where somebody asks for it.

    Args:
        device: where it runs.
        body: the graph without its end.
        end: what is lacking.
        weight: its matrix; see `Logprobs`.
    """

    def __init__(
        self, device: CudaDevice, body: RecordedPart, end: Vocabulary, weight: Any
    ) -> None:
        self._device, self._body, self._end = device, body, end
        self._logprobs = Logprobs(device, weight)
        self.inputs = body.inputs
        others = {name: node for name, node in body.outputs.items() if name != end.hidden}
        self.outputs = others | {end.output: _Output(end.output)}

    def keep(self, name: str, binder: Binder) -> None:
        self._body.keep(name, binder)

    def hold(self, name: str, value: Any) -> None:
        self._body.hold(name, value)

    def launch(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, Any]:
        end = self._end
        others = [name for name in outputs if name != end.output]
        values = self._body.launch(feeds, [*others, end.hidden])
        targets = feeds[end.targets]
        return _Values(values, end.output, lambda: self._logprobs(values[end.hidden], targets))


class _Values(dict[str, Any]):
    """A run's outputs, of which one is computed when it is asked for."""

    def __init__(self, values: Mapping[str, Any], late: str, compute: Callable[[], Any]) -> None:
        super().__init__(values)
        self._late, self._compute = late, compute

    def __missing__(self, name: str) -> Any:
        if name != self._late:
            raise KeyError(name)
        return self._compute()


class Logprobs:
    r"""Computes :math:`\log \mathrm{softmax}(h W^\top)` at each row's target.

    Scores are rounded to the weights' dtype, and lie in one buffer whatever the shapes.

    Args:
        device: where it is done.
        weight: W, (vocabulary, features) float16 or float32 on the card, as it will be.
    """

    def __init__(self, device: CudaDevice, weight: Any) -> None:
        self._device, self._weight = device, weight
        rows = _BYTES // (len(weight) * weight.dtype.itemsize)
        self._most = max(rows // _TILE * _TILE or rows, 1)  # at once
        self._scores: Any = None

    def __call__(self, hidden: Any, targets: np.ndarray) -> Any:
        """Queues the computation; returns (answers,) float32 on the card.

        Args:
            hidden: h, (answers, features) on the card, of the weights' dtype.
            targets: (answers,) int64 of the host.

        Raises:
            InputError: a target is none of the vocabulary.
        """
        xp, weight = self._device.xp, self._weight
        answers, columns = len(hidden), len(weight)
        low, high = targets.min(initial=0), targets.max(initial=0)
        if targets.shape != (answers,) or low < 0 or high >= columns:
            raise InputError(f"targets must be {answers} tokens from 0 to {columns - 1}")
        given = (("DTYPE", dtypes.named(weight.dtype.name).onnx), ("PLAIN", 1))
        log_softmax = kernel("vocabulary.cu", "vocabulary", given)
        pieces = max(-(-answers // self._most), 1)
        size = -(-answers // pieces)
        with self._device.stream:
            logprobs, wanted = xp.empty(answers, np.float32), xp.empty(answers, np.int64)
            wanted.set(np.ascontiguousarray(targets, np.int64))
            for start in range(0, answers, max(size, 1)):
                rows = hidden[start : start + size]
                scores = self._buffer(size * columns)[: len(rows) * columns]
                scores = scores.reshape(len(rows), columns)
                xp.dot(rows, weight.T, out=scores)
                arguments = (scores, wanted[start:], logprobs[start:], np.uint64(columns))
                log_softmax((len(rows),), (THREADS,), arguments)
        return logprobs

    def _buffer(self, size: int) -> Any:
        if self._scores is None or self._scores.size < size:
            doubled = 0 if self._scores is None else 2 * self._scores.size
            self._scores = None  # there may be no room for both
            size = min(max(size, doubled), self._most * len(self._weight))
            self._scores = self._device.empty((size,), self._weight.dtype)
        return self._scores
