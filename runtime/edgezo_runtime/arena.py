"""The arena: all trained weights in one flat, aligned buffer per dtype, swept as one.

Each parameter is a view of its dtype's buffer, and ONNX Runtime reads that same memory. Each also
has a *noise offset*, the next multiple of 64 elements in manifest order whatever the dtype, so that
a float32 and a float16 copy of one model are moved along the same direction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgezo_runtime import dtypes, noise
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.errors import InputError
from edgezo_runtime.kernels import Call, kernel_for
from edgezo_runtime.noise import BLOCK_SIZE, POOL_SIZE, Direction

ONE = np.float32(1)
MOST_TERMS = 4  # of one sweep; each needs a scaled pool of 4 MB
ALIGNMENT = 64  # elements between noise offsets, and bytes of each buffer's address


@dataclass(frozen=True)
class Term:
    """One addition of a sweep: ``w <- (w + coefficient * z) * decay``.

    Attributes:
        direction: names z.
        coefficient: rounded to float32.
        decay: multiplies the weights that decay (matrices), after the addition.
    """

    direction: Direction
    coefficient: np.float32
    decay: np.float32 = ONE


@dataclass(frozen=True)
class _Piece:
    """Weights that lie in one block of the noise's index space and share dtype and decay."""

    weights: np.ndarray
    dtype: dtypes.Dtype
    block: int
    start: int  # within the block
    decays: bool


class Arena:
    """The trained weights of a model, and the sweeps over them.

    Args:
        parameters: the trained parameters, in manifest order.
        threads: how many threads sweep; it never changes a bit.

    Raises:
        InputError: a parameter's dtype cannot be trained, there is none, or no thread.
    """

    def __init__(self, parameters: Sequence[Parameter], threads: int = 1) -> None:
        if not parameters:
            raise InputError("no parameter is trained; choose some with --tune")
        if threads < 1:
            raise InputError(f"threads is {threads}; use 1 or more")
        self.parameters = tuple(parameters)
        self.noise_offsets: dict[str, int] = {}
        self.views: dict[str, np.ndarray] = {}
        self.size = 0  # of the index space, in elements
        lengths = dict.fromkeys(dtypes.TRAINABLE, 0)
        starts = {}
        for parameter in self.parameters:
            dtype = dtypes.named(parameter.dtype)
            if dtype not in lengths:
                raise InputError(f"{parameter.name} is {dtype.name}: only float weights are tuned")
            self.noise_offsets[parameter.name] = self.size
            starts[parameter.name] = lengths[dtype]
            padded = -(-parameter.size // ALIGNMENT) * ALIGNMENT
            self.size += padded
            lengths[dtype] += padded
        self.buffers = {d: _aligned_zeros(n, d.storage) for d, n in lengths.items() if n}
        for parameter in self.parameters:
            buffer = self.buffers[dtypes.named(parameter.dtype)]
            start = starts[parameter.name]
            flat = buffer[start : start + parameter.size]
            self.views[parameter.name] = flat.reshape(parameter.shape)
        pieces = [p for parameter in self.parameters for p in self._pieces_of(parameter)]
        self._shards = [_grouped(s) for s in _split(_merged(pieces, self.buffers), threads)]
        self._pool = ThreadPoolExecutor(threads, "edgezo-sweep") if threads > 1 else None
        self._windows: list[_Windows] = []
        self._deferred: tuple[Term, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the layout: names, shapes, dtypes and noise offsets."""
        layout = [(p.name, p.shape, p.dtype, self.noise_offsets[p.name]) for p in self.parameters]
        return hashlib.sha256(json.dumps(layout).encode()).hexdigest()

    def defer(self, *terms: Term) -> None:
        """Adds `terms` when the weights are next needed, so that they can share that sweep."""
        self._deferred += terms

    def settle(self) -> None:
        """Adds what was deferred; whoever reads the weights calls this first."""
        if self._deferred:
            self.add()

    def forget(self) -> None:
        """Drops what was deferred: the weights are about to be overwritten."""
        self._deferred = ()

    def add(self, *terms: Term) -> None:
        """Sweeps once over all weights, adding what was deferred and then each of `terms`.

        Several terms in one sweep give the same bits as one sweep each; they only save passes over
        the memory.
        """
        terms, self._deferred = self._deferred + terms, ()
        for start in range(0, len(terms), MOST_TERMS):
            self._sweep(terms[start : start + MOST_TERMS])

    def _sweep(self, terms: Sequence[Term]) -> None:
        ready = self._ready(terms)
        decays = [None if term.decay == 1 else np.float32(term.decay) for term in terms]

        def sweep(shard: Sequence[_Group]) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                for group in shard:
                    group.sweep([windows.calls(group) for windows in ready], decays)

        if self._pool is None:
            sweep(self._shards[0])
        else:
            list(self._pool.map(sweep, self._shards))

    def _ready(self, terms: Sequence[Term]) -> list[_Windows]:
        """Returns each term's windows; those of the last directions are still there."""
        groups = [group for shard in self._shards for group in shard]
        blocks = -(-self.size // BLOCK_SIZE)
        free, ready = list(self._windows), []
        for term in terms:
            same = (w for w in free if w.direction == term.direction)
            windows = next(same, free[0] if free else None)
            if windows is None:
                windows = _Windows()
                self._windows.append(windows)
            else:
                free.remove(windows)
            windows.load(term, groups, blocks)
            ready.append(windows)
        return ready

    def nonfinite(self) -> str | None:
        """Returns the name of a parameter that holds NaN or infinity, or None."""
        for parameter in self.parameters:
            view = self.views[parameter.name]
            if view.dtype == dtypes.BFLOAT16.storage:
                finite = bool(((view & 0x7F80) != 0x7F80).all())
            else:
                flat = view.reshape(-1)
                with np.errstate(over="ignore", invalid="ignore"):
                    # A finite dot product needs no array of answers; it may overflow, though.
                    finite = bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())
            if not finite:
                return parameter.name
        return None

    def _pieces_of(self, parameter: Parameter) -> Iterable[_Piece]:
        flat = self.views[parameter.name].reshape(-1)
        dtype = dtypes.named(parameter.dtype)
        offset = self.noise_offsets[parameter.name]
        start = 0
        while start < flat.size:
            block, within = divmod(offset + start, BLOCK_SIZE)
            stop = min(flat.size, start + BLOCK_SIZE - within)
            decays = len(parameter.shape) >= 2
            yield _Piece(flat[start:stop], dtype, block, within, decays)
            start = stop


class _Windows:
    """The scaled pool, and which of its windows one direction adds to each piece of weights.

    A step sweeps three times along one direction; only the pool's scale changes between.
    """

    def __init__(self) -> None:
        self.direction: Direction | None = None
        self._scaled = np.empty(POOL_SIZE + BLOCK_SIZE, np.float32)
        self._calls: dict[_Group, list[Call]] = {}

    def load(self, term: Term, groups: Sequence[_Group], blocks: int) -> None:
        """Scales the pool for `term`, and draws the `blocks` of its direction if it is new."""
        self._coefficient = np.float32(term.coefficient)
        pooled = term.direction.distribution != "gaussian"
        if pooled:
            pool = noise.pool(term.direction.distribution)
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(pool, self._coefficient, self._scaled[:POOL_SIZE])
            self._scaled[POOL_SIZE:] = self._scaled[:BLOCK_SIZE]  # the pool is circular
        if term.direction != self.direction:
            self.direction = term.direction
            self._calls = {}
            if pooled:
                offsets, signs = term.direction.blocks(blocks)
                # Made here and not by the threads: between two additions they would fight for
                # the interpreter's lock.
                self._calls = {group: self._pooled(group, offsets, signs) for group in groups}

    def calls(self, group: _Group) -> Iterable[Call]:
        """Returns what to do to each piece of `group`, in order."""
        return self._calls[group] if self._calls else self._gaussian(group)

    def _pooled(self, group: _Group, offsets: np.ndarray, signs: np.ndarray) -> list[Call]:
        first = offsets[group.blocks] + group.starts
        spans = map(slice, first.tolist(), (first + group.sizes).tolist())
        operations = map((np.subtract, np.add).__getitem__, (signs[group.blocks] > 0).tolist())
        values = map(self._scaled.__getitem__, spans)
        return list(zip(operations, group.weights, values, strict=True))

    def _gaussian(self, group: _Group) -> Iterator[Call]:
        assert self.direction is not None
        for piece in group.pieces:
            block = self.direction.gaussian_block(piece.block)
            values = block[piece.start : piece.start + piece.weights.size]
            yield np.add, piece.weights, self._coefficient * values


class _Group:
    """Pieces of one thread that share dtype and decay."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.pieces = pieces
        self.weights = [piece.weights for piece in pieces]
        self.blocks = np.array([piece.block for piece in pieces])
        self.starts = np.array([piece.start for piece in pieces])
        self.sizes = np.array([piece.weights.size for piece in pieces])
        self._decays = pieces[0].decays
        self._kernel = kernel_for(pieces[0].dtype)

    def sweep(self, columns: Sequence[Iterable[Call]], decays: Sequence[np.float32 | None]) -> None:
        """Makes the calls of each term, one piece after the other, and decays where it shall."""
        mine = decays if self._decays else [None] * len(decays)
        self._kernel.sweep(columns, mine)


def _merged(pieces: Iterable[_Piece], buffers: dict[dtypes.Dtype, np.ndarray]) -> list[_Piece]:
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


def _aligned_zeros(size: int, dtype: np.dtype) -> np.ndarray:
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    skip = -_address(raw) % ALIGNMENT
    return raw[skip : skip + size * dtype.itemsize].view(dtype)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
