"""A step of the published MeZO loop in PyTorch, on any of its devices.

It is that of princeton-nlp/MeZO, operation by operation: the seed is set again before each pass
over the parameters, `torch.normal` draws each parameter's direction, three passes perturb and
restore, one updates. PyTorch is imported late, as `card.opened` must come before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

EPS = 1e-3
WEIGHT_DECAY = 0.0
_NOT_DECAYED = ("bias", "layer_norm", "layernorm")
Named = Sequence[tuple[str, Any]]


def published_step(named: Named, seed: int, loss: Callable[[], float], rate: float) -> None:
    """Takes a step.

    Args:
        named: the parameters, and their names.
        seed: of the step's direction.
        loss: returns the loss at the parameters as they are.
        rate: the learning rate.
    """
    _perturb(named, seed, 1)
    higher = loss()
    _perturb(named, seed, -2)
    lower = loss()
    projected_grad = (higher - lower) / (2 * EPS)
    _perturb(named, seed, 1)
    for name, parameter, z in _drawn(named, seed):
        if any(word in name for word in _NOT_DECAYED):
            parameter.data = parameter.data - rate * (projected_grad * z)
        else:
            decay = WEIGHT_DECAY * parameter.data
            parameter.data = parameter.data - rate * (projected_grad * z + decay)


def _perturb(named: Named, seed: int, scale: int) -> None:
    for _, parameter, z in _drawn(named, seed):
        parameter.data = parameter.data + scale * z * EPS


def _drawn(named: Named, seed: int) -> Iterator[tuple[str, Any, Any]]:
    """Yields each parameter with its name and its direction."""
    import torch

    torch.manual_seed(seed)
    for name, parameter in named:
        data = parameter.data
        z = torch.normal(mean=0, std=1, size=data.size(), device=data.device, dtype=data.dtype)
        yield name, parameter, z
