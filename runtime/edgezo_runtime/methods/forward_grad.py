"""Forward gradients: SGD along one direction whose slope is exact."""

from __future__ import annotations

from edgezo_runtime.bundle import TANGENTS
from edgezo_runtime.first_order.tangents import FORWARDS
from edgezo_runtime.methods.base import Slope
from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.rules import Sgd
from edgezo_runtime.methods.walk import Walk


class ForwardGrad(Everywhere, Sgd):
    r"""SGD on the slope along a random direction, found by forward-mode differentiation.

    .. math::
        g &= \langle \nabla L(\theta), z \rangle \\
        \theta &\leftarrow (\theta - \eta g z)(1 - \eta \lambda)

    It is `mezo` in the limit of small perturbations: no loss is subtracted from another, and the
    weights stay where they are while it is measured. It needs the bundle's tangent graph.

    References:
        Baydin et al., "Gradients without Backpropagation", 2022; Zhang et al., "Revisiting
        Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A Benchmark", ICML 2024.
    """

    name = "forward-grad"
    paper = "https://arxiv.org/abs/2202.08587"
    graph = TANGENTS

    @property
    def forwards(self) -> int:
        return FORWARDS

    @property
    def scalars(self) -> int:
        return 1

    @property
    def updates_at_once(self) -> bool:
        return False  # there is no way back whose rounding an update could share

    def measure(self, walk: Walk) -> list[Slope]:
        direction = self.direction(walk.number)
        (slope,) = walk.known(walk.slope(direction))
        return [Slope(direction, slope, 0.0)]
