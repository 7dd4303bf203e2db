r"""MeZO: stochastic gradient descent on a two-point estimate, in place."""

from __future__ import annotations

from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import TwoPoint
from edgezo_runtime.methods.rules import Sgd


class Mezo(Everywhere, TwoPoint, Sgd):
    r"""Memory-efficient zeroth-order SGD.

    .. math::
        g &= \frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon} \\
        \theta &\leftarrow (\theta - \eta g z)(1 - \eta \lambda)

    The direction z is regenerated from the seed, never stored. Restoring the weights and updating
    them is one addition, :math:`(\epsilon - \eta g) z`, which small updates of 16-bit weights need
    to survive. Weight decay :math:`\lambda` applies to matrices only.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023.
    """

    name = "mezo"
    paper = "https://arxiv.org/abs/2305.17333"
