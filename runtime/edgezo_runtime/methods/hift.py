"""HiFT: full tuning, one group of layers a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order import rules
from edgezo_runtime.first_order.groups import layer_groups
from edgezo_runtime.methods.base import Estimate
from edgezo_runtime.methods.first_order import FirstOrder

ORDERS = ("bottom-up", "top-down", "random")


class Hift(FirstOrder):
    """Each step tunes one group of layers, and computes no gradient of any other.

    The groups take turns. The learning rate is that of the cycle's first step for all its groups,
    so that each is tuned alike. The optimizer's state lies on disk, and what idle groups have of it
    is not in memory.

    Args:
        arena: the trained weights.
        seed: names the random order, which is drawn once.
        weight_decay: decoupled, times the learning rate, for matrices.
        order: of the groups: ``"bottom-up"``, ``"top-down"`` or ``"random"``.
        layers: how many layers make a group.

    Raises:
        InputError: a setting is out of range, or the weights are 16-bit floats.

    References:
        Liu et al., "HiFT: A Hierarchical Full Parameter Fine-Tuning Strategy", EMNLP 2024.
    """

    paper = "https://arxiv.org/abs/2401.15207"
    keeps = False
    on_disk = True

    def __init__(
        self,
        arena: Arena,
        seed: int,
        weight_decay: float = 0.0,
        order: str = "bottom-up",
        layers: int = 1,
    ) -> None:
        super().__init__(arena, seed, weight_decay)
        if order not in ORDERS:
            raise InputError(f"order is {order!r}; use one of {', '.join(ORDERS)}")
        if layers < 1:
            raise InputError(f"layers is {layers}; use a whole number from 1 on")
        self.order, self.layers = order, layers
        self.groups = layer_groups(arena.parameters, layers)
        if order == "top-down":
            self.groups.reverse()
        if order == "random":
            generator = np.random.Generator(np.random.Philox(seed))
            self.groups = [self.groups[i] for i in generator.permutation(len(self.groups))]
        self._rate = np.zeros(1, np.float32)  # of the present cycle

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {**super().state, "rate": self._rate}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "order": self.order, "layers": self.layers}

    def names(self, number: int) -> tuple[str, ...]:
        return self.groups[(number - 1) % len(self.groups)]

    def step(self, number: int, loss: Callable[[], float], lr: np.float32) -> Estimate:
        if (number - 1) % len(self.groups) == 0:
            self._rate[0] = lr
        return super().step(number, loss, np.float32(self._rate[0]))


def _of(kind: type[rules.Rule]) -> type[Hift]:
    inner = kind.name.removeprefix("ip-")
    fields = {"name": f"hift-{inner}", "rule": kind, "__doc__": Hift.__doc__}
    return type(f"Hift{kind.__name__}", (Hift,), fields)


HIFT: tuple[type[Hift], ...] = tuple(
    _of(kind)
    for kind in (rules.AdamW, rules.Sgd, rules.Adagrad, rules.RmsProp, rules.Lion, rules.AdaLomo)
)
