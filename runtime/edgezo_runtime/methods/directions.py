"""Directions: along what a step moves, and which weights."""

from __future__ import annotations

import functools
import math

import numpy as np

from edgezo_runtime import magnitudes
from edgezo_runtime.layers import Ranges, layers_of, ranges_of
from edgezo_runtime.lowrank import Factors, Lazy, Matrix, Subspace, bases
from edgezo_runtime.masks import RandomMask, StoredMask
from edgezo_runtime.methods.base import Method
from edgezo_runtime.methods.options import Choice, Number, Whole
from edgezo_runtime.noise import (
    DISTRIBUTIONS,
    EVERYWHERE,
    Direction,
    Purpose,
    Support,
    random_words,
)

MOST_STEPS = 1 << 31


class Everywhere(Method):
    """All weights, along the pooled direction.

    Settings:
        distribution: of z, one of `noise.DISTRIBUTIONS`.
    """

    distribution = Choice("binomial", DISTRIBUTIONS)

    def direction(self, number: int, sample: int = 0) -> Direction:
        return Direction(self.seed, number, sample, self.distribution, self.support(number))

    def support(self, number: int) -> Support:
        """Returns which weights step `number` moves."""
        return EVERYWHERE

    def ranges(self, places: list[int]) -> Ranges:
        """Returns the parts of the index space that parameters take, by their places."""
        offsets = list(self.arena.noise_offsets.values())
        return ranges_of(places, offsets, self.arena.size)


class RandomLayers(Everywhere):
    """Some layers, drawn anew each step, and whatever belongs to no layer.

    Settings:
        dropped: the share of the layers that stay as they are.
    """

    dropped = Number(0.75, least=0, below=1)

    def support(self, number: int) -> Support:
        layers, others = self._layers
        kept = max(1, len(layers) - math.floor(self.dropped * len(layers)))
        words = random_words(self.seed, Purpose.LAYERS, number, len(layers))[0]
        chosen = np.argsort(words, kind="stable")[:kept]
        return Support(self.ranges(others + [place for i in chosen for place in layers[i]]))

    @functools.cached_property
    def _layers(self) -> tuple[list[list[int]], list[int]]:
        return layers_of(self.arena.parameters)


class Blocks(Everywhere):
    """One block of layers at a time, in turn; what is before the layers and after them counts too.

    Settings:
        layers: how many make a block.
        interval: steps before the next block's turn.
        order: ``"up"`` from the first layer, ``"down"`` from the last, or ``"random"``: shuffled
            once.
    """

    layers = Whole(1, 1, 1 << 16)
    interval = Whole(1, 1, MOST_STEPS)
    order = Choice("up", ("up", "down", "random"))

    def support(self, number: int) -> Support:
        return self._blocks[(number - 1) // self.interval % len(self._blocks)]

    @functools.cached_property
    def _blocks(self) -> list[Support]:
        layers, others = layers_of(self.arena.parameters)
        first = min(place for layer in layers for place in layer) if layers else 0
        before = [place for place in others if place < first]
        after = [place for place in others if place >= first]
        joined = [[] for _ in range(0, len(layers), self.layers)]
        for i, layer in enumerate(layers):
            joined[i // self.layers] += layer
        blocks = [Support(self.ranges(places)) for places in (before, *joined, after) if places]
        if self.order == "down":
            blocks.reverse()
        elif self.order == "random":
            words = random_words(self.seed, Purpose.LAYERS, 0, len(blocks))[0]
            blocks = [blocks[i] for i in np.argsort(words, kind="stable")]
        return blocks


class RandomlySparse(Everywhere):
    """Single weights, each with the same probability.

    Settings:
        sparsity: the share of weights that stay as they are.
        interval: steps before others are drawn.
    """

    sparsity = Number(0.75, least=0, below=1)
    interval = Whole(1, 1, MOST_STEPS)

    def support(self, number: int) -> Support:
        drawn_at = number - (number - 1) % self.interval
        return Support(mask=RandomMask(self.seed, drawn_at, 1 - self.sparsity))


class _Magnitudes(Everywhere):
    """Single weights by their size; one bit each is held."""

    sparsity = Number(0.75, least=0, below=1)
    interval = Whole(1, 1, MOST_STEPS)

    def state_layout(self) -> dict[str, tuple[type[np.generic], int]]:
        return super().state_layout() | {
            "mask": (np.uint8, self.arena.size // 8),
            "thresholds": (np.float32, len(self.arena.parameters)),
        }

    def support(self, number: int) -> Support:
        return Support(mask=StoredMask(self._drawn_at(number), self.state["mask"]))

    def _drawn_at(self, number: int) -> int:
        return number - (number - 1) % self.interval


class LargestWeights(_Magnitudes):
    """The largest weights of each tensor, looked for anew every `interval` steps.

    Settings:
        sparsity: the share of weights that stay as they are.
        interval: steps before the weights are looked at again.
    """

    interval = Whole(1000, 1, MOST_STEPS)

    def prepare(self, number: int) -> None:
        if self._drawn_at(number) == number:
            magnitudes.thresholds(self.arena, self.sparsity, self.state["thresholds"])
            magnitudes.mask(self.arena, self.state["thresholds"], self.state["mask"], above=True)


class SmallestWeights(_Magnitudes):
    """The weights no larger than a threshold that each tensor keeps from the start.

    Settings:
        sparsity: the share of weights that stay as they are, at the start.
        interval: steps before the weights are looked at again.
    """

    def prepare(self, number: int) -> None:
        if number == 1:
            magnitudes.thresholds(self.arena, 1 - self.sparsity, self.state["thresholds"])
        if self._drawn_at(number) == number:
            magnitudes.mask(self.arena, self.state["thresholds"], self.state["mask"], above=False)


class _LowRank(Method):
    """Matrices along few outer products, everything else along the pooled direction."""

    @functools.cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices of the arena."""
        return tuple(
            Matrix(offset, p.shape[0], p.size // p.shape[0])
            for p, offset in zip(
                self.arena.parameters, self.arena.noise_offsets.values(), strict=True
            )
            if len(p.shape) >= 2 and p.size
        )

    def plain(self, number: int, sample: int) -> Direction:
        """Returns the pooled direction."""
        return Direction(self.seed, number, sample)


class LazyLowRank(_LowRank):
    """Outer products of two random factors, of which one stays for some steps.

    Settings:
        rank: r, the number of outer products.
        interval: steps before the factor v is drawn anew.
    """

    rank = Whole(2, 1, 256)
    interval = Whole(50, 1, MOST_STEPS)

    def direction(self, number: int, sample: int = 0) -> Lazy:
        since = number - (number - 1) % self.interval
        return Lazy(self.plain(number, sample), self.matrices, self.rank, since)


class RandomSubspace(_LowRank):
    """A random core between orthonormal bases that stay for some steps.

    Settings:
        rank: r of the bases.
        interval: steps before the bases are drawn anew.
    """

    rank = Whole(8, 1, 256)
    interval = Whole(1000, 1, MOST_STEPS)

    def direction(self, number: int, sample: int = 0) -> Subspace:
        since = number - (number - 1) % self.interval
        plain, bases = self.plain(number, sample), self._bases(since)
        return Subspace(plain, self.matrices, self.rank, since, bases)

    @property
    def state_bytes(self) -> int:
        """Bytes of the bases, which are drawn again after a resume."""
        ranks = (min(self.rank, m.rows, m.columns) * (m.rows + m.columns) for m in self.matrices)
        return super().state_bytes + 4 * sum(ranks)

    def _bases(self, since: int) -> Factors:
        if self._drawn is None or self._drawn[0] != since:
            put = self.arena.device.put
            self._drawn = since, bases(self.matrices, self.seed, since, self.rank, put)
        return self._drawn[1]

    _drawn: tuple[int, Factors] | None = None
