"""Arenas, settings and a loss that every tuning method is tried with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from runtime_helpers import Specs

from edgezo_runtime import methods
from edgezo_runtime.arena import Arena
from edgezo_runtime.methods import FORWARD_ONLY, Method
from edgezo_runtime.noise import BLOCK_SIZE, AnyDirection

SPECS: Specs = (
    ("embed.weight", (40, 12), "float32"),
    *(
        (f"layers.{i}.{name}", shape, "float32")
        for i in range(4)
        for name, shape in (("up.weight", (24, 12)), ("up.bias", (24,)), ("down.weight", (12, 24)))
    ),
    ("norm.weight", (12,), "float32"),
)
TINY: Specs = (
    ("layers.0.weight", (6, 5), "float32"),
    ("layers.1.weight", (5, 4), "float32"),
    ("layers.1.bias", (5,), "float32"),
)
# Those that shorten runs: periods that end within a few steps.
SHORT: dict[str, dict[str, Any]] = {
    "block": {"interval": 2, "order": "random"},
    "sparse-random": {"interval": 3},
    "sparse-magnitude": {"interval": 4},
    "lozo": {"interval": 3},
    "subzero": {"interval": 3, "rank": 4},
    "mezo-svrg": {"interval": 3},
    "mezo": {"median_clip": 1.0},
    "mezo-momentum": {"window": 4},
    "mezo-adam": {"window": 4},
    "zo-adamu": {"warmup": 2, "anneal": 4},
    "helene": {"anneal": 5, "interval": 2},
    "hizoo": {"alpha": 1e-5},
}
RATE = np.float32(1e-4)


every_method = pytest.mark.parametrize("name", FORWARD_ONLY)
EXACT = {"forward-grad"}  # whose slopes are not taken from losses
every_perturbing = pytest.mark.parametrize("name", [n for n in FORWARD_ONLY if n not in EXACT])


def make(name: str, arena: Arena, seed: int, settings: Mapping[str, Any]) -> Method:
    made = methods.make(name, arena, seed, settings)
    assert isinstance(made, Method)
    return made


def short(name: str, arena: Arena, seed: int = 3, **more: Any) -> Method:
    chosen = SHORT.get(name, {}) | more
    if name in EXACT:
        chosen.pop("eps", None)
    return make(name, arena, seed, chosen)


class Flat:
    """An arena's index space as one vector, and a quadratic loss over it with some curvature."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        generator = np.random.default_rng(5)
        self.inside = np.zeros(arena.size, bool)
        self.decays = np.zeros(arena.size, bool)
        for parameter in arena.parameters:
            offset = arena.noise_offsets[parameter.name]
            self.inside[offset : offset + parameter.size] = True
            self.decays[offset : offset + parameter.size] = len(parameter.shape) >= 2
        self.target = generator.standard_normal(arena.size) * self.inside
        self.curvature = generator.uniform(0.5, 2, arena.size)

    def weights(self) -> np.ndarray:
        self.arena.settle()
        flat = np.zeros(self.arena.size)
        for name, view in self.arena.views.items():
            offset = self.arena.noise_offsets[name]
            flat[offset : offset + view.size] = view.reshape(-1)
        return flat

    def at(self, weights: np.ndarray) -> float:
        return float((self.curvature * (weights - self.target) ** 2).sum()) / 2

    def __call__(self) -> float:
        return self.at(self.weights())

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        weights = self.weights()
        gradient = self.curvature * (weights - self.target)
        return self.at(weights), float(gradient @ self.dense(direction))

    def dense(self, direction: Any) -> np.ndarray:
        """The elements of a direction, zero outside of its support and of the parameters."""
        assert self.arena.size <= BLOCK_SIZE
        z = direction.draw(np, self.arena.size)(0, self.arena.size).astype(np.float64)
        return np.where(self.within(direction), z, 0)

    def within(self, direction: Any) -> np.ndarray:
        """Which weights lie in the ranges of a direction."""
        found = np.zeros_like(self.inside)
        for start, stop in direction.support.ranges or [(0, self.arena.size)]:
            found[start:stop] = self.inside[start:stop]
        return found
