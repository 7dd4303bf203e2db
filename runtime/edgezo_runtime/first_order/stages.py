"""The plan of a gradient: which pieces of the graph to run, in which order.

The forward pass runs in stages between the graph's cuts and keeps what crosses them. The backward
pass runs the stages from the last to the first; each computes again what it needs of its own
forward part, so that the activations of one stage at a time are in memory, however deep the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from edgezo_runtime.first_order.graph import (
    Graph,
    Node,
    Piece,
    cotangent_of,
    gradient_of,
    tangent_of,
)

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")


@dataclass(frozen=True)
class Plan:
    """What computes some gradients: pieces of the graph, in the order in which they run.

    Attributes:
        forward: from the data to the outputs.
        backward: from the outputs' cotangents down to the lowest of the gradients.
    """

    forward: tuple[Piece, ...]
    backward: tuple[Piece, ...]


def plan(
    graph: Graph,
    outputs: Sequence[str],
    weights: Set[str],
    wanted: Iterable[str],
    keep: float,
    given: Iterable[str] = (),
) -> Plan:
    """Returns the plan for the gradients by the `wanted` weights; it computes nothing else.

    Args:
        graph: a gradient graph.
        outputs: the outputs of its forward pass.
        weights: names of all its weights.
        wanted: names of some.
        keep: the share of the stages, from the last one down, whose products with weights are kept
            for the backward pass and not computed again. Of all, a quarter less is to compute, and
            memory grows with depth.
        given: values that are known, as the data is: nothing below them is computed.
    """
    known = frozenset(given)
    gradients = [gradient_of(name) for name in wanted]
    nodes = graph.needed([*outputs, *gradients], known)
    levels = _backward_levels(graph, nodes, outputs)
    forward = [node for node in nodes if node.outputs[0] not in levels]
    backward = [node for node in nodes if node.outputs[0] in levels]
    stages = _forward_stages(graph, forward)
    kept = set(graph.cuts) | _shared(forward, backward, weights | known)
    lowest = (1 - keep) * (len(graph.cuts) + 1)
    products = _products(graph, forward, weights, known)
    kept |= {name for name in products if stages[name] >= lowest}
    kept &= stages.keys() & graph.described
    kept |= known
    pieces = _backward_pieces(graph, backward, levels, kept, set(gradients))
    needed = {*outputs, *(name for piece in pieces for name, _ in piece.inputs)}
    return Plan(tuple(_forward_pieces(graph, stages, kept, needed)), tuple(pieces))


def tangent_plan(
    graph: Graph,
    outputs: Sequence[str],
    weights: Set[str],
    wanted: Set[str],
    given: Iterable[str] = (),
) -> tuple[Piece, ...]:
    """Returns the pieces that compute the outputs and their tangents along the `wanted` weights.

    A value and its tangent cross each cut together, and nothing else does: the tangents of the
    weights of one stage at a time have to be there.

    Args:
        graph: a tangent graph.
        outputs: the outputs of its forward pass.
        weights: names of all its weights.
        wanted: names of those whose tangents are not zero.
        given: values that are known, as the data is: nothing below them is computed.
    """
    known = frozenset(given)
    tangents = {name: tangent_of(name) for name in weights if tangent_of(name) in graph.inputs}
    graph = graph.without(tangent for name, tangent in tangents.items() if name not in wanted)
    ends = {*outputs, *(tangent_of(name) for name in outputs)} & graph.made_by.keys()
    nodes = graph.needed(ends, known)
    stages = _forward_stages(graph, nodes)
    kept = {*graph.cuts, *map(tangent_of, graph.cuts)}
    kept |= _shared(nodes, [], weights | known | set(tangents.values()))
    kept &= stages.keys() & graph.described
    kept |= known
    return tuple(_forward_pieces(graph, stages, kept, ends))


def _backward_levels(graph: Graph, nodes: Sequence[Node], outputs: Sequence[str]) -> dict[str, int]:
    """Returns the stage of each value of the backward pass: the lowest of what it depends on."""
    seeds = {cotangent_of(name): len(graph.cuts) for name in outputs}
    seeds |= {cotangent_of(name): number for number, name in enumerate(graph.cuts)}
    levels: dict[str, int] = {}
    for node in nodes:
        found = [
            seeds.get(name, levels.get(name, 0))
            for name in node.inputs
            if name in seeds or name in levels
        ]
        if found:
            levels.update(dict.fromkeys(node.outputs, min(found)))
    return levels


def _forward_stages(graph: Graph, nodes: Sequence[Node]) -> dict[str, int]:
    """Returns the stage of each value of the forward pass: after all cuts that it depends on."""
    after = {name: number + 1 for number, name in enumerate(graph.cuts)}
    after |= {tangent_of(name): number for name, number in after.items()}
    stages: dict[str, int] = {}
    for node in nodes:
        found = [after.get(name, stages.get(name, 0)) for name in node.inputs]
        stages.update(dict.fromkeys(node.outputs, max(found, default=0)))
    return stages


def _shared(forward: Sequence[Node], backward: Sequence[Node], weights: Set[str]) -> set[str]:
    """Returns what depends on data alone and meets what does not: masks, sizes, rotations."""
    data: set[str] = set()
    tainted, met = set(weights), set[str]()
    for node in forward:
        if tainted.isdisjoint(node.inputs):
            data.update(node.outputs)
        else:
            tainted.update(node.outputs)
            met.update(node.inputs)
    met.update(name for node in backward for name in node.inputs)
    return data & met


def _products(graph: Graph, nodes: Sequence[Node], weights: Set[str], given: Set[str]) -> set[str]:
    """Returns the products of activations with weights."""
    alone, fed = set(weights), {*(graph.inputs - weights), *given}
    found: set[str] = set()
    for node in nodes:
        if fed.isdisjoint(node.inputs):
            alone.update(node.outputs)
            continue
        fed.update(node.outputs)
        if node.operator in _PRODUCTS and not alone.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def _backward_pieces(
    graph: Graph,
    nodes: Sequence[Node],
    levels: dict[str, int],
    kept: Set[str],
    gradients: Set[str],
) -> list[Piece]:
    made: dict[int, list[str]] = {}
    lowest: dict[str, int] = {}  # stage that uses a value last
    for node in nodes:
        level = levels[node.outputs[0]]
        made.setdefault(level, []).extend(node.outputs)
        for name in node.inputs:
            lowest[name] = min(lowest.get(name, level), level)
    pieces = []
    for level, names in sorted(made.items(), reverse=True):
        ends = [n for n in names if n in gradients or lowest.get(n, level) < level]
        above = {name for name, other in levels.items() if other > level}
        pieces.append(graph.piece(ends, kept | above))
    return pieces


def _forward_pieces(
    graph: Graph, stages: dict[str, int], kept: Set[str], needed: set[str]
) -> list[Piece]:
    """Returns the pieces that make what is `needed`, which each adds its own inputs to."""
    pieces = []
    for stage in range(len(graph.cuts), -1, -1):
        ends = [name for name, own in stages.items() if own == stage and name in needed]
        if ends:
            given = {name for name in kept if stages.get(name, -1) < stage}
            pieces.append(graph.piece(ends, given))
            needed |= {name for name, _ in pieces[-1].inputs}
    return pieces[::-1]
