"""The frozen lower layers' outputs of a run's training rows, kept in its folder."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np

from edgezo.callbacks import Callback
from edgezo.objectives import ANSWER_METRICS
from edgezo.run_folder import RunFolder
from edgezo.settings import RunSettings
from edgezo.tasks import Generate
from edgezo.training_data import TrainingData
from edgezo_runtime.batch import BaseBatch
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import Model

NAME = "prefix.cache"


def check_prefix(model: Model, data: TrainingData, settings: RunSettings) -> None:
    """Raises InputError if a run cannot keep what its settings ask for."""
    if settings.prefix_cache is None:
        return
    if isinstance(data.task, Generate) and settings.objective in ANSWER_METRICS:
        raise InputError(
            f"--objective {settings.objective} judges texts that the whole model writes, which "
            "needs more than --prefix-cache keeps: leave it out"
        )
    model.check_prefix()


@contextlib.contextmanager
def cached_prefix(
    model: Model, run: RunFolder, data: TrainingData, settings: RunSettings, callback: Callback
) -> Iterator[None]:
    """Lets the steps of a run start from the frozen layers' outputs, if its settings say so.

    The file lies in the run's folder until the run is finished.
    """
    if settings.prefix_cache is None or run.weights.exists():
        yield
        return
    order = np.argsort([example.length for example in data.train], kind="stable")
    size = settings.batch_size

    def batches() -> Iterator[BaseBatch]:
        for at in range(0, len(order), size):
            yield from data.batch(order[at : at + size]).passes()

    path = run.path / NAME
    tell = functools.partial(callback.on_prefix_cache, path)
    with model.cached_prefix(path, batches, settings.prefix_cache, tell):
        yield
    if run.weights.exists():
        path.unlink(missing_ok=True)
