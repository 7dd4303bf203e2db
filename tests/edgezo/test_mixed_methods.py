"""Methods that mix gradients with two-point estimates, on a tiny Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradient_batches import OBJECTIVES, batch_of

from edgezo.data.mixed import MixedPlan
from edgezo_runtime.arena import Term
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.first_order.session import GradientSession
from edgezo_runtime.methods import make
from edgezo_runtime.methods.hybrid import Hybrid
from edgezo_runtime.model import load
from edgezo_runtime.noise import Direction


def test_addax_mixes_the_estimate_on_one_batch_with_the_gradient_on_another(
    derived_bundle: Path,
) -> None:
    long, short = batch_of(OBJECTIVES["tokens"]), batch_of(OBJECTIVES["candidates"])
    lr, moved = np.float32(0.02), {}
    for weight in (0.0, 0.25, 1.0):
        model = load(derived_bundle, threads=1)
        start = {name: view.copy() for name, view in model.arena.views.items()}
        made = make("addax", model.arena, 3, {"zo_weight": weight, "eps": 2e-3})
        estimate = made.step(5, BatchLoss(model, long, short), lr)
        moved[weight] = {n: view - start[n] for n, view in model.arena.views.items()}
    exact = BatchLoss(load(derived_bundle, threads=1), short).gradients(list(start))
    direction = load(derived_bundle, threads=1).arena
    before = {name: view.copy() for name, view in direction.views.items()}
    direction.add(Term(Direction(3, 5), np.float32(1)))
    slope = float(estimate.record.scalars[0])
    higher = {name: view.copy() for name, view in direction.views.items()}
    for name, old in before.items():
        z = higher[name] - old
        np.testing.assert_allclose(moved[0.0][name], -lr * exact[name], atol=2e-6)
        np.testing.assert_allclose(moved[1.0][name], -lr * slope * z, atol=2e-6, rtol=1e-4)
        both = -lr * (0.25 * slope * z + 0.75 * exact[name])
        np.testing.assert_allclose(moved[0.25][name], both, atol=2e-6, rtol=1e-4)
    # The slope is that of the long batch, along z.
    expected = sum(
        float((gradient * (higher[name] - before[name])).sum())
        for name, gradient in GradientSession(open_bundle(derived_bundle), start, CpuDevice(1))
        .gradients(long, list(start))
        .items()
    )
    assert slope == pytest.approx(expected, rel=0.02)


class Broken(BatchLoss):
    """A batch whose loss is no number where it is estimated."""

    def __call__(self) -> float:
        return super().__call__() * float("nan")


def test_the_hybrid_has_gradients_of_its_upper_layers_alone(derived_bundle: Path) -> None:
    batch, lr, decay = batch_of(OBJECTIVES["tokens"]), np.float32(0.02), 0.5
    model = load(derived_bundle, threads=1)
    before = {name: view.copy() for name, view in model.arena.views.items()}
    exact = BatchLoss(model, batch).gradients(list(before))
    settings = {"zo_weight": 0.01, "eps": 2e-3, "weight_decay": decay}
    made = make("hybrid", model.arena, 3, settings)
    loss = BatchLoss(model, batch)
    estimate = made.step(5, loss, lr)
    assert loss.forwards == made.forwards == 3 and not estimate.record.skipped
    upper = {n for n in before if n.startswith("model.layers.1.") or n == "model.norm.weight"}
    draw = Direction(3, 5).draw(np, model.arena.size)
    slope, along, squares = float(estimate.record.scalars[0]), 0.0, 0.0
    for name, old in before.items():
        kept = 1 - lr * decay if old.ndim > 1 else 1.0
        if name in upper:
            expected = old * kept - lr * exact[name]
            squares += float((exact[name].astype(np.float64) ** 2).sum())
        else:
            start = model.arena.noise_offsets[name]
            z = draw(start, start + old.size).reshape(old.shape)
            along += float((exact[name] * z).sum())
            expected = (old - lr * 0.01 * slope * z) * kept
        np.testing.assert_allclose(model.arena.views[name], expected, atol=2e-6, rtol=1e-5)
    assert slope == pytest.approx(along, rel=0.02)
    assert float(estimate.record.scalars[1]) == pytest.approx(squares**0.5, rel=1e-4)
    before = {name: view.copy() for name, view in model.arena.views.items()}
    broken = make("hybrid", model.arena, 3, settings).step(6, Broken(model, batch), lr)
    assert broken.record.skipped and broken.record.scalars == (0, 0)
    assert all(np.array_equal(model.arena.views[name], before[name]) for name in upper)


def test_what_a_hybrid_needs(derived_bundle: Path) -> None:
    def names(tune: str, **settings: Any) -> set[str]:
        made = make("hybrid", load(derived_bundle, tune=tune, threads=1).arena, 0, settings)
        assert isinstance(made, Hybrid)
        return set(made.names(1))

    assert names("full", upper=1) == names("full", upper=0.51) > names("full", upper=0.5)
    assert {n.split(".")[2] for n in names("*q_proj*")} == {"1"}
    with pytest.raises(InputError, match="no weight below its upper layers"):
        names("model.layers.1.*")


def test_addax_assigns_rows_by_length() -> None:
    lengths = np.array([3, 9, 4, 8, 5, 7, 30, 31, 2])
    plan = MixedPlan(lengths, 2, 3, 0, assign=True, limit=8)
    long, short = set(), set()
    for step in range(1, 10):
        estimated, exact = plan.indices(step)
        assert (len(estimated), len(exact)) == (3, 2)
        long.update(estimated.tolist())
        short.update(exact.tolist())
    assert long == set(np.nonzero(lengths > 8)[0].tolist())
    assert short == set(np.nonzero(lengths <= 8)[0].tolist())
    both = MixedPlan(lengths, 4, 4, 0, assign=False)
    pairs = [both.indices(step) for step in range(1, 10)]
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in pairs)
    assert {int(i) for a, b in pairs for i in (*a, *b)} == set(range(9))
    with pytest.raises(InputError, match=r"no row is longer than 31 tokens.*addax-wa"):
        MixedPlan(lengths, 2, 2, 0, assign=True, limit=31)
