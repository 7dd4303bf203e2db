"""Steps with true gradients, taken on one device or another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from layered_bundle import rows_for_layered

from edgezo_runtime import snapshot
from edgezo_runtime.bundle import GRADIENTS, TANGENTS
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.methods import METHODS, make
from edgezo_runtime.model import Model, load
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe

#: All that need a graph of derivatives.
DIFFERENTIATING = [n for n, kind in METHODS.items() if kind.graph in (GRADIENTS, TANGENTS)]
_SETTINGS = {"weight_decay": 0.1}
_STEPS, _SNAPSHOT = 7, 4
_RATE = np.float32(0.01)


def begin(bundle: Path, device: str, name: str, run: Path | None = None) -> tuple[Model, Tuning]:
    """Returns a model, and a run of the method `name` over it."""
    model = load(bundle, device=device, threads=1)
    method = make(name, model.arena, 3, _SETTINGS)
    return model, Tuning(model.weights, MemoryJournal(describe(model.weights, method)), run)


def take(model: Model, tuning: Tuning, until: int) -> None:
    """Takes steps until there are so many."""
    for number in range(tuning.steps, until):
        loss = BatchLoss(model, rows_for_layered(5, number), rows_for_layered(4, 100 + number))
        assert not tuning.step(loss, _RATE).record.skipped
    model.weights.settle()


def check_agreement(bundle: Path, device: str, name: str) -> None:
    """Checks that a run on `device` gives the weights, the state and the norms of the CPU's."""
    (here, ours), (there, theirs) = (begin(bundle, d, name) for d in (device, "cpu"))
    for model, tuning in ((here, ours), (there, theirs)):
        take(model, tuning, _STEPS)
    start = load(bundle, threads=1).weights.trained()
    found, expected = here.weights.trained(), there.weights.trained()
    for key, weights in expected.items():
        assert not np.array_equal(weights, start[key])
        _close(found[key], weights)
    for key, array in theirs.method.state.items():
        _close(here.device.host(ours.method.state[key]), array)
    for mine, other in zip(ours.journal.records, theirs.journal.records, strict=True):
        np.testing.assert_allclose(mine.scalars, other.scalars, rtol=1e-3, atol=1e-4)


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    """A sign, as `lion` takes it, may turn where a gradient is next to nothing."""
    near = np.isclose(found, expected, rtol=1e-4, atol=1e-5)
    assert near.mean() > 0.99, np.abs(found - expected).max()


def check_resume(bundle: Path, device: str, name: str, run: Path) -> None:
    """Checks that a run which goes on from a snapshot ends with the bytes of one that does not."""
    model, tuning = begin(bundle, device, name, run)
    take(model, tuning, _SNAPSHOT)
    snapshot.write(run, tuning.journal.records, model.weights, tuning.method.state)
    take(model, tuning, _STEPS)
    again, resumed = begin(bundle, device, name, run)
    for record in tuning.journal.records[:_SNAPSHOT]:
        resumed.journal.append(record)
    resumed.catch_up()
    assert resumed.steps == _SNAPSHOT
    take(again, resumed, _STEPS)
    assert resumed.journal.records == tuning.journal.records
    assert _bytes(again, resumed) == _bytes(model, tuning)


def _bytes(model: Model, tuning: Tuning) -> Any:
    arrays = {**model.weights.trained(), **tuning.method.state}
    return {name: model.device.host(array).tobytes() for name, array in arrays.items()}
