"""Which parameters make up a model's layers, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgezo_runtime.bundle import Parameter

_NUMBERED = re.compile(r"((?:.*?\.)?\d+)\.")

Ranges = tuple[tuple[int, int], ...]


def layers_of(parameters: Sequence[Parameter]) -> tuple[list[list[int]], list[int]]:
    """Returns the places of each layer's parameters in `parameters`, and of those in none.

    A layer is what shares a name up to its first number, as in ``model.layers.3.``; where no name
    has one, what shares a name up to its last part.
    """
    numbered = [_NUMBERED.match(p.name) for p in parameters]
    keys = [match[1] if match else None for match in numbered]
    if not any(keys):
        keys = [p.name.rpartition(".")[0] or p.name for p in parameters]
    layers: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            layers.setdefault(key, []).append(place)
    return list(layers.values()), [place for place, key in enumerate(keys) if key is None]


def ranges_of(places: Iterable[int], offsets: Sequence[int], size: int) -> Ranges:
    """Returns the parts of the index space that some parameters take; neighbours are joined.

    Args:
        places: which of the arena's parameters.
        offsets: of each parameter, in the index space.
        size: of the index space.
    """
    ends = [*offsets[1:], size]
    ranges: list[tuple[int, int]] = []
    for place in sorted(places):
        start = offsets[place]
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, ends[place]))
    return tuple(ranges)
