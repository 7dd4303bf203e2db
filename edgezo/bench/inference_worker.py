"""Plain inference: ONNX Runtime's own default session, alone in its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgezo.bench.processes import serve, timed
from edgezo_runtime.memory import peak_bytes, resident_bytes
from edgezo_runtime.ort import onnxruntime


class InferenceWorker:
    """Runs a model whose weights are constants.

    Nothing is set on the session, unless a number of threads was asked for.
    """

    def __init__(self) -> None:
        self._ort = onnxruntime()
        self._resident = resident_bytes()

    def open(self, model: str, feeds: str, threads: int | None) -> None:
        """Loads the model and the inputs, an ``.npz`` file."""
        with np.load(feeds) as file:
            self._feeds = {name: file[name] for name in file.files}
        before = _threads_now()
        settings: dict[str, Any] = {}
        if threads is not None:
            settings["sess_options"] = options = self._ort.SessionOptions()
            options.intra_op_num_threads = threads
        self._session = self._ort.InferenceSession(model, **settings)
        self._threads = None if before is None else (_threads_now() or before) - before + 1

    def threads(self) -> int | None:
        """Returns how many threads the session computes with, where that can be seen."""
        return self._threads

    def candidate_logits(self) -> list[list[float]]:
        """Returns the logits of the candidates, (answers, choices)."""
        return self._session.run(["candidate_logits"], self._feeds)[0].tolist()

    def forward(self, count: int) -> list[float]:
        """Returns the seconds of each of `count` forward passes."""
        return timed(lambda: self._session.run(None, self._feeds), count)

    def peak(self) -> int:
        """Returns the most bytes held, above the process after its imports."""
        return peak_bytes() - self._resident


def _threads_now() -> int | None:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else None


if __name__ == "__main__":
    serve(InferenceWorker())
