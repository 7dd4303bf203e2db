"""Tuning: edgezo's own engine, alone in its process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgezo.bench.processes import serve, timed
from edgezo_runtime.arena import Term
from edgezo_runtime.batch import Batch, CandidateLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.memory import peak_bytes, resident_bytes
from edgezo_runtime.methods import make
from edgezo_runtime.noise import Direction
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.select import FULL
from edgezo_runtime.session import Session
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights

_METHOD = "mezo"
_LR = np.float32(1e-7)  # the loss must stay where it is, however many steps are timed
_SCALE = np.float32(1e-3)


class TuningWorker:
    """Takes MeZO steps on one batch, and times them and their parts.

    It has no tokenizer, since plain inference has none either.
    """

    def __init__(self) -> None:
        onnxruntime()
        self._resident = resident_bytes()

    def open(
        self, bundle: str, feeds: str, labels: list[int], threads: int, tune: str = FULL
    ) -> None:
        """Loads the bundle to tune `tune` of it, and the batch's inputs from an ``.npz`` file."""
        with np.load(feeds) as file:
            inputs: dict[str, Any] = {name: file[name] for name in file.files}
        self._batch = Batch(**inputs, objective=CandidateLoss(np.array(labels)))
        self._weights = Weights(open_bundle(bundle), tune, CpuDevice(threads))
        self._weights.load()
        self._session = Session(
            self._weights.bundle,
            self._weights.arrays(),
            self._weights.arena.views.keys(),
            self._weights.device,
        )
        header = describe(self._weights, make(_METHOD, self._weights.arena, 0, {}))
        self._tuning = Tuning(self._weights, MemoryJournal(header))
        self._threads = threads

    def candidate_logits(self) -> list[list[float]]:
        """Returns the logits of the candidates, (answers, choices)."""
        self._weights.arena.settle()
        return self._session.forward(self._batch)["candidate_logits"].tolist()

    def loss(self) -> float:
        """Returns the batch's mean loss."""
        self._weights.arena.settle()
        return self._batch.objective.loss(self._session.forward(self._batch))

    def step(self, count: int) -> list[float]:
        """Returns the seconds of each of `count` MeZO steps."""
        return timed(lambda: self._tuning.step(self.loss, _LR), count)

    def forward(self, count: int) -> list[float]:
        """Returns the seconds of each of `count` forward passes."""
        self._weights.arena.settle()
        return timed(self.loss, count)

    def sweep(self, count: int) -> list[float]:
        """Returns the seconds of each of `count` sweeps of one term over all weights."""
        arena = self._weights.arena
        arena.settle()
        return timed(_there_and_back(lambda c: arena.add(Term(Direction(0, 1), c))), count)

    def add(self, count: int) -> list[float]:
        """Returns the seconds of each of `count` times NumPy's own ``w += c`` over all weights."""
        arena = self._weights.arena
        arena.settle()
        buffers = list(arena.buffers.values())
        return timed(_there_and_back(lambda c: [np.add(w, c, out=w) for w in buffers]), count)

    def threaded_add(self, count: int) -> list[float]:
        """The same, cut up for as many threads as a sweep has."""
        arena = self._weights.arena
        arena.settle()
        parts = [p for b in arena.buffers.values() for p in np.array_split(b, self._threads)]
        with ThreadPoolExecutor(self._threads) as pool:

            def add(c: np.float32) -> None:
                list(pool.map(lambda w: np.add(w, c, out=w), parts))

            add(np.float32(0))  # starts the threads, which the arena's own have been for long
            return timed(_there_and_back(add), count)

    def peak(self) -> int:
        """Returns the most bytes held, above the process after its imports."""
        return peak_bytes() - self._resident


def _there_and_back(add: Callable[[np.float32], object]) -> Callable[[], object]:
    """Returns a function that adds, then subtracts, and so on: the weights stay where they are."""
    scale = _SCALE

    def turn() -> None:
        nonlocal scale
        add(scale)
        scale = -scale

    return turn


if __name__ == "__main__":
    serve(TuningWorker())
