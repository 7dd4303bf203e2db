"""Signs of the estimate: of each weight's, and of the slope alone."""

from __future__ import annotations

from edgezo_runtime.methods.directions import Everywhere
from edgezo_runtime.methods.estimators import TwoPoint
from edgezo_runtime.methods.rules import FixedLength, Sign


class ZoSgdSign(Everywhere, TwoPoint, Sign):
    r"""Sign SGD on a two-point estimate.

    .. math:: \theta \leftarrow (\theta - \eta\, \mathrm{sign}(g z))(1 - \eta \lambda)

    References:
        Liu et al., "signSGD via Zeroth-Order Oracle", ICLR 2019.
    """

    name = "zo-sgd-sign"
    paper = "https://openreview.net/forum?id=BJe-DsC5Fm"
    full_lr = 5e-5


class ZoLlmSign(Everywhere, TwoPoint, FixedLength):
    r"""What the code of the ZO-LLM benchmark runs under the name of sign SGD.

    .. math:: \theta \leftarrow (\theta - \eta\, \mathrm{sign}(g)\, z)(1 - \eta \lambda)

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "zo-llm-sign"
    paper = "https://arxiv.org/abs/2402.11592"
    full_lr = 5e-5
