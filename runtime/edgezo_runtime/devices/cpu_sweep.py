"""Sweeps with NumPy, on several threads."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgezo_runtime import dtypes, noise
from edgezo_runtime.kernels import Call, kernel_for
from edgezo_runtime.noise import BLOCK_SIZE, POOL_SIZE, AnyDirection, Direction, Values
from edgezo_runtime.sweep import ONE, Placed, Result, Rule, State, Sweeper, Term, apply_rule

Ranges = tuple[tuple[int, int], ...] | None
_COUNTED = 1 << 20  # weights at once
_KEPT = 4  # supports whose pieces are kept: a run in blocks has few at a time


@dataclass(frozen=True)
class _Piece:
    """Weights that lie in one block of the noise's index space and share dtype and decay."""

    weights: np.ndarray
    dtype: dtypes.Dtype
    block: int
    start: int  # within the block
    decays: bool

    @property
    def index(self) -> slice:
        """Its part of the index space."""
        first = self.block * BLOCK_SIZE + self.start
        return slice(first, first + self.weights.size)


class CpuSweeper(Sweeper):
    """Sweeps over NumPy memory.

    Args:
        placed: the trained weights.
        buffers: the memory they lie in, by dtype.
        threads: how many sweep; it never changes a bit.
    """

    def __init__(
        self, placed: Sequence[Placed], buffers: Mapping[dtypes.Dtype, np.ndarray], threads: int
    ) -> None:
        self._placed = placed
        pieces = [piece for one in placed for piece in _pieces_of(one)]
        self._blocks = max((piece.block for piece in pieces), default=-1) + 1
        self._pieces = _merged(pieces, buffers)
        self._threads = threads
        self._shards: dict[Ranges, list[_Shard]] = {}
        self._pool = ThreadPoolExecutor(threads, "edgezo-sweep") if threads > 1 else None
        self._windows: list[_Windows] = []

    def sweep(self, terms: Sequence[Term]) -> None:
        for ranges, run in itertools.groupby(terms, lambda term: term.direction.support.ranges):
            self._sweep(list(run), self._shards_of(ranges))

    def _sweep(self, terms: Sequence[Term], shards: Sequence[_Shard]) -> None:
        ready = self._ready(terms, [group for shard in shards for group in shard])
        decays = [None if term.decay == 1 else np.float32(term.decay) for term in terms]

        def sweep(shard: _Shard) -> None:
            for group in shard:
                group.sweep([windows.calls(group) for windows in ready], decays)

        self._run(sweep, shards)

    def update(
        self, rule: Rule, directions: Sequence[AnyDirection], decay: np.float32, state: State
    ) -> None:
        size = self._blocks * BLOCK_SIZE
        draws = [direction.draw(np, size) for direction in directions]

        def update(shard: _Shard) -> None:
            for piece in (piece for group in shard for piece in group.pieces):
                index = piece.index
                zs = [draw(index.start, index.stop) for draw in draws]
                fading = decay if piece.decays else ONE
                apply_rule(np, rule, index, piece.weights, piece.dtype, zs, state, fading)

        self._run(update, self._shards_of(directions[0].support.ranges if directions else None))

    def count(self, place: int, upper: int | None = None) -> np.ndarray:
        counts, weights = np.zeros(1 << 16, np.int64), self._placed[place].weights
        for start in range(0, weights.size, _COUNTED):
            values = weights[start : start + _COUNTED].astype(np.float32)
            bits = (values.view(np.uint32) & 0x7FFFFFFF).astype(np.int64)
            halves = bits >> 16 if upper is None else bits[bits >> 16 == upper] & 0xFFFF
            counts += np.bincount(halves, minlength=counts.size)
        return counts

    def mask(self, limits: np.ndarray, out: np.ndarray, above: bool) -> None:
        def look(place: int) -> None:
            one = self._placed[place]
            for start in range(0, one.weights.size, BLOCK_SIZE):
                larger = np.abs(one.weights[start : start + BLOCK_SIZE]) > limits[place]
                bits = np.packbits(larger if above else ~larger)
                first = (one.offset + start) // 8
                out[first : first + bits.size] = bits

        self.each(look, range(len(self._placed)))

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        if self._pool is None or len(items) < 2:
            return super().each(work, items)
        return list(self._pool.map(work, items))

    def _run(self, work: Callable[[_Shard], None], shards: Sequence[_Shard]) -> None:
        def quietly(shard: _Shard) -> None:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                work(shard)

        if self._pool is None:
            quietly(shards[0])
        else:
            list(self._pool.map(quietly, shards))

    def _shards_of(self, ranges: Ranges) -> list[_Shard]:
        """Returns each thread's part of the pieces within `ranges`."""
        shards = self._shards.pop(ranges, None)
        if shards is None:
            pieces = self._pieces if ranges is None else list(_within(self._pieces, ranges))
            shards = [_grouped(shard) for shard in _split(pieces, self._threads)]
            if len(self._shards) == _KEPT:
                del self._shards[next(iter(self._shards))]
        self._shards[ranges] = shards
        return shards

    def _ready(self, terms: Sequence[Term], groups: Sequence[_Group]) -> list[_Windows]:
        """Returns each term's windows; those of the last directions are still there."""
        free, ready = list(self._windows), []
        for term in terms:
            same = (w for w in free if w.direction == term.direction)
            windows = next(same, free[0] if free else None)
            if windows is None:
                windows = _Windows()
                self._windows.append(windows)
            else:
                free.remove(windows)
            windows.load(term, groups, self._blocks)
            ready.append(windows)
        return ready


class _Windows:
    """The scaled pool, and which of its windows one direction adds to each piece of weights.

    A step sweeps three times along one direction; only the pool's scale changes between.
    """

    def __init__(self) -> None:
        self.direction: AnyDirection | None = None
        self._scaled = np.empty(POOL_SIZE + BLOCK_SIZE, np.float32)
        self._calls: dict[_Group, list[Call]] = {}
        self._values: Values | None = None

    def load(self, term: Term, groups: Sequence[_Group], blocks: int) -> None:
        """Scales the pool for `term`, and draws the `blocks` of its direction if it is new."""
        self._coefficient = np.float32(term.coefficient)
        direction = term.direction
        # Scaling the pool pays where there are more weights than pool.
        many = sum(group.size for group in groups) > POOL_SIZE
        pooled = direction if isinstance(direction, Direction) and direction.pooled else None
        if pooled and many:
            pool = noise.pool(pooled.distribution)
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(pool, self._coefficient, self._scaled[:POOL_SIZE])
            self._scaled[POOL_SIZE:] = self._scaled[:BLOCK_SIZE]  # the pool is circular
        if direction != self.direction or (self._calls and groups[0] not in self._calls):
            self.direction = direction
            self._calls, self._values = {}, None
            if pooled and many:
                offsets, signs = pooled.blocks(blocks)
                # Made here and not by the threads: between two additions they would fight for
                # the interpreter's lock.
                self._calls = {group: self._pooled(group, offsets, signs) for group in groups}
            else:
                self._values = direction.draw(np, blocks * BLOCK_SIZE)

    def calls(self, group: _Group) -> Iterable[Call]:
        """Returns what to do to each piece of `group`, in order."""
        return self._calls[group] if self._values is None else self._drawn(group, self._values)

    def _pooled(self, group: _Group, offsets: np.ndarray, signs: np.ndarray) -> list[Call]:
        first = offsets[group.blocks] + group.starts
        spans = map(slice, first.tolist(), (first + group.sizes).tolist())
        operations = map((np.subtract, np.add).__getitem__, (signs[group.blocks] > 0).tolist())
        values = map(self._scaled.__getitem__, spans)
        return list(zip(operations, group.weights, values, strict=True))

    def _drawn(self, group: _Group, values: Values) -> Iterator[Call]:
        for piece in group.pieces:
            index = piece.index
            yield np.add, piece.weights, self._coefficient * values(index.start, index.stop)


class _Group:
    """Pieces of one thread that share dtype and decay."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.pieces = pieces
        self.weights = [piece.weights for piece in pieces]
        self.blocks = np.array([piece.block for piece in pieces])
        self.starts = np.array([piece.start for piece in pieces])
        self.sizes = np.array([piece.weights.size for piece in pieces])
        self.size = int(self.sizes.sum())
        self._decays = pieces[0].decays
        self._kernel = kernel_for(pieces[0].dtype)

    def sweep(self, columns: Sequence[Iterable[Call]], decays: Sequence[np.float32 | None]) -> None:
        """Makes the calls of each term, one piece after the other, and decays where it shall."""
        mine = decays if self._decays else [None] * len(decays)
        self._kernel.sweep(columns, mine)


_Shard = list[_Group]


def _within(pieces: Iterable[_Piece], ranges: tuple[tuple[int, int], ...]) -> Iterator[_Piece]:
    """Yields the parts of `pieces` that lie in `ranges`."""
    starts = [start for start, _ in ranges]
    for piece in pieces:
        index = piece.index
        for start, stop in ranges[max(bisect.bisect_right(starts, index.start) - 1, 0) :]:
            if start >= index.stop:
                break
            low, high = max(start, index.start), min(stop, index.stop)
            if low < high:
                weights = piece.weights[low - index.start : high - index.start]
                within = piece.start + low - index.start
                yield dataclasses.replace(piece, weights=weights, start=within)


def _merged(pieces: Iterable[_Piece], buffers: Mapping[dtypes.Dtype, np.ndarray]) -> list[_Piece]:
    """Joins neighbours of one block that touch in memory, so that small tensors cost little."""
    merged: list[_Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is not None and (
            (last.dtype, last.block, last.decays) == (piece.dtype, piece.block, piece.decays)
            and last.start + last.weights.size == piece.start
            and _address(last.weights) + last.weights.nbytes == _address(piece.weights)
        ):
            buffer = buffers[piece.dtype]
            first = (_address(last.weights) - _address(buffer)) // buffer.itemsize
            joined = buffer[first : first + last.weights.size + piece.weights.size]
            merged[-1] = _Piece(joined, piece.dtype, piece.block, last.start, piece.decays)
        else:
            merged.append(piece)
    return merged


def _split(pieces: Sequence[_Piece], count: int) -> list[list[_Piece]]:
    """Cuts `pieces` into `count` runs of about equal size."""
    total = sum(piece.weights.size for piece in pieces)
    shards: list[list[_Piece]] = [[] for _ in range(count)]
    seen = 0
    for piece in pieces:
        shards[min(seen * count // max(total, 1), count - 1)].append(piece)
        seen += piece.weights.size
    return [shard for shard in shards if shard] or [[]]


def _grouped(pieces: Iterable[_Piece]) -> list[_Group]:
    groups: dict[tuple[dtypes.Dtype, bool], list[_Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.dtype, piece.decays), []).append(piece)
    return [_Group(group) for group in groups.values()]


def _pieces_of(placed: Placed) -> Iterable[_Piece]:
    flat, start = placed.weights, 0
    dtype = dtypes.named(placed.parameter.dtype)
    while start < flat.size:
        block, within = divmod(placed.offset + start, BLOCK_SIZE)
        stop = min(flat.size, start + BLOCK_SIZE - within)
        yield _Piece(flat[start:stop], dtype, block, within, placed.decays)
        start = stop


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
