"""Tuning in float16: what comes back after a step, which updates survive, and who refuses."""

from __future__ import annotations

import numpy as np
import pytest
from runtime_helpers import contents, make_arena

from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import Record
from edgezo_runtime.methods import FORWARD_ONLY, make
from edgezo_runtime.noise import direction

SHAPE = (128, 128)
SCALE = 0.02  # of a language model's matrices
AT_ONCE = {
    *("mezo", "qzo", "one-sided", "zo-llm-sign", "block", "lezo", "lozo", "subzero"),
    *("sparse-random", "sparse-magnitude", "sparse-mezo"),
}


def half(dtype: str = "float16") -> Arena:
    arena = make_arena((("w", SHAPE, dtype),), scale=SCALE)
    view = arena.views["w"]
    if dtype == "float16":  # `fill` leaves the lower bits zero
        rng = np.random.default_rng(1)
        view[...] = (rng.standard_normal(SHAPE) * SCALE).astype(np.float16)
    return arena


def replay(arena: Arena, steps: int, slope: float, name: str = "mezo") -> None:
    method = make(name, arena, 7, {})
    record = Record((np.float32(slope),) * method.scalars, np.float32(1e-3))
    for number in range(1, steps + 1):
        method.replay(number, record)


def test_perturbations_come_back_within_a_hundredth_in_20000_steps() -> None:
    """About a hundredth: the error is a random walk, so that 500 steps leave a sixth of that."""
    arena = half()
    before = arena.views["w"].astype(np.float64)
    replay(arena, 500, slope=0.0)
    drift = np.sqrt(np.square(arena.views["w"] - before).mean() / np.square(before).mean())
    assert 0 < drift < 0.0115 * np.sqrt(500 / 20_000)


def test_small_updates_survive() -> None:
    """Steps of a fiftieth of the spacing between float16 numbers add up to what they should."""
    arena = half()
    before = arena.views["w"].astype(np.float64)
    steps, slope = 600, 3e-4
    replay(arena, steps, slope)
    moved = (arena.views["w"] - before).reshape(-1)
    taken = np.zeros(moved.size)
    for step in range(1, steps + 1):
        taken += direction(moved.size, 7, step)
    wanted = -1e-3 * slope * taken
    assert np.abs(wanted).max() < 5e-5
    assert moved @ wanted / (wanted @ wanted) == pytest.approx(1, abs=0.1)


def test_steps_and_replays_have_the_same_bytes() -> None:
    arenas = [half(), half()]
    rng = np.random.default_rng(3)
    method = make("mezo", arenas[0], 7, {})
    records = [
        method.step(number, lambda: float(rng.normal()), np.float32(1e-6)).record
        for number in range(1, 20)
    ]
    other = make("mezo", arenas[1], 7, {})
    for number, record in enumerate(records, 1):
        other.replay(number, record)
    assert contents(arenas[0]) == contents(arenas[1]) != contents(half())


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_who_takes_float16(name: str) -> None:
    with pytest.raises(
        InputError, match=r"w is bfloat16, whose roundings add up.*float32 or float16"
    ):
        make(name, half("bfloat16"), 0, {})
    if name in AT_ONCE:
        replay(half(), 2, 1e-3, name)
    else:
        with pytest.raises(InputError, match=f"{name} would lose its small updates in float16"):
            make(name, half(), 0, {})
