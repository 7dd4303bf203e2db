"""MeZO to the last bit, against the slow definition; the other methods are in `test_methods`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_oracle import (
    OracleTerm,
    block_draw,
    decode,
    element,
    float32,
    layout,
    pool_value,
    swept,
)
from runtime_helpers import LR, Quadratic, Specs, contents, make_arena

from edgezo_runtime import noise
from edgezo_runtime.arena import Arena
from edgezo_runtime.journal import SKIPPED, Record
from edgezo_runtime.methods import Mezo, make

SPECS: Specs = (("m", (5, 7), "float32"), ("v", (9,), "float32"), ("n", (3, 4, 2), "float32"))


def oracle_direction(arena: Arena, seed: int, step: int) -> dict[str, np.ndarray]:
    out = {}
    for name, view in arena.views.items():
        first = arena.noise_offsets[name]
        values = [element(first + i, seed, step) for i in range(view.size)]
        out[name] = np.array(values).reshape(view.shape)
    return out


def scripted(values: list[float]) -> Callable[[], float]:
    """A loss that returns the given numbers in turn."""
    iterator = iter(values)
    return lambda: next(iterator)


def test_a_step_is_three_sweeps_to_the_last_bit() -> None:
    """+eps, -2 eps, and float32(float64(eps) - float64(lr) * float64(g)), with weight decay."""
    arena = make_arena(SPECS)
    loss = Quadratic(arena)
    eps, decay, seed = 1e-3, 0.25, 2**63 + 11
    method = Mezo(arena, seed, eps=eps, weight_decay=decay)
    for step in range(1, 6):
        arena.settle()
        before = arena.buffers[next(iter(arena.buffers))].tobytes()
        (g,) = method.step(step, loss, LR).record.scalars
        arena.settle()
        terms = [
            OracleTerm(seed, step, 0, float32(eps)),
            OracleTerm(seed, step, 0, float32(-2 * eps)),
            OracleTerm(
                seed, step, 0, float32(eps - float(LR) * float(g)), float32(1 - float(LR) * decay)
            ),
        ]
        for (name, shape, _), (offset, first, size) in zip(SPECS, layout(SPECS), strict=True):
            weights = decode(before[4 * first : 4 * (first + size)], "float32")
            expected = swept(weights, offset, terms, "float32", decays=len(shape) >= 2)
            assert arena.views[name].reshape(-1).tolist() == expected


def test_the_losses_are_taken_at_plus_and_minus_eps() -> None:
    arena = make_arena(SPECS)
    before = {n: v.copy() for n, v in arena.views.items()}
    seen: list[dict[str, np.ndarray]] = []

    def loss() -> float:
        seen.append({n: v.copy() for n, v in arena.views.items()})
        return [2.0, 1.0][len(seen) - 1]

    estimate = Mezo(arena, 1, eps=0.5).step(4, loss, np.float32(0))
    z = oracle_direction(arena, 1, 4)
    for name in z:
        assert np.allclose(seen[0][name], before[name] + 0.5 * z[name], atol=1e-6)
        assert np.allclose(seen[1][name], before[name] - 0.5 * z[name], atol=1e-6)
    assert estimate.loss == 1.5 and estimate.record.scalars == (np.float32(1.0),)


def test_the_estimator_is_unbiased() -> None:
    """The mean of g z over 1,200 seeds points along the gradient and has its length."""
    arena = make_arena((("w", (6, 4), "float32"),))
    loss = Quadratic(arena)
    gradient, start = loss.gradient()["w"], arena.views["w"].copy()
    total = np.zeros((6, 4))
    seeds = 1200
    for seed in range(seeds):
        arena.views["w"][...] = start
        (g,) = Mezo(arena, seed, eps=1e-2).step(1, loss, np.float32(0)).record.scalars
        arena.forget()
        offset, sign = block_draw(seed, 1, 0, 0)
        z = [sign * pool_value((offset + i) % 2**20) for i in range(24)]
        total += float(g) * np.reshape(z, (6, 4))
    mean, length = total / seeds, np.linalg.norm(gradient)
    assert float((mean * gradient).sum()) / length**2 == pytest.approx(
        1, abs=5 * (2 / seeds) ** 0.5
    )
    error = np.linalg.norm(mean - gradient) / length
    assert error < 2 * (25 / seeds) ** 0.5


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from(["binomial", "rademacher", "gaussian"]),
    st.floats(0, 0.5),
    st.lists(st.booleans(), min_size=3, max_size=12),
    st.integers(1, 4),
    st.sets(st.integers(1, 12)),
)
def test_replay_gives_the_same_bits(
    seed: int,
    distribution: str,
    weight_decay: float,
    settled: list[bool],
    threads: int,
    broken: set[int],
) -> None:
    """Whether sweeps ran fused or alone, on however many threads, with steps skipped or not."""
    specs = (*SPECS, ("large", (211, 190), "float32"))
    arena, copy = make_arena(specs), make_arena(specs, threads)
    loss = Quadratic(arena)
    method = Mezo(arena, seed, weight_decay=weight_decay, distribution=distribution)
    records = []
    for step, settle in enumerate(settled, start=1):
        function = (lambda: float("nan")) if step in broken else loss
        records.append(method.step(step, function, np.float32(1e-3 / step)).record)
        if settle:
            arena.settle()
    again = make("mezo", copy, seed, method.settings())
    for step, record in enumerate(records, start=1):
        assert record.skipped == (step in broken)
        again.replay(step, record)
    assert contents(arena) == contents(copy)


@pytest.mark.parametrize(
    "losses",
    [
        [float("nan"), 1.0],
        [1.0, float("nan")],
        [float("inf"), 1.0],
        [float("inf"), float("inf")],
        [1e308, -1e308],
        [1e38, -1e38],  # finite in float64, not in float32
    ],
)
def test_a_slope_that_is_not_finite_skips_the_update(losses: list[float]) -> None:
    arena, copy = make_arena(SPECS), make_arena(SPECS)
    method = Mezo(arena, 1, eps=1e-3, weight_decay=0.5)
    estimate = method.step(1, scripted(losses), LR)
    assert estimate.record == Record((np.float32(0),), LR, SKIPPED)
    arena.settle()
    for name, view in arena.views.items():
        assert np.abs(view - copy.views[name]).max() < 1e-6
    Mezo(copy, 1, eps=1e-3, weight_decay=0.5).replay(1, estimate.record)
    assert contents(arena) == contents(copy)


def test_an_update_that_is_not_finite_is_skipped() -> None:
    """A finite slope times a large rate may overflow; that would lose every weight."""
    arena = make_arena(SPECS)
    estimate = Mezo(arena, 1).step(1, scripted([1e34, 0]), np.float32(1e10))
    assert estimate.record.skipped
    arena.settle()
    assert arena.nonfinite() is None


# Drift: the engine against vector arithmetic in float32 first, then that arithmetic for long.


def drifting(weights: np.ndarray, eps: float) -> Iterator[np.ndarray]:
    """Yields the weights (256,) after each step with a learning rate of 0."""
    circular = np.concatenate([noise.pool(), noise.pool()[:256]])
    for step in itertools.count(1):
        offset, sign = block_draw(0, step, 0, 0)
        z = np.float32(sign) * circular[offset : offset + 256]
        for coefficient in (eps, -2 * eps, eps):
            weights = weights + np.float32(coefficient) * z
        yield weights


def test_the_drift_of_20_000_steps_is_below_one_per_cent() -> None:
    arena = make_arena((("w", (16, 16), "float32"),), scale=0.05)
    start = arena.views["w"].reshape(-1).copy()
    method = Mezo(arena, 0, eps=1e-3)
    model = drifting(start, 1e-3)
    for step in range(1, 31):
        method.step(step, lambda: 1.0, np.float32(0))
        arena.settle()
        assert np.array_equal(arena.views["w"].reshape(-1), next(model))
    *_, last = itertools.islice(model, 20_000 - 30)
    rms = float(np.sqrt((start.astype(np.float64) ** 2).mean()))
    drift = float(np.sqrt(((last.astype(np.float64) - start) ** 2).mean()))
    assert 0 < drift < 0.01 * rms
