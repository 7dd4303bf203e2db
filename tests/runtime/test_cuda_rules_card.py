"""Sweeps, updates and methods on a card: the CPU's bits, along every kind of direction."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifier_bundle import rows_for_classifier, write_classifier
from rules_on_devices import (
    METHODS_AND_DTYPES,
    check_method,
    check_numbers_of_16_bits,
    check_supports,
    check_updates,
)
from runtime_helpers import contents

from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import Device, cuda_sweep, open_device
from edgezo_runtime.dtypes import BFLOAT16, FLOAT16, Dtype
from edgezo_runtime.methods import make
from edgezo_runtime.model import load
from edgezo_runtime.noise import BLOCK_SIZE
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights

pytestmark = pytest.mark.cuda
LARGE = ((70, 9), (5,), (400, 1000), (3, BLOCK_SIZE), (33,), (257, 129))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_directions_of_every_kind(card: Device, dtype: str) -> None:
    check_supports(card, dtype)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
def test_every_number_of_16_bits(card: Device, dtype: Dtype) -> None:
    check_numbers_of_16_bits(card, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_rule_of_every_operation(card: Device, dtype: str) -> None:
    check_updates(card, dtype)


@pytest.mark.parametrize(("name", "dtype"), METHODS_AND_DTYPES)
def test_methods(card: Device, name: str, dtype: str) -> None:
    check_method(card, name, dtype, LARGE)


def test_more_directions_than_a_kernel_takes(card: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_sweep.CudaSweeper, "most_directions", 2)
    check_method(card, "mezo-adam", "float32", LARGE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("rules"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mezo", {}),
        ("zo-sgd-sign", {}),
        ("zo-adam", {}),
        ("zo-adamu", {"warmup": 2, "anneal": 4}),
        ("mezo-adam", {"window": 4}),
        ("mezo-svrg", {"interval": 3}),
        ("hizoo", {"alpha": 1e-5}),
        ("helene", {"interval": 2}),
        ("lezo", {}),
        ("sparse-random", {"interval": 3}),
        ("sparse-mezo", {}),
        ("lozo", {"interval": 3}),
        ("subzero", {"interval": 3, "rank": 4}),
    ],
)
def test_journals_replay_on_the_other_device(
    card: Device, bundle: Path, name: str, settings: dict[str, Any]
) -> None:
    for here, there in (("cuda", "cpu"), ("cpu", "cuda")):
        model = load(bundle, device=here)
        method = make(name, model.arena, 7, {"weight_decay": 0.1, **settings})
        tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))
        for step in range(10):
            loss = functools.partial(model.loss, rows_for_classifier(5, step))
            tuning.step(loss, np.float32(1e-3))
        other = Weights(open_bundle(bundle), "full", open_device(there))
        Tuning(other, MemoryJournal(tuning.journal.header)).catch_up(tuning.journal.records)
        assert contents(model.arena) == contents(other.arena)
