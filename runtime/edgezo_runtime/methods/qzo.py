r"""QZO: MeZO over quantisation scales, with its projected gradient clipped."""

from __future__ import annotations

from edgezo_runtime.methods.estimators import StepSize
from edgezo_runtime.methods.mezo import Mezo
from edgezo_runtime.methods.options import Number


class Qzo(Mezo):
    r"""MeZO whose slope is clipped, for the scales of quantised weights.

    .. math::
        g &= \mathrm{clip}\Bigl(\frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon},
            -c, c\Bigr) \\
        \theta &\leftarrow (\theta - \eta g z)(1 - \eta \lambda)

    The integers stay; a scale below 1e-7 counts as 1e-7 in the graph, so that none turns the sign
    of its weights. Tune with `--tune scales`. Scales are about a hundredth of what weights are
    multiplied by, so `eps` is smaller than MeZO's.

    Settings:
        eps: perturbation scale, in units of the scales.
        clip: c, the largest slope that is believed.

    References:
        Shang et al., "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization", 2025.
    """

    name = "qzo"
    paper = "https://arxiv.org/abs/2505.13430"

    eps = StepSize(1e-4)
    clip = Number(100.0, above=0)

    @property
    def believed(self) -> float:
        return self.clip
