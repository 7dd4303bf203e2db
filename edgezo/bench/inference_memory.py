"""How much memory plain inference of a bundle needs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgezo.bench.constants import constants_model
from edgezo.bench.processes import WorkerProcess
from edgezo_runtime.bundle import open_bundle

INFERENCE_WORKER = "edgezo.bench.inference_worker"
_FORWARDS = 2


def inference_peak(
    bundle: Path, feeds: Mapping[str, np.ndarray], threads: int | None = None
) -> int:
    """Returns the peak memory of plain inference, in bytes above its process after imports.

    A fresh process loads the bundle's graph with the weights as constants into ONNX Runtime's
    default session and runs it.

    Args:
        bundle: folder of the bundle.
        feeds: the graph's data inputs, as `Batch.feeds` returns them.
        threads: of the session; ONNX Runtime's default if None.

    Raises:
        InputError: the bundle is damaged.
        EdgezoError: the process failed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="edgezo-bench-") as folder,
        constants_model(open_bundle(bundle)) as model,
        WorkerProcess("-m", INFERENCE_WORKER) as worker,
    ):
        worker.call("open", model=str(model), feeds=save_feeds(feeds, folder), threads=threads)
        worker.call("forward", count=_FORWARDS)
        return worker.call("peak")


def save_feeds(feeds: Mapping[str, np.ndarray], folder: Path | str) -> str:
    """Writes `feeds` into `folder` as workers read them, and returns the file's path."""
    path = Path(folder) / "feeds.npz"
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **feeds)
    return str(path)
