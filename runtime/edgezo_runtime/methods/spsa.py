"""SPSA with several directions a step, and with one side only."""

from __future__ import annotations

from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import OneSided, TwoPointSamples
from edgezo_runtime.methods.rules import Sgd


class SpsaN(Everywhere, TwoPointSamples, Sgd):
    r"""MeZO with the mean of n two-point estimates.

    .. math::
        g_i &= \frac{L(\theta + \epsilon z_i) - L(\theta - \epsilon z_i)}{2 \epsilon} \\
        \theta &\leftarrow \Bigl(\theta - \frac{\eta}{n} \sum_i g_i z_i\Bigr)(1 - \eta \lambda)

    References:
        Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
        approximation", IEEE Transactions on Automatic Control, 1992.
    """

    name = "spsa-n"
    paper = "https://doi.org/10.1109/9.119632"
    full_lr = 4e-5


class OneSidedSgd(Everywhere, OneSided, Sgd):
    r"""SGD on a one-sided estimate.

    .. math::
        g &= \frac{L(\theta + \epsilon z) - L(\theta)}{\epsilon} \\
        \theta &\leftarrow (\theta - \eta g z)(1 - \eta \lambda)

    The loss at the unperturbed weights is one of the two, and a step is two sweeps, not three; its
    bias is of order :math:`\epsilon`.

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "one-sided"
    paper = "https://arxiv.org/abs/2402.11592"
