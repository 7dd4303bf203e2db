"""MeZO on a part of the weights: layers in turn or at random, and single weights."""

from __future__ import annotations

from edgezo_runtime.methods.directions import (
    Blocks,
    LargestWeights,
    RandomLayers,
    RandomlySparse,
    SmallestWeights,
)
from edgezo_runtime.methods.estimators import TwoPoint
from edgezo_runtime.methods.rules import Sgd


class Block(Blocks, TwoPoint, Sgd):
    r"""MeZO on one block of layers at a time, in turn.

    .. math:: \theta_B \leftarrow (\theta_B - \eta g z_B)(1 - \eta \lambda), \quad
        z_i = 0 \text{ outside of block } B

    Layers outside of the block cost nothing.

    References:
        Liu et al., "HiFT: A Hierarchical Full Parameter Fine-Tuning Strategy", EMNLP 2024; Zhang et
        al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "block"
    paper = "https://arxiv.org/abs/2402.11592"
    full_lr = 3e-5


class Lezo(RandomLayers, TwoPoint, Sgd):
    r"""MeZO on a few layers, drawn anew each step.

    .. math:: \theta_S \leftarrow (\theta_S - \eta g z_S)(1 - \eta \lambda), \quad
        z_i = 0 \text{ in the layers that are dropped}

    Whatever belongs to no layer, such as the embeddings, always moves. Dropped layers cost nothing.

    References:
        Wang et al., "Simultaneous Computation and Memory Efficient Zeroth-Order Optimizer for
        Fine-Tuning Large Language Models" (LeZO), 2024.
    """

    name = "lezo"
    paper = "https://arxiv.org/abs/2410.09823"
    full_lr = 2e-5


class SparseRandom(RandomlySparse, TwoPoint, Sgd):
    r"""MeZO on single weights drawn at random.

    .. math:: \theta \leftarrow (\theta - \eta g (m \odot z))(1 - \eta \lambda), \quad
        P(m_i = 1) = 1 - \text{sparsity}

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "sparse-random"
    paper = "https://arxiv.org/abs/2402.11592"
    full_lr = 2e-5


class SparseMagnitude(LargestWeights, TwoPoint, Sgd):
    r"""MeZO on the largest weights of each tensor.

    .. math:: \theta \leftarrow (\theta - \eta g (m \odot z))(1 - \eta \lambda), \quad
        m_i = 1 \text{ where } |\theta_i| > h

    The mask is computed from unperturbed weights and held as one bit a weight.

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A
        Benchmark", ICML 2024.
    """

    name = "sparse-magnitude"
    paper = "https://arxiv.org/abs/2402.11592"
    full_lr = 2e-5


class SparseMezo(SmallestWeights, TwoPoint, Sgd):
    r"""MeZO on the smallest weights of each tensor.

    .. math:: \theta \leftarrow (\theta - \eta g (m \odot z))(1 - \eta \lambda), \quad
        m_i = 1 \text{ where } |\theta_i| \le h

    The threshold h of a tensor is that of its weights at the start. The mask is computed from
    unperturbed weights, each step by default, and held as one bit a weight.

    References:
        Liu et al., "Sparse MeZO: Less Parameters for Better Performance in Zeroth-Order LLM
        Fine-Tuning", 2024.
    """

    name = "sparse-mezo"
    paper = "https://arxiv.org/abs/2402.15751"
    full_lr = 2e-5
