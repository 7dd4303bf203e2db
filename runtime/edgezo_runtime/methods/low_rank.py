"""MeZO along directions of low rank."""

from __future__ import annotations

from edgezo_runtime.methods.directions import LazyLowRank, RandomSubspace
from edgezo_runtime.methods.estimators import TwoPoint
from edgezo_runtime.methods.rules import Sgd


class Lozo(LazyLowRank, TwoPoint, Sgd):
    r"""MeZO along :math:`u v^T`, where v stays for some steps.

    .. math::
        g &= \frac{L(W + \epsilon Z) - L(W - \epsilon Z)}{2 \epsilon}, \quad
            Z = \frac{1}{\sqrt r} u v^T,\ u \in R^{m \times r},\ v \in R^{n \times r} \\
        W &\leftarrow (W - \eta g Z)(1 - \eta \lambda)

    What is no matrix moves as in MeZO. Both factors are drawn from the seed when they are needed.

    References:
        Chen et al., "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank
        Structures", ICLR 2025.
    """

    name = "lozo"
    paper = "https://arxiv.org/abs/2410.07698"


class SubZero(RandomSubspace, TwoPoint, Sgd):
    r"""MeZO within random subspaces of the matrices.

    .. math::
        g &= \frac{L(W + \epsilon Z) - L(W - \epsilon Z)}{2 \epsilon}, \quad
            Z = \sqrt{\frac{m n}{r^2}}\, U C V,\ C \in R^{r \times r} \\
        W &\leftarrow (W - \eta g Z)(1 - \eta \lambda)

    U and V have orthonormal columns and rows and stay for some steps. What is no matrix moves as in
    MeZO.

    References:
        Yu et al., "Zeroth-Order Fine-Tuning of LLMs in Random Subspaces" (SubZero), ICCV 2025.
    """

    name = "subzero"
    paper = "https://arxiv.org/abs/2410.08989"
