"""Arithmetic with late numbers as programs: each is compiled once, whatever its numbers are."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import cuda_kernels
import cuda_stand_in
import numpy as np
import pytest
from classifier_bundle import write_classifier
from late_steps import batch_of, begin

from edgezo_runtime.devices import cuda_record
from edgezo_runtime.devices.program import Program, program
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.late import CELL, LateNumber

#: How many programs steps of a method come to: for the record, and for the update.
PROGRAMS = {
    "mezo": 2,
    "es": 2,
    "fzoo": 2,
    "zo-adam": 2,
    "zo-adamu": 2,
    "mezo-momentum": 2,
    "mezo-svrg": 4,  # of an anchor's step, and of others
    "hizoo": 2,
}


def cell(value: float) -> LateNumber:
    return LateNumber(CELL, np.array([value]))


def test_what_is_used_twice_is_computed_once() -> None:
    first, second = cell(1.0), cell(2.0)
    both = first + second
    made = program([both * both, 3 * both])
    assert made.nodes == (
        *((CELL, 0), (CELL, 1), ("add", 0, 1), ("multiply", 2, 2)),
        *(("number", 0), ("multiply", 4, 2)),
    )
    assert made.outputs == (3, 5) and made.numbers == (3.0,)
    assert [float(array[0]) for array in made.cells] == [1.0, 2.0]


def test_a_program_is_the_same_with_other_numbers() -> None:
    def made(one: float, other: float) -> Program:
        return program([(cell(one) - other) / one])

    assert made(1.0, 2.0) == made(3.0, 4.0) and hash(made(1.0, 2.0)) == hash(made(3.0, 4.0))
    assert made(1.0, 2.0) != program([(cell(1.0) + 2.0) / 1.0])


def test_a_sum_is_as_long_as_it_likes() -> None:
    made = program([functools.reduce(operator.add, [cell(1.0) for _ in range(5000)])])
    assert len(made.cells) == 5000 and len(made.nodes) == 9999


@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_share_their_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also with a rate that changes, down to zero."""
    cuda_stand_in.install(monkeypatch)
    seen: set[Program] = set()

    def kernel(made: Program) -> cuda_kernels.Launch:
        seen.add(made)
        return cuda_kernels.record_kernel(made)

    monkeypatch.setattr(cuda_record, "kernel", kernel)
    model, tuning = begin(write_classifier(tmp_path), "cuda", name, {})
    for number in range(7):
        rate = np.float32(1e-3 * (6 - number) / 6)
        tuning.step(BatchLoss(model, batch_of(number)), rate)
    assert len(seen) == PROGRAMS[name]
