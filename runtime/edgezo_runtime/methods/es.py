r"""Evolution strategies: several one-sided samples a step, each other's baseline."""

from __future__ import annotations

from edgezo_runtime.late import Scalar
from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import OneSidedSamples, total
from edgezo_runtime.methods.rules import Sgd


class EvolutionStrategies(Everywhere, OneSidedSamples, Sgd):
    r"""n directions for n forward passes on one batch.

    .. math::
        l_i &= L(\theta + \epsilon z_i), \quad i = 1 \dots n \\
        g_i &= \frac{1}{\epsilon} \Bigl(l_i - \frac{1}{n - 1} \sum_{j \neq i} l_j\Bigr) \\
        \theta &\leftarrow \Bigl(\theta - \frac{\eta}{n} \sum_i g_i z_i\Bigr)(1 - \eta \lambda)

    The mean of the other samples is a baseline that costs no forward pass and takes out what all of
    them share, curvature included. A two-point estimate spends two passes on one direction; this
    one sees nearly twice as many for the same passes, at the price of a bias of order
    :math:`\epsilon^2`.

    References:
        Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning",
        2017; Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019.
    """

    name = "es"
    paper = "https://arxiv.org/abs/1703.03864"
    full_lr = 4e-5

    @property
    def forwards(self) -> int:
        return self.samples

    def compared(self, here: Scalar, losses: list[Scalar]) -> list[Scalar]:
        whole, others = total(losses), self.samples - 1
        return [(loss - (whole - loss) / others) / self.eps for loss in losses]
