"""What the methods with true gradients make of a gradient, beside PyTorch's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.first_order import rules
from edgezo_runtime.first_order.state import State

torch = pytest.importorskip("torch")

TORCH: dict[type[rules.Rule], Callable[[Any], Any]] = {
    rules.Sgd: lambda ws: torch.optim.SGD(ws, lr=0.1),
    rules.Momentum: lambda ws: torch.optim.SGD(ws, lr=0.1, momentum=0.9),
    rules.AdamW: lambda ws: torch.optim.AdamW(ws, lr=0.1, weight_decay=0),
    rules.Adagrad: lambda ws: torch.optim.Adagrad(ws, lr=0.1),
    rules.RmsProp: lambda ws: torch.optim.RMSprop(ws, lr=0.1),
}


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("kind", TORCH)
def test_rules_are_torchs_optimizers(kind: type[rules.Rule], disk: bool) -> None:
    generator = np.random.default_rng(0)
    parameter = Parameter("w", (300, 301), "float32", "linear")
    weights = generator.standard_normal(parameter.shape).astype(np.float32)
    theirs = torch.tensor(weights.copy(), requires_grad=True)
    optimizer = TORCH[kind]([theirs])
    rule = kind()
    state = State([parameter], {k: [n] for k, n in rule.lengths(parameter).items()}, disk)
    for _ in range(5):
        gradient = generator.standard_normal(parameter.shape).astype(np.float32)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
        rule.update(parameter, weights.reshape(-1), gradient.reshape(-1), 0.1, state)
        state.idle()
    np.testing.assert_allclose(weights, theirs.detach().numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", rules.RULES.values())
def test_threads_change_no_bit(kind: type[rules.Rule]) -> None:
    parameter = Parameter("w", (300, 1001), "float32", "linear")
    found = []
    for threads in (1, 3):
        arena = Arena([parameter], CpuDevice(threads))
        generator, rule = np.random.default_rng(0), kind(arena)
        weights = arena.views["w"].reshape(-1)
        weights[:] = generator.standard_normal(parameter.size, np.float32)
        sizes = rule.lengths(parameter).items()
        state = State([parameter], {slot: [size] for slot, size in sizes}, False)
        for _ in range(3):
            gradient = generator.standard_normal(parameter.size, np.float32)
            squares = rules.square_sum(gradient, arena)
            rules.scale(weights, 0.9, arena)
            rule.update(parameter, weights, gradient, 0.1, state)
        found.append((squares, weights.tobytes(), [a.tobytes() for a in state.arrays.values()]))
    assert found[0] == found[1]
