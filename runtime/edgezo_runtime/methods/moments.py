"""Momentum and Adam, with their moments held as state."""

from __future__ import annotations

from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import TwoPoint
from edgezo_runtime.methods.rules import Adam, Momentum


class ZoSgdMmt(Everywhere, TwoPoint, Momentum):
    r"""SGD with momentum on a two-point estimate.

    .. math::
        v &\leftarrow \beta v + g z \\
        \theta &\leftarrow (\theta - \eta v)(1 - \eta \lambda)

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "zo-sgd-mmt"
    paper = "https://arxiv.org/abs/2402.11592"
    full_lr = 1e-6


class ZoAdam(Everywhere, TwoPoint, Adam):
    r"""Adam on a two-point estimate :math:`\hat g = g z`.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) \hat g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) \hat g^2 \\
        \theta &\leftarrow \Bigl(\theta - \eta \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t)} + \delta}\Bigr)(1 - \eta \lambda)

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015; Zhang et al.,
        "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning", ICML 2024.
    """

    name = "zo-adam"
    paper = "https://arxiv.org/abs/2402.11592"
    full_lr = 5e-5
