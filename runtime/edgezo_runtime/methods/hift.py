"""HiFT: full tuning, one group of layers a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgezo_runtime.arena import Arena
from edgezo_runtime.first_order import rules
from edgezo_runtime.first_order.groups import layer_groups
from edgezo_runtime.methods.base import Estimate
from edgezo_runtime.methods.first_order import FirstOrder
from edgezo_runtime.methods.options import Choice, Number, Whole
from edgezo_runtime.noise import Purpose, shuffled


class Hift(FirstOrder):
    """Each step tunes one group of layers, and computes no gradient of any other.

    The groups take turns. The learning rate is that of the cycle's first step for all its groups,
    so that each is tuned alike. The optimizer's state lies on disk, and what idle groups have of it
    is not in memory.

    Settings:
        order: of the groups; a random one is drawn once, by the seed.
        layers: how many layers make a group.

    References:
        Liu et al., "HiFT: A Hierarchical Full Parameter Fine-Tuning Strategy", EMNLP 2024.
    """

    paper = "https://arxiv.org/abs/2401.15207"
    keep_products = Number(0.0, least=0, most=1)
    on_disk = True

    order = Choice("bottom-up", ("bottom-up", "top-down", "random"))
    layers = Whole(1, 1, 1 << 16)

    def __init__(self, arena: Arena, seed: int, /, **settings: Any) -> None:
        super().__init__(arena, seed, **settings)
        self.groups = layer_groups(arena.parameters, self.layers)
        if self.order == "top-down":
            self.groups.reverse()
        if self.order == "random":
            order = shuffled(seed, Purpose.LAYERS, len(self.groups)).tolist()
            self.groups = [self.groups[place] for place in order]
        self._rate = np.zeros(1, np.float32)  # of the present cycle

    @property
    def alone(self) -> bool:
        return True

    @property
    def state(self) -> dict[str, Any]:
        return {**super().state, "rate": self._rate}

    @property
    def resident_bytes(self) -> int:
        return max(sum(map(self._state.nbytes_of, group)) for group in self.groups)

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
