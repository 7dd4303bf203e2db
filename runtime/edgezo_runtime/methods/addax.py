"""Addax: zeroth-order estimates on long sequences, true gradients on short ones."""

from __future__ import annotations

from edgezo_runtime.methods.mixed import Mixed


class Addax(Mixed):
    r"""Mixes a two-point estimate on one batch with the gradient on another, in place.

    .. math::
        g_0 &= \frac{L(\theta + \epsilon z; B_0) - L(\theta - \epsilon z; B_0)}{2 \epsilon} \\
        \theta &\leftarrow \theta - \eta (\alpha g_0 z + (1 - \alpha) \nabla L(\theta; B_1))

    The long sequences, whose activations would take the most memory, are in :math:`B_0`; the short
    ones are in :math:`B_1`.

    Settings:
        eps: perturbation scale, in units of the weights.
        zo_weight: alpha.

    References:
        Li et al., "Addax: Utilizing Zeroth-Order Gradients to Improve Memory Efficiency and
        Performance of SGD for Fine-Tuning Language Models", ICLR 2025.
    """

    name = "addax"
    paper = "https://arxiv.org/abs/2410.06441"

    @property
    def exact_weight(self) -> float:
        return 1 - self.zo_weight


class AddaxWa(Addax):
    """Addax without assignment: both batches are drawn from all rows, whatever their length."""

    name = "addax-wa"
