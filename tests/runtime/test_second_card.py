"""A run on the second card of a machine, in a process of its own."""

from __future__ import annotations

import functools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from classifier_bundle import rows_for_classifier, write_classifier
from runtime_helpers import contents

from edgezo_runtime.devices import open_device
from edgezo_runtime.errors import EdgezoError
from edgezo_runtime.methods import make
from edgezo_runtime.model import load
from edgezo_runtime.tuning import MemoryJournal, Recorder, Tuning, describe

pytestmark = pytest.mark.cuda


def steps(bundle: Path, device: str, name: str) -> tuple[Recorder, bytes] | str:
    """Returns the journal of a few steps, and the weights after them; or why there are none."""
    try:
        open_device(device)
    except EdgezoError as error:
        return str(error)
    model = load(bundle, device=device)
    method = make(name, model.arena, 7, {})
    tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))
    for step in range(6):
        loss = functools.partial(model.loss, rows_for_classifier(8, step % 2))
        tuning.step(loss, np.float32(1e-3))
    return tuning.journal, contents(model.arena)


@pytest.mark.parametrize("name", ["mezo", "zo-adam", "lezo"])
def test_it_replays_on_the_cpu(tmp_path: Path, name: str) -> None:
    bundle = write_classifier(tmp_path / "bundle")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(steps, bundle, "cuda:1", name).result()
    if isinstance(found, str):
        pytest.skip(found)
    journal, after = found
    model = load(bundle)
    Tuning(model.weights, MemoryJournal(journal.header)).catch_up(journal.records)
    assert contents(model.arena) == after
