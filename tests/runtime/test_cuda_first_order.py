"""True gradients on the CUDA device, with a stand-in for the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
from layered_bundle import rows_for_layered, write_layered
from steps_on_devices import DIFFERENTIATING, begin, check_agreement, check_resume

from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.methods import make
from edgezo_runtime.model import load
from edgezo_runtime.noise import Direction
from edgezo_runtime.parts import PartedBatch


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layered(tmp_path_factory.mktemp("layered"))


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch)


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_steps_agree_with_the_cpu_s(bundle: Path, name: str) -> None:
    check_agreement(bundle, "cuda", name)


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_a_run_goes_on_to_the_same_bytes(bundle: Path, tmp_path: Path, name: str) -> None:
    check_resume(bundle, "cuda", name, tmp_path)


def test_gradients_are_taken_on_the_card(bundle: Path) -> None:
    """They are arrays over what the session left there, and what is done to them is queued."""
    model = load(bundle, device="cuda", threads=1)
    stream: Any = model.device.queue
    found = {}

    def take(name: str, gradient: Any) -> None:
        assert stream.entered
        assert isinstance(gradient, cuda_stand_in.Array)
        with pytest.raises(TypeError, match="Unsupported type"):
            gradient *= np.ones(gradient.shape, np.float32)
        found[name] = gradient

    expected = load(bundle, threads=1)
    batch = PartedBatch.of([rows_for_layered(rows, rows, words=4) for rows in (5, 3)])
    names = list(model.arena.views)
    loss = model.descend(batch, names, take, False)
    assert not stream.entered
    theirs: dict[str, np.ndarray] = {}
    assert loss == pytest.approx(expected.descend(batch, names, theirs.__setitem__, True))
    assert found.keys() == theirs.keys()
    for name, gradient in theirs.items():
        np.testing.assert_allclose(np.asarray(found[name]), gradient, rtol=1e-5, atol=1e-6)


def test_slopes_are_the_cpu_s(bundle: Path) -> None:
    batch = rows_for_layered(6, 0, words=7)
    models = [load(bundle, device=device, threads=1) for device in ("cpu", "cuda")]
    for step in (1, 2):
        slopes = [model.derivative(batch, Direction(5, step)) for model in models]
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-6)


def test_weights_that_pass_through_the_card_are_refused(bundle: Path) -> None:
    model = load(bundle, device="cuda-offload", threads=1)
    for method, kind in (("adamw", "gradient"), ("forward-grad", "tangent")):
        with pytest.raises(InputError, match=f"{kind} graphs need all weights in one place"):
            make(method, model.arena, 0, {}).step(
                1, BatchLoss(model, rows_for_layered(2, 0)), np.float32(0.1)
            )


def test_a_group_s_state_lies_on_the_card_and_the_rest_on_disk(bundle: Path) -> None:
    kept = begin(bundle, "cuda", "adamw")[1].method.state
    assert all(type(array) is cuda_stand_in.Array for array in kept.values())
    idle = dict(begin(bundle, "cuda", "hift-adamw")[1].method.state)
    rate = idle.pop("rate")  # of the present cycle: one number
    assert type(rate) is np.ndarray
    assert all(type(array) is np.memmap for array in idle.values())
