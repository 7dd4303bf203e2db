"""Evolution strategies: the formula, the bits of a replay, and what happens in trouble."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_oracle import element
from runtime_helpers import LR, Quadratic, Specs, contents, make_arena

from edgezo_runtime import noise
from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods import EvolutionStrategies, make

SPECS: Specs = (("m", (5, 7), "float32"), ("v", (9,), "float32"), ("n", (3, 4, 2), "float32"))


def oracle_direction(arena: Arena, seed: int, step: int, sample: int) -> dict[str, np.ndarray]:
    """From the scalar oracle for sample 0, and the engine's own function for the others."""
    flat = noise.direction(arena.size, seed, step, sample)
    out = {}
    for name, view in arena.views.items():
        first = arena.noise_offsets[name]
        if sample == 0:
            values = np.array([element(first + i, seed, step) for i in range(view.size)])
        else:
            values = flat[first : first + view.size].astype(np.float64)
        out[name] = values.reshape(view.shape)
    return out


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_the_update_follows_the_formula(samples: int) -> None:
    arena = make_arena(SPECS)
    loss = Quadratic(arena)
    eps, decay = 1e-2, 0.1
    method = EvolutionStrategies(arena, 3, eps, decay, samples)
    assert method.forwards == method.scalars == samples
    for step in range(1, 8):
        arena.settle()
        before = {n: v.astype(np.float64) for n, v in arena.views.items()}
        directions = [oracle_direction(arena, 3, step, i) for i in range(samples)]
        losses = []

        def watched(losses: list[float] = losses) -> float:
            losses.append(loss())
            return losses[-1]

        estimate = method.step(step, watched, LR)
        arena.settle()
        assert len(losses) == samples and estimate.loss == pytest.approx(np.mean(losses))
        for i, found in enumerate(estimate.record.scalars):
            others = [value for j, value in enumerate(losses) if j != i]
            assert float(found) == pytest.approx((losses[i] - np.mean(others)) / eps, rel=1e-5)
        for name, view in arena.views.items():
            gradient = sum(
                float(g) * z[name] for g, z in zip(estimate.record.scalars, directions, strict=True)
            )
            expected = before[name] - float(LR) / samples * gradient
            if view.ndim >= 2:
                expected *= 1 - float(LR) * decay
            assert np.abs(view - expected).max() < 3e-6 * (np.abs(before[name]).max() + 1)


def test_the_estimator_points_along_the_gradient() -> None:
    arena = make_arena((("w", (6, 4), "float32"),))
    loss = Quadratic(arena)
    gradient, start = loss.gradient()["w"], arena.views["w"].copy()
    samples, seeds = 8, 250
    total = np.zeros((6, 4))
    for seed in range(seeds):
        arena.views["w"][...] = start
        record = (
            EvolutionStrategies(arena, seed, 1e-2, samples=samples)
            .step(1, loss, np.float32(0))
            .record
        )
        arena.forget()
        for i, slope in enumerate(record.scalars):
            z = noise.direction(arena.size, seed, 1, i)[:24].reshape(6, 4)
            total += float(slope) * z / samples
    mean, length = total / seeds, np.linalg.norm(gradient)
    assert float((mean * gradient).sum()) / length**2 == pytest.approx(1, abs=0.2)
    assert np.linalg.norm(mean - gradient) / length < 2 * (30 / (seeds * samples)) ** 0.5


def test_what_all_samples_share_moves_nothing() -> None:
    """The baseline takes out a constant, however large."""
    arena, copy = make_arena(SPECS), make_arena(SPECS)
    method = EvolutionStrategies(arena, 1, samples=4)
    record = method.step(1, lambda: 1e6, LR).record
    assert record.scalars == (0, 0, 0, 0) and not record.skipped
    arena.settle()
    for name, view in arena.views.items():
        assert np.abs(view - copy.views[name]).max() < 1e-6


def test_it_minimises() -> None:
    arena = make_arena(SPECS)
    loss = Quadratic(arena)
    method = EvolutionStrategies(arena, seed=0, samples=8)
    first = loss()
    for step in range(1, 200):
        method.step(step, loss, np.float32(0.05))
    arena.settle()
    assert loss() < 0.02 * first


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(2, 9),
    st.sampled_from(["binomial", "rademacher", "gaussian"]),
    st.floats(0, 0.5),
    st.lists(st.booleans(), min_size=2, max_size=5),
    st.integers(1, 3),
    st.sets(st.integers(1, 5)),
)
def test_replay_gives_the_same_bits(
    seed: int,
    samples: int,
    distribution: str,
    weight_decay: float,
    settled: list[bool],
    threads: int,
    broken: set[int],
) -> None:
    specs = (*SPECS, ("large", (211, 190), "float32"))
    arena, copy = make_arena(specs), make_arena(specs, threads)
    loss = Quadratic(arena)
    method = EvolutionStrategies(arena, seed, 1e-3, weight_decay, samples, distribution)
    records = []
    for step, settle in enumerate(settled, start=1):
        function = (lambda: float("nan")) if step in broken else loss
        records.append(method.step(step, function, np.float32(1e-3 / step)).record)
        if settle:
            arena.settle()
    again = make("es", copy, seed, method.settings())
    for step, record in enumerate(records, start=1):
        assert record.skipped == (step in broken)
        again.replay(step, record)
    assert contents(arena) == contents(copy)


@pytest.mark.parametrize("samples", [0, 1, -3, 1000])
def test_a_number_of_samples_that_makes_no_sense_is_refused(samples: int) -> None:
    with pytest.raises(InputError, match=f"samples is {samples}; use"):
        EvolutionStrategies(make_arena(SPECS), 0, samples=samples)


def test_16_bit_weights_are_refused() -> None:
    with pytest.raises(InputError, match="rounding errors"):
        EvolutionStrategies(make_arena((("half", (4, 4), "float16"),)), 0)
