"""edgezo's steps with true gradients, in a process of their own; `first_order.py` drives it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgezo.bench.processes import serve
from edgezo_runtime.batch import Batch, CandidateLoss
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.memory import peak_bytes, resident_bytes
from edgezo_runtime.methods import make
from edgezo_runtime.model import load
from edgezo_runtime.ort import onnxruntime
from edgezo_runtime.select import FULL

_LR = np.float32(1e-7)  # the loss must stay where it is, however many steps are timed


class FirstOrderWorker:
    """Takes steps on one batch, and times them."""

    def __init__(self) -> None:
        onnxruntime()
        self._resident = resident_bytes()
        self._number = 0
        self._open = contextlib.ExitStack()

    def open(
        self,
        bundle: str,
        feeds: str,
        labels: list[int],
        threads: int,
        optimizer: str,
        tune: str = FULL,
        cache: str | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Loads the bundle to tune `tune` of it, and the batch's inputs from an ``.npz`` file.

        What the layers below `tune` compute is kept in the file `cache`, if one is named.
        """
        with np.load(feeds) as file:
            inputs: dict[str, Any] = {name: file[name] for name in file.files}
        model = load(bundle, tune=tune, threads=threads)
        batch = Batch(**inputs, objective=CandidateLoss(np.array(labels)))
        if cache is not None:
            self._open.enter_context(model.cached_prefix(Path(cache), lambda: [batch]))
        self._loss = BatchLoss(model, batch)
        self._method = make(optimizer, model.arena, 0, settings or {})

    def step(self) -> dict[str, float]:
        """Takes a step; returns the loss before it, and its seconds."""
        started = time.perf_counter()
        self._number += 1
        loss = self._method.step(self._number, self._loss, _LR).loss
        return {"loss": loss, "seconds": time.perf_counter() - started}

    def peak(self) -> int:
        """Returns the most memory that it ever had, above what its libraries take."""
        return peak_bytes() - self._resident


if __name__ == "__main__":
    serve(FirstOrderWorker())
