"""The layers of a model, as groups of parameters that are tuned one after the other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from edgezo_runtime.bundle import Parameter

_NUMBERED = re.compile(r"((?:.*?\.)?\d+)\.")


def layer_groups(parameters: Sequence[Parameter], size: int = 1) -> list[tuple[str, ...]]:
    """Returns the names of each group's parameters, the lowest layer's first.

    A layer is what shares a name up to its first number, as in ``model.layers.3.``; what comes
    before the first layer, and what comes after one, are groups of their own.

    Args:
        parameters: in the order of the model.
        size: how many layers make a group.
    """

    def key(parameter: Parameter) -> str:
        match = _NUMBERED.match(parameter.name)
        return match[1] if match else ""

    layers = [(k, [p.name for p in group]) for k, group in itertools.groupby(parameters, key)]
    groups = []
    for stack, run in itertools.groupby(layers, lambda layer: layer[0].rpartition(".")[0]):
        names = [own for _, own in run]
        step = size if stack else 1
        starts = range(0, len(names), step)
        groups += [tuple(itertools.chain(*names[start : start + step])) for start in starts]
    return groups
