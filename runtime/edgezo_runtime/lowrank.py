r"""Low-rank directions: matrices move along a sum of few outer products.

.. math:: z = \sum_k u_k v_k^T

is summed in the order of k, in float32 without contraction, so that every device gets the same
bits. What is no matrix moves along the pooled direction of the same seed, step and sample.
"""

from __future__ import annotations

import abc
import bisect
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgezo_runtime.noise import EVERYWHERE, AnyDirection, Direction, Purpose, Values, stream

Bases = list[tuple[np.ndarray, np.ndarray]]


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
    def factors(self) -> Bases:
        """Returns u (rows, rank) and v (rank, columns) of each matrix, float32."""

    def draw(self, xp: Any, size: int) -> Values:
        plain = self.plain.draw(xp, size)
        factors = [(xp.asarray(u), xp.asarray(v)) for u, v in self.factors()]
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

    def factors(self) -> Bases:
        seed, step = self.plain.seed, self.plain.step
        rows = sum(matrix.rows for matrix in self.matrices)
        columns = sum(matrix.columns for matrix in self.matrices)
        us = stream(seed, Purpose.LEFT, step, rows * self.rank)
        vs = stream(seed, Purpose.RIGHT, self.since, columns * self.rank)
        vs *= np.float32(1 / math.sqrt(self.rank))
        found, row, column = [], 0, 0
        for matrix in self.matrices:
            u = us[row * self.rank : (row + matrix.rows) * self.rank]
            v = vs[column * self.rank : (column + matrix.columns) * self.rank]
            found.append((u.reshape(matrix.rows, self.rank), v.reshape(self.rank, matrix.columns)))
            row, column = row + matrix.rows, column + matrix.columns
        return found


@dataclass(frozen=True)
class Subspace(LowRank):
    r"""A square core between orthonormal bases that stay for some steps: SubZero.

    .. math:: z = \sqrt{m n / r^2}\; U Z V, \quad Z \in R^{r \times r}

    Attributes:
        since: the step that the bases were drawn at.
        bases: U (m, r) and V (r, n) of each matrix.
    """

    since: int
    bases: Bases = field(compare=False)

    def factors(self) -> Bases:
        ranks = [u.shape[1] for u, _ in self.bases]
        cores = stream(self.plain.seed, Purpose.CORE, self.plain.step, sum(r * r for r in ranks))
        found, at = [], 0
        for matrix, rank, (u, v) in zip(self.matrices, ranks, self.bases, strict=True):
            scale = np.float32(math.sqrt(matrix.size) / rank)
            core = cores[at : at + rank * rank].reshape(rank, rank) * scale
            found.append((u, _outer(core, v, 0, rank * matrix.columns).reshape(rank, -1)))
            at += rank * rank
        return found


def bases(matrices: tuple[Matrix, ...], seed: int, step: int, rank: int) -> Bases:
    """Returns U and V of each matrix for a `Subspace`, drawn at `step`; at most of full rank."""
    ranks = [min(rank, matrix.rows, matrix.columns) for matrix in matrices]
    sizes = [r * (m.rows + m.columns) for m, r in zip(matrices, ranks, strict=True)]
    drawn = stream(seed, Purpose.BASIS, step, sum(sizes))
    found, at = [], 0
    for matrix, r, size in zip(matrices, ranks, sizes, strict=True):
        left = drawn[at : at + r * matrix.rows].reshape(matrix.rows, r)
        right = drawn[at + r * matrix.rows : at + size].reshape(matrix.columns, r)
        found.append((orthonormal(left), np.ascontiguousarray(orthonormal(right).T)))
        at += size
    return found


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
