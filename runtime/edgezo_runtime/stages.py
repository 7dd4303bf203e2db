"""Cuts a graph into a chain of stages, each of which reads few of the weights.

A stage is the part of the graph that runs between two places where little crosses: an embedding,
a layer or a few, the head. What depends on data alone (masks, rotations) or on weights alone
(transposed ones) is made again in each stage that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from edgezo_runtime.first_order.graph import Graph, Node, Piece
from edgezo_runtime.split import HEAVY, present

_NUMBER = re.compile(r"(?:.*?\.)?(\d+)\.")
_SLACK = 1.25  # times the largest part: what stages that are put together may have


@dataclass(frozen=True)
class Stage:
    """A part of a graph.

    Attributes:
        piece: its model; see `Piece`.
        weights: names of those it reads.
        done: names of the values that it reads and no later stage does.
    """

    piece: Piece
    weights: frozenset[str]
    done: frozenset[str]


def cut(graph: Graph, sizes: Mapping[str, int]) -> list[Stage]:
    """Returns the stages of `graph`, in their order.

    Layers are told apart by the first number in the names of their weights. Neighbours are put
    together as long as they need no more memory than the largest of them does anyway.

    Args:
        graph: what is cut.
        sizes: bytes of each weight, by name.
    """
    flow = _Flow(graph, sizes.keys())
    bounds = _bounds(flow, sizes)
    stages = []
    for first, end in zip([0, *bounds], [*bounds, len(flow.nodes)], strict=True):
        made = [name for node in flow.nodes[first:end] for name in present(node.outputs)]
        outputs = [name for name in made if flow.last[name] >= end]
        if end == len(flow.nodes):
            outputs += [name for name in graph.outputs if name not in flow.first]
        given = {name for name, place in flow.first.items() if place < first}
        piece = graph.piece(outputs, given)
        read = {name for name, _ in piece.inputs}
        done = {name for name in read & given if flow.last[name] < end}
        stages.append(Stage(piece, frozenset(read & sizes.keys()), frozenset(done)))
    return stages


class _Flow:
    """The nodes through which data and weights flow together, in the order in which they run.

    Args:
        graph: theirs.
        weights: names of the weights.

    Attributes:
        nodes: in an order in which what reads weights comes as late as it can.
        reads: the weights that each of them reads.
        first: the place of the node that makes a value, by the value's name.
        last: the place of the last node that reads it; past the end if the graph returns it.
    """

    def __init__(self, graph: Graph, weights: Set[str]) -> None:
        alone = {name: frozenset([name]) for name in weights}  # what is made of weights alone
        fed = set(graph.inputs - weights)
        moving: set[str] = set()
        nodes: list[Node] = []
        for node in graph.needed(graph.outputs):
            named = set(present(node.inputs))
            read = frozenset[str]().union(*(alone[n] for n in named if n in alone))
            if moving & named or (read and fed & named):
                nodes.append(node)
                moving.update(present(node.outputs))
            elif read:
                alone.update(dict.fromkeys(present(node.outputs), read))
            elif fed & named:
                fed.update(present(node.outputs))
        self.nodes = _late(nodes)
        self.reads = [
            frozenset[str]().union(*(alone[n] for n in node.inputs if n in alone))
            for node in self.nodes
        ]
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            self.last.update((n, place) for n in node.inputs if n in self.first)
            self.first.update(dict.fromkeys(present(node.outputs), place))
            self.last.update(dict.fromkeys(present(node.outputs), place))
        self.last.update((n, len(self.nodes)) for n in graph.outputs if n in self.first)
        self.described = graph.described

    def crossing(self, place: int) -> list[str]:
        """Returns the values that cross a cut in front of the node at `place`."""
        return [n for n, first in self.first.items() if first < place <= self.last[n]]


def _late(nodes: Sequence[Node]) -> list[Node]:
    """Returns `nodes` with those that no product comes before put where they are first read.

    An exporter may put all rows that are looked up in tables in front, whoever reads them.
    """
    after: set[str] = set()  # what comes after a product
    waiting: dict[str, Node] = {}
    ordered: dict[int, Node] = {}

    def put(node: Node) -> None:
        before, open_ = [], [node]
        while open_:
            for name in open_.pop().inputs:
                if name in waiting:
                    found = waiting.pop(name)
                    before.append(found)
                    open_.append(found)
        for one in sorted(before, key=lambda one: places[id(one)]):
            ordered[id(one)] = one
        ordered[id(node)] = node

    places = {id(node): place for place, node in enumerate(nodes)}
    for node in nodes:
        if node.operator in HEAVY or not after.isdisjoint(node.inputs):
            after.update(present(node.outputs))
            put(node)
        else:
            waiting.update(dict.fromkeys(present(node.outputs), node))
    for node in list(waiting.values()):
        if id(node) not in ordered:
            put(node)
    return list(ordered.values())


def _bounds(flow: _Flow, sizes: Mapping[str, int]) -> list[int]:
    """Returns the places of the nodes that begin a stage, without the first."""
    parts: list[tuple[str, int, int, set[str]]] = []  # layer, its first and last node, weights
    for place, read in enumerate(flow.reads):
        if not read:
            continue
        layer = _layer(min(read))
        if parts and parts[-1][0] == layer:
            _, first, _, weights = parts.pop()
            parts.append((layer, first, place, weights | read))
        else:
            parts.append((layer, place, place, set(read)))
    most = _SLACK * max((_bytes(weights, sizes) for *_, weights in parts), default=0)
    bounds: list[int] = []
    held: set[str] = set()
    for before, after in zip([None, *parts], parts, strict=False):
        if before is not None and _bytes(held | after[3], sizes) > most:
            place = _narrowest(flow, before[2] + 1, after[1])
            if place is not None:
                bounds.append(place)
                held = set()
        held |= after[3]
    return bounds


def _narrowest(flow: _Flow, first: int, last: int) -> int | None:
    """Returns the place from `first` to `last` in front of which the fewest values cross."""
    crossings = {place: flow.crossing(place) for place in range(first, last + 1)}
    whole = [place for place, names in crossings.items() if flow.described >= {*names}]
    return min(whole, key=lambda place: len(crossings[place]), default=None)


def _layer(name: str) -> str:
    found = _NUMBER.match(name)
    return found[1] if found else name


def _bytes(weights: Iterable[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes[name] for name in weights)
