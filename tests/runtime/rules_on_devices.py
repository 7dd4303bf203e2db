"""Methods, updates and supports on a device, against the same on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from method_cases import make, short
from runtime_helpers import contents, fill

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice, Device
from edgezo_runtime.dtypes import Dtype, to_float32
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import Record
from edgezo_runtime.lowrank import Lazy, Matrix
from edgezo_runtime.masks import RandomMask, StoredMask
from edgezo_runtime.methods import FORWARD_ONLY
from edgezo_runtime.noise import BLOCK_SIZE, AnyDirection, Direction, Support
from edgezo_runtime.sweep import State

Shapes = Sequence[tuple[int, ...]]
#: Of tensors that end within a chunk, a vector or a byte, and that cross blocks of the noise.
SHAPES: Shapes = ((70, 9), (5,), (40, 100), (1, 3, BLOCK_SIZE // 2), (33,), (257, 129))
_STEPS, _SKIPPED = 5, 3


def parameters_of(shapes: Shapes, dtype: str) -> list[Parameter]:
    """Returns a layer of one parameter for each shape."""
    return [Parameter(f"layers.{i}.w", s, dtype, "x") for i, s in enumerate(shapes)]


def _takes_float16(name: str) -> bool:
    try:
        make(name, Arena(parameters_of(((2, 3),), "float16")), 0, {})
    except InputError:
        return False
    return True


#: Every method, with the dtypes that it takes.
METHODS_AND_DTYPES = [
    (name, dtype)
    for name in FORWARD_ONLY
    for dtype in ("float32", "float16")
    if dtype == "float32" or _takes_float16(name)
]


def check_method(device: Device, name: str, dtype: str, shapes: Shapes = SHAPES) -> None:
    """Checks that steps on `device`, one of them skipped, leave the CPU's weights and state."""
    arenas = [Arena(parameters_of(shapes, dtype), one) for one in (CpuDevice(2), device)]
    methods = []
    for arena in arenas:
        fill(arena, scale=0.02)
        method = short(name, arena, 5, weight_decay=0.1)
        for number in range(1, _STEPS + 1):
            slope = np.float32(100 + number if number % 2 else -7 - number)
            record = Record((slope,) * method.scalars, np.float32(1e-3), int(number == _SKIPPED))
            method.replay(number, record)
        methods.append(method)
    _check_same(arenas[0], arenas[1], methods[0].state, methods[1].state)


def check_supports(device: Device, dtype: str) -> None:
    """Checks sweeps whose terms move parts, masked weights and matrices of low rank together."""
    arenas = [Arena(parameters_of(SHAPES, dtype), one) for one in (CpuDevice(2), device)]
    directions = [_directions(arena) for arena in arenas]
    for arena in arenas:
        fill(arena, scale=0.02)
    for chosen in itertools.combinations(range(len(directions[0])), 3):
        for arena, each in zip(arenas, directions, strict=True):
            terms = [
                Term(each[i], np.float32((-1) ** i * 10.0**-i), np.float32(1 - 0.01 * (i % 2)))
                for i in chosen
            ]
            arena.add(*terms)
        _check_same(arenas[0], arenas[1], {}, {}, chosen)


def check_updates(device: Device, dtype: str) -> None:
    """Checks updates along every kind of direction, by a rule of every operation."""

    def rule(xp: Any, weights: Any, state: State, first: Any, second: Any) -> Any:
        a, b = state["a"], state["b"]
        larger = xp.maximum(a, first * np.float32(0.5)) - xp.minimum(b, -second)
        root = xp.sqrt(xp.abs(a * b) + np.float32(1e-30)) / (1 + xp.abs(larger))
        chosen = xp.where(a > b, root, xp.where(first <= second, 2 - b, b / (a - np.float32(3))))
        bound = xp.where(b >= a, np.float32(1), np.float32(0))
        turned = xp.where(bound < chosen, xp.sign(larger), xp.sign(b))
        moved = weights + np.float32(1e-2) * (chosen * turned)
        return moved, {"a": b, "b": np.float32(0.9) * b + np.float32(1e-38) * (first * second)}

    kinds = len(_directions(Arena(parameters_of(SHAPES, dtype))))
    for pair in itertools.combinations(range(kinds), 2):
        found = []
        for one in (CpuDevice(2), device):
            arena = Arena(parameters_of(SHAPES, dtype), one)
            fill(arena, scale=0.02)
            state = {name: one.put(_some(arena.size, i)) for i, name in enumerate("ab")}
            found.append((arena, state))
        for step in range(2):
            for arena, state in found:
                each = _directions(arena)
                arena.update(rule, [each[i] for i in pair], np.float32(0.99), state)
            (ours, state), (theirs, other) = found
            _check_same(ours, theirs, state, other, (pair, step))


def _some(size: int, seed: int) -> np.ndarray:
    """Returns numbers, some of which are zero, and some subnormal."""
    values = np.random.default_rng(seed).standard_normal(size, np.float32)
    values[seed::5] = -0.0
    values[2::5] *= np.float32(1e-39)
    return values


def _check_same(
    ours: Arena, theirs: Arena, state: State, other: State, what: object = None
) -> None:
    """Checks the bits of weights and state; says what the first difference is."""
    ours.settle()
    theirs.settle()
    pairs = {name: (array, theirs.views[name]) for name, array in ours.views.items()}
    pairs |= {name: (array, other[name]) for name, array in state.items()}
    for name, (array, there) in pairs.items():
        expected, found = array.reshape(-1), theirs.device.host(there).reshape(-1)
        bits = f"u{expected.itemsize}"
        (differ,) = np.nonzero(expected.view(bits) != found.view(bits))
        some = differ[:3]
        assert not len(differ), (what, name, len(differ), some, expected[some], found[some])
    assert contents(ours) == contents(theirs)


def _directions(arena: Arena) -> list[AnyDirection]:
    """Returns a direction of every kind."""
    offsets = list(arena.noise_offsets.values())
    ranges = ((offsets[1], offsets[3]), (offsets[4], arena.size))
    bits = np.random.default_rng(1).integers(256, size=arena.size // 8).astype(np.uint8)
    stored = StoredMask(1, arena.device.put(bits))
    matrices = tuple(
        Matrix(offset, p.shape[0], p.size // p.shape[0])
        for p, offset in zip(arena.parameters, offsets, strict=True)
        if len(p.shape) >= 2
    )
    return [
        Direction(5, 1 << 40),
        Direction(1 << 63, 2, 1, "rademacher", Support(ranges)),
        Direction(5, 3, 2, support=Support(ranges, RandomMask(3, 1 << 33, 0.3))),
        Direction(5, 4, support=Support(None, stored)),
        Lazy(Direction(5, 5), matrices, 3, 1),
    ]


def check_numbers_of_16_bits(device: Device, dtype: Dtype) -> None:
    """Checks that sweeps round every number that is one as the CPU's do.

    There are ties among what is added, subnormal sums, and sums beyond the largest number.
    """
    bits = np.arange(1 << 16, dtype=np.uint16).view(dtype.storage)
    numbers = bits[~np.isnan(to_float32(bits, dtype))]
    for size in (1e-41, 1e-6, 3e-3, 1.0, 2.0**-8, 1e30):
        arenas = [
            Arena([Parameter("w", numbers.shape, dtype.name, "x")], one)
            for one in (CpuDevice(2), device)
        ]
        for arena in arenas:
            arena.views["w"][...] = arena.device.put(numbers)
            for step in range(3):
                arena.add(Term(Direction(1, step), np.float32(size)))
        assert contents(arenas[0]) == contents(arenas[1]), size
