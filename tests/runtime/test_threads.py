"""Threads that share a model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from classifier_bundle import rows_for_classifier, write_classifier

from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.methods import make
from edgezo_runtime.model import load
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe

THREADS = 4


def together(works: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


@pytest.mark.parametrize("tune", ["full", "second"])  # the second has a frozen prefix
def test_each_gets_its_own_batch_s_loss(tmp_path: Path, tune: str) -> None:
    model = load(write_classifier(tmp_path), tune=tune, threads=1)
    batches = [rows_for_classifier(3 + seed, seed) for seed in range(THREADS)]
    expected = [model.loss(batch) for batch in batches]
    found: list[list[float]] = [[] for _ in batches]

    def ask(thread: int) -> None:
        found[thread] += [model.loss(batches[thread]) for _ in range(300)]

    together([lambda thread=i: ask(thread) for i in range(THREADS)])
    assert [set(losses) for losses in found] == [{loss} for loss in expected]


def test_a_step_s_perturbed_weights_are_seen_by_nobody_else(tmp_path: Path) -> None:
    model = load(write_classifier(tmp_path), threads=1)
    batch, step_batch = rows_for_classifier(4, 0), rows_for_classifier(4, 1)
    method = make("mezo", model.arena, 0, {"eps": 0.5})
    tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))
    before = model.loss(batch)
    stepped: list[bool] = []
    found: list[float] = []

    def step() -> None:
        for _ in range(100):
            tuning.start(BatchLoss(model, step_batch), np.float32(0))
        stepped.append(True)

    def ask() -> None:
        while not stepped:
            found.append(model.loss(batch))

    together([step, ask])
    assert found == pytest.approx([before] * len(found), abs=1e-3)
