r"""Low-rank directions: matrices move along a sum of few outer products.

.. math:: z = \sum_k u_k v_k^T

is summed in the order of k, in float32 without contraction, so that every device gets the same
bits. What is no matrix moves along the pooled direction of the same seed, step and sample.
"""

from __future__ import annotations

import abc
import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from edgezo_runtime.noise import EVERYWHERE, AnyDirection, Direction, Purpose, Values, stream


@dataclass(frozen=True)
class Matrix:
    """A parameter of two dimensions or more, as a matrix in the arena's index space."""

    offset: int
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of its elements."""
        return self.rows * self.columns


class Place(NamedTuple):
    """Where a matrix's factors u (rows, rank) and v (rank, columns) begin among all of them."""

    rank: int
    left: int
    right: int


@dataclass(frozen=True)
class Factors:
    """The factors of matrices.

    Attributes:
        left: every u, end to end, flat.
        right: every v.
        places: of each matrix.
    """

    left: Any
    right: Any
    places: Sequence[Place]


@dataclass(frozen=True)
class LowRank(AnyDirection):
    """A direction of low rank.

    Attributes:
        plain: the pooled direction, for what is no matrix.
        matrices: the others, in the order of their offsets.
    """

    plain: Direction
    matrices: tuple[Matrix, ...]
    support = EVERYWHERE

    @abc.abstractmethod
    def factors(self, xp: Any) -> Factors:
        """Returns the factors, float32 arrays of the module `xp`."""

    def draw(self, xp: Any, size: int) -> Values:
        plain = self.plain.draw(xp, size)
        found = self.factors(xp)
        factors = [
            (
                found.left[left : left + matrix.rows * rank].reshape(matrix.rows, rank),
                found.right[right : right + matrix.columns * rank].reshape(rank, matrix.columns),
            )
            for matrix, (rank, left, right) in zip(self.matrices, found.places, strict=True)
        ]
        offsets = [matrix.offset for matrix in self.matrices]

        def values(start: int, stop: int) -> Any:
            z = plain(start, stop)
            first = max(bisect.bisect_right(offsets, start) - 1, 0)
            for matrix, (u, v) in zip(self.matrices[first:], factors[first:], strict=True):
                if matrix.offset >= stop:
                    break
                low, high = max(start, matrix.offset), min(stop, matrix.offset + matrix.size)
                if low < high:
                    part = slice(low - start, high - start)
                    if part == slice(0, stop - start):
                        return _outer(u, v, low - matrix.offset, high - matrix.offset)
                    z = z.copy()
                    z[part] = _outer(u, v, low - matrix.offset, high - matrix.offset)
            return z

        return values


@dataclass(frozen=True)
class Lazy(LowRank):
    r"""Independent factors, of which v stays for some steps: LOZO.

    Scaled by :math:`1 / \sqrt r`, so that each element has unit variance.

    Attributes:
        rank: r.
        since: the step that v was drawn at.
    """

    rank: int
    since: int

    def factors(self, xp: Any) -> Factors:
        seed, step = self.plain.seed, self.plain.step
        rows = sum(matrix.rows for matrix in self.matrices)
        columns = sum(matrix.columns for matrix in self.matrices)
        left = stream(seed, Purpose.LEFT, step, rows * self.rank)
        right = stream(seed, Purpose.RIGHT, self.since, columns * self.rank)
        right *= np.float32(1 / math.sqrt(self.rank))
        places, _ = _layout(self.matrices, (self.rank,) * len(self.matrices))
        return Factors(xp.asarray(left), xp.asarray(right), places)


@dataclass(frozen=True)
class Subspace(LowRank):
    r"""A square core between orthonormal bases that stay for some steps: SubZero.

    .. math:: z = \sqrt{m n / r^2}\; U Z V, \quad Z \in R^{r \times r}

    Attributes:
        rank: r, or a matrix's own where that is smaller.
        since: the step that the bases were drawn at.
        bases: U (m, r) and V (r, n) of each matrix, in the memory that weights lie in.
    """

    rank: int
    since: int
    bases: Factors = field(compare=False)

    def factors(self, xp: Any) -> Factors:
        ranks = tuple(place.rank for place in self.bases.places)
        _, kinds = _layout(self.matrices, ranks, alike=True)
        count = sum(rank * rank for rank in ranks)
        drawn = stream(self.plain.seed, Purpose.CORE, self.plain.step, count)
        right, at = xp.empty(self.bases.right.size, np.float32), 0
        for kind in kinds:  # whose bases lie one after the other
            n, rank, columns = len(kind.cores), kind.rank, kind.columns
            end = at + n * rank * columns
            cores = xp.asarray((drawn[kind.cores] * kind.scales[:, None]).reshape(n, rank, rank))
            kept = self.bases.right[at:end].reshape(n, rank, columns)
            total = right[at:end].reshape(n, rank, columns)
            total[...] = cores[:, :, :1] * kept[:, :1]
            for k in range(1, rank):
                total += cores[:, :, k : k + 1] * kept[:, k : k + 1]
            at = end
        return Factors(self.bases.left, right, self.bases.places)


class _Kind(NamedTuple):
    """Matrices whose factors v have one shape.

    Attributes:
        rank: of v.
        columns: of v.
        cores: which of all drawn numbers are theirs, (matrices, rank * rank).
        scales: of each of them, float32.
    """

    rank: int
    columns: int
    cores: np.ndarray
    scales: np.ndarray


def bases(
    matrices: tuple[Matrix, ...],
    seed: int,
    step: int,
    rank: int,
    put: Callable[[np.ndarray], Any] = np.asarray,
) -> Factors:
    """Returns U and V of each matrix for a `Subspace`, drawn at `step`; at most of full rank.

    `put` brings arrays to the memory that the weights lie in.
    """
    ranks = tuple(min(rank, matrix.rows, matrix.columns) for matrix in matrices)
    sizes = [r * (m.rows + m.columns) for m, r in zip(matrices, ranks, strict=True)]
    drawn = stream(seed, Purpose.BASIS, step, sum(sizes))
    places, _ = _layout(matrices, ranks, alike=True)
    left = np.empty(sum(r * m.rows for r, m in zip(ranks, matrices, strict=True)), np.float32)
    right = np.empty(sum(r * m.columns for r, m in zip(ranks, matrices, strict=True)), np.float32)
    at = 0
    for matrix, size, (r, first, second) in zip(matrices, sizes, places, strict=True):
        u = drawn[at : at + r * matrix.rows].reshape(matrix.rows, r)
        v = drawn[at + r * matrix.rows : at + size].reshape(matrix.columns, r)
        left[first : first + u.size] = orthonormal(u).reshape(-1)
        right[second : second + v.size] = orthonormal(v).T.reshape(-1)
        at += size
    return Factors(put(left), put(right), places)


@functools.lru_cache(4)
def _layout(
    matrices: tuple[Matrix, ...], ranks: tuple[int, ...], alike: bool = False
) -> tuple[Sequence[Place], Sequence[_Kind]]:
    """Returns where factors lie: u in the order of matrices, v too, or those alike together.

    Of those alike it also returns what they have in common, in the order of their v.
    """
    order, kinds = range(len(matrices)), []
    if alike:

        def shape(i: int) -> tuple[int, int]:
            return ranks[i], matrices[i].columns

        order = sorted(order, key=shape)
        cores = list(itertools.accumulate((r * r for r in ranks), initial=0))
        for (rank, columns), group in itertools.groupby(order, shape):
            members = list(group)
            starts = np.array([cores[i] for i in members])[:, None]
            scales = np.array([math.sqrt(matrices[i].size) / rank for i in members])
            own = starts + np.arange(rank * rank)
            kinds.append(_Kind(rank, columns, own, scales.astype(np.float32)))
    sizes = (m.rows * r for m, r in zip(matrices, ranks, strict=True))
    lefts = itertools.accumulate(sizes, initial=0)
    rights, at = [0] * len(matrices), 0
    for i in order:
        rights[i], at = at, at + ranks[i] * matrices[i].columns
    return [Place(*each) for each in zip(ranks, lefts, rights, strict=False)], kinds


def orthonormal(drawn: np.ndarray) -> np.ndarray:
    """Returns orthonormal columns that span those of `drawn`, values of the binomial pool.

    The pool's values are whole numbers times a constant, so their products add up exactly in
    whatever order; the rest is Cholesky's factorisation in a fixed one. A column that depends on
    those before it becomes zero.
    """
    whole = np.rint(drawn.astype(np.float64) / np.float32(0.17677669))
    products = whole.T @ whole
    rank = products.shape[0]
    upper = np.zeros((rank, rank))
    for i in range(rank):
        for j in range(i, rank):
            rest = float(products[i, j])
            for k in range(i):
                rest -= float(upper[k, i]) * float(upper[k, j])
            if j == i:
                upper[i, i] = math.sqrt(rest) if rest > 1e-9 * float(products[i, i]) else 0.0
            elif upper[i, i]:
                upper[i, j] = rest / upper[i, i]
    basis = np.zeros_like(whole)
    for j in range(rank):
        if upper[j, j]:
            column = whole[:, j].copy()
            for i in range(j):
                column -= upper[i, j] * basis[:, i]
            basis[:, j] = column / upper[j, j]
    return basis.astype(np.float32)


def _outer(u: Any, v: Any, start: int, stop: int) -> Any:
    """Returns elements `start` to `stop` of the sum of u's columns times v's rows, flat."""
    columns = v.shape[1]
    first, last = start // columns, -(-stop // columns)
    total = u[first:last, :1] * v[0]
    for k in range(1, v.shape[0]):
        total += u[first:last, k : k + 1] * v[k]
    return total.reshape(-1)[start - first * columns : stop - first * columns]
