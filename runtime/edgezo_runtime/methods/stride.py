r"""How far weights go for the change of the loss that a language model's own make.

A step that goes :math:`s` times as far in weights whose slopes are :math:`1 / s` of those of all
weights lowers the loss as much. So :math:`\epsilon` is :math:`s` times the method's, and each
update rule turns the smaller slopes into its own rate, as it does with those of a `probe`: SGD's is
:math:`s^2` times as high, that of a rule which normalises :math:`s` times.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgezo_runtime.bundle import LORA, Parameter

#: By the kind of parameter; others have 1. On SST-2 the slopes along all weights of SmolLM2-135M
#: are 5 times those along its norms, and 24 times those along LoRA of rank 8 or a prefix of 5. With
#: LoRA, whose slopes grow with B, 10 is what long runs bear. Biases are taken to be as norms.
_STRIDES = {"norm": 5.0, "bias": 5.0, LORA: 10.0, "prompt": 10.0, "prefix": 30.0}
#: Root mean square of the slopes along all weights there.
SLOPE = 28.0


def stride_of(parameters: Iterable[Parameter]) -> float:
    """Returns s of what is tuned: the least of its parameters'."""
    return min((_STRIDES.get(p.kind, 1.0) for p in parameters), default=1.0)
