"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgezo_runtime.errors import InputError
from edgezo_runtime.schedule import NAMES, learning_rate

RATE = st.floats(1e-9, 1)
STEPS = st.integers(1, 10_000)


@given(RATE, STEPS, st.data())
def test_formulas(lr: float, steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, steps))
    done = (step - 1) / steps
    expected = {
        "constant": lr,
        "linear": lr * (1 - done),
        "cosine": lr * math.cos(math.pi * done / 2) ** 2,
    }
    assert set(expected) == set(NAMES)
    for name in NAMES:
        found = learning_rate(lr, name, step, steps)
        assert type(found) is np.float32
        assert math.isclose(found, expected[name], rel_tol=1e-6, abs_tol=1e-12)


@given(RATE, STEPS, st.sampled_from(["linear", "cosine"]))
def test_ends(lr: float, steps: int, name: str) -> None:
    assert learning_rate(lr, name, 1, steps) == np.float32(lr)
    last = learning_rate(lr, name, steps, steps)
    assert last > 0
    assert learning_rate(lr, name, steps + 1, steps) == last
    assert learning_rate(lr, name, 10 * steps, steps) == last


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_never_rises(name: str) -> None:
    rates = [learning_rate(1e-3, name, step, 50) for step in range(1, 80)]
    assert all(a >= b for a, b in itertools.pairwise(rates))


def test_the_constant_schedule_needs_no_length() -> None:
    assert learning_rate(0.25, "constant", 10**9, None) == np.float32(0.25)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [None, 0, -3])
def test_a_decaying_schedule_needs_a_length(name: str, steps: int | None) -> None:
    with pytest.raises(InputError, match=f"{name} schedule needs the number of steps"):
        learning_rate(0.25, name, 1, steps)


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(InputError, match="use one of constant, linear, cosine"):
        learning_rate(0.25, "step", 1, 10)
