"""The arena: where weights lie, and sweeps that give the same bits however they are run."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_oracle import OracleTerm, decode, encode, layout, swept
from runtime_helpers import STORAGE, Specs, contents, make_arena

from edgezo_runtime import dtypes, noise
from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.bundle import Parameter
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import InputError
from edgezo_runtime.masks import RandomMask
from edgezo_runtime.noise import EVERYWHERE, Direction, Support
from edgezo_runtime.sweep import ONE, Placed, State, update_with

MIXED: Specs = (
    ("a", (70, 9), "float32"),
    ("b", (5,), "float16"),
    ("c", (64, 2), "bfloat16"),
    ("d", (400, 100), "float32"),
    ("e", (33,), "float32"),
    ("f", (128,), "float16"),
    ("g", (3, 3, 3), "float16"),
)
SHAPE = st.lists(st.integers(1, 40), max_size=3).map(tuple)
SPECS = st.lists(st.tuples(SHAPE, st.sampled_from(sorted(STORAGE))), min_size=1, max_size=8).map(
    lambda pairs: tuple((f"p{i}", shape, dtype) for i, (shape, dtype) in enumerate(pairs))
)
COEFFICIENT = st.floats(-2, 2, width=32)
TERMS = st.lists(
    st.builds(
        OracleTerm,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**24 - 1),
        COEFFICIENT,
        st.sampled_from([1.0, 0.5, float(np.float32(0.999))]),
        st.sampled_from(["binomial", "rademacher"]),
    ),
    min_size=1,
    max_size=4,
)


def term(step: int, coefficient: float, decay: float = 1.0, distribution: str = "binomial") -> Term:
    direction = Direction(1, step, 0, distribution)
    return Term(direction, np.float32(coefficient), np.float32(decay))


def engine_term(one: OracleTerm) -> Term:
    direction = Direction(one.seed, one.step, one.sample, one.distribution)
    return Term(direction, np.float32(one.coefficient), np.float32(one.decay))


SEVERAL = (term(1, 0.25), term(2, -0.125, 0.99), term(1, -0.25), term(3, 1e-3, 0.5, "rademacher"))


@given(SPECS)
def test_layout(specs: Specs) -> None:
    arena = make_arena(specs)
    places = layout(specs)
    for (name, shape, dtype), (offset, first, size) in zip(specs, places, strict=True):
        view = arena.views[name]
        assert arena.noise_offsets[name] == offset and offset % 64 == 0
        assert view.shape == shape and view.dtype == STORAGE[dtype] and view.size == size
        assert view.flags.c_contiguous and view.flags.writeable
        buffer = next(b for d, b in arena.buffers.items() if d.name == dtype)
        assert view.__array_interface__["data"][0] == buffer[first:].__array_interface__["data"][0]
        assert np.shares_memory(view, buffer)
    for buffer in arena.buffers.values():
        assert buffer.__array_interface__["data"][0] % 64 == 0
        assert buffer.size % 64 == 0
    assert {d.name for d in arena.buffers} == {dtype for *_, dtype in specs}
    assert arena.nbytes == sum(len(b.tobytes()) for b in arena.buffers.values())


@given(SPECS)
def test_views_do_not_overlap(specs: Specs) -> None:
    arena = make_arena(specs)
    spans = sorted(
        (view.__array_interface__["data"][0], view.nbytes) for view in arena.views.values()
    )
    for (start, length), (following, _) in itertools.pairwise(spans):
        assert start + length <= following


@settings(max_examples=20, deadline=None)
@given(SPECS, TERMS, st.integers(1, 4))
def test_a_sweep_equals_its_definition(specs: Specs, terms: list[OracleTerm], threads: int) -> None:
    arena = make_arena(specs, threads)
    expected = {dtype.name: bytearray(b.tobytes()) for dtype, b in arena.buffers.items()}
    for (_, shape, dtype), (offset, first, size) in zip(specs, layout(specs), strict=True):
        item = np.dtype(STORAGE[dtype]).itemsize
        part = slice(first * item, (first + size) * item)
        weights = decode(bytes(expected[dtype][part]), dtype)
        result = swept(weights, offset, terms, dtype, decays=len(shape) >= 2)
        expected[dtype][part] = encode(result, dtype)
    arena.add(*map(engine_term, terms))
    assert {d.name: bytearray(b.tobytes()) for d, b in arena.buffers.items()} == expected


@settings(max_examples=25, deadline=None)
@given(SPECS, TERMS)
def test_fused_separate_and_threaded_sweeps_agree(specs: Specs, terms: list[OracleTerm]) -> None:
    one, several = make_arena(specs), make_arena(specs, threads=3)
    for each in terms:
        one.add(engine_term(each))
    several.defer(engine_term(terms[0]))
    several.add(*map(engine_term, terms[1:]))
    assert contents(one) == contents(several)


@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_thread_counts_give_the_same_bits(threads: int, distribution: str) -> None:
    specs = (*MIXED, ("h", (300, 333), "float32"), ("i", (70_001,), "bfloat16"))
    terms = [term(4, 0.01, 0.9, distribution), term(5, -0.02, 1.0, distribution)]
    alone, arena = make_arena(specs), make_arena(specs, threads)
    alone.add(terms[0])
    alone.add(terms[1])
    arena.add(*terms)
    assert contents(arena) == contents(alone)


@given(SPECS)
@settings(max_examples=20, deadline=None)
def test_padding_stays_zero(specs: Specs) -> None:
    arena = make_arena(specs)
    arena.add(*SEVERAL)
    for view in arena.views.values():
        view[...] = 0
    assert not any(contents(arena))


@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_each_dtype_gets_the_same_direction(dtype: str, distribution: str) -> None:
    """From zero weights, one addition of z itself: float16 and bfloat16 hold it rounded."""
    shapes = {"a": (7, 11), "b": (5,), "c": (200, 333), "d": (64,)}
    wide = make_arena(tuple((n, s, "float32") for n, s in shapes.items()), scale=0)
    narrow = make_arena(tuple((n, s, dtype) for n, s in shapes.items()), scale=0)
    wide.add(term(6, 1, 1, distribution))
    narrow.add(term(6, 1, 1, distribution))
    z = noise.direction(wide.size, 1, 6, 0, distribution)
    for name, shape in shapes.items():
        offset = wide.noise_offsets[name]
        expected = z[offset : offset + wide.views[name].size].reshape(shape)
        assert np.array_equal(wide.views[name], expected)
        found = narrow.views[name]
        if dtype == "bfloat16":
            found = (found.astype(np.uint32) << 16).view(np.float32)
        assert np.allclose(found, expected, rtol=2**-8, atol=1e-7)


def test_mixed_dtypes_do_not_shift_the_noise() -> None:
    mixed = make_arena(MIXED, scale=0)
    plain = make_arena(tuple((n, s, "float32") for n, s, _ in MIXED), scale=0)
    mixed.add(term(1, 1))
    plain.add(term(1, 1))
    for name, _, dtype in MIXED:
        assert mixed.noise_offsets[name] == plain.noise_offsets[name]
        if dtype == "float32":
            assert np.array_equal(mixed.views[name], plain.views[name])


def test_defer_waits_and_settle_adds() -> None:
    arena, reference = make_arena(MIXED), make_arena(MIXED)
    before = b"".join(buffer.tobytes() for buffer in arena.buffers.values())
    arena.defer(SEVERAL[0])
    arena.defer(*SEVERAL[1:])
    assert b"".join(buffer.tobytes() for buffer in arena.buffers.values()) == before
    arena.settle()
    reference.add(*SEVERAL)
    assert contents(arena) == contents(reference) != before
    arena.settle()
    assert contents(arena) == contents(reference)


def test_forget_drops_what_was_deferred() -> None:
    arena, reference = make_arena(MIXED), make_arena(MIXED)
    arena.defer(*SEVERAL)
    arena.forget()
    assert contents(arena) == contents(reference)


def test_only_matrices_decay() -> None:
    specs = (("m", (8, 9), "float32"), ("v", (72,), "float32"), ("s", (), "float32"))
    arena = make_arena((*specs, ("t", (2, 2, 2), "float16")))
    before = {name: view.copy() for name, view in arena.views.items()}
    arena.add(term(1, 0, 0.5))
    assert np.array_equal(arena.views["m"], before["m"] / 2)
    assert np.array_equal(arena.views["t"], before["t"] / 2)
    assert np.array_equal(arena.views["v"], before["v"])
    assert np.array_equal(arena.views["s"], before["s"])


@pytest.mark.parametrize("dtype", sorted(STORAGE))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 2])
def test_nan_and_infinity_are_found(dtype: str, bad: float, threads: int) -> None:
    specs = (("first", (40, 5), dtype), ("second", (77,), dtype), ("third", (2, 3), "float32"))
    arena = make_arena(specs, threads)
    assert arena.nonfinite() is None
    value = np.array(bad, np.float32)
    bits = value.view(np.uint32) >> 16 if dtype == "bfloat16" else value
    arena.views["second"][76] = bits
    assert arena.nonfinite() == "second"
    arena.views["first"][39, 4] = bits
    assert arena.nonfinite() == "first"


@pytest.mark.parametrize(
    ("dtype", "largest"), [("float32", 3e38), ("float16", 60_000), ("bfloat16", 0x7F7F)]
)
def test_large_numbers_are_finite(dtype: str, largest: float) -> None:
    arena = make_arena((("w", (100, 3), dtype),))
    arena.views["w"][...] = largest
    assert arena.nonfinite() is None


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65_504), ("bfloat16", 0x7F7F)])
def test_overflow_is_infinity_and_no_warning(dtype: str, largest: int) -> None:
    arena = make_arena((("w", (100, 3), dtype),))
    arena.views["w"][...] = largest
    arena.add(term(1, 3e38 if dtype == "bfloat16" else 1e4))
    assert arena.nonfinite() == "w"


def test_an_infinite_coefficient_is_no_warning() -> None:
    arena = make_arena(MIXED)
    arena.add(term(1, np.inf))
    assert arena.nonfinite() == "a"


def test_the_digest_names_the_layout() -> None:
    digests = {
        make_arena(specs).digest
        for specs in (
            MIXED,
            MIXED[:-1],
            MIXED[::-1],
            (("z", *MIXED[0][1:]), *MIXED[1:]),
            (("a", (9, 70), "float32"), *MIXED[1:]),
            (("a", (70, 9), "float16"), *MIXED[1:]),
        )
    }
    assert len(digests) == 6
    assert make_arena(MIXED, threads=3).digest == make_arena(MIXED).digest


def test_an_empty_tensor_takes_no_room() -> None:
    arena = make_arena((("none", (0, 4), "float32"), ("w", (3,), "float32")))
    arena.add(*SEVERAL)
    assert arena.noise_offsets == {"none": 0, "w": 0} and arena.nonfinite() is None


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="no parameter"):
        Arena([])
    with pytest.raises(InputError, match="only float weights"):
        Arena([Parameter("w", (3,), "int8", "linear")])
    with pytest.raises(InputError, match="threads"):
        CpuDevice(0)


def test_updates_on_every_path_agree() -> None:
    """Piece by piece on threads, and with whole arrays as on a card; with ranges and masks."""
    specs = (*MIXED, ("h", (300, 333), "float32"), ("i", (70_001,), "bfloat16"))
    arenas = [make_arena(specs), make_arena(specs, threads=3), make_arena(specs)]
    offsets = list(arenas[0].noise_offsets.values())
    ranges = ((offsets[1], offsets[3]), (offsets[4], arenas[0].size))
    for support in (EVERYWHERE, Support(ranges), Support(ranges, RandomMask(3, 1, 0.3))):
        for distribution in noise.DISTRIBUTIONS:
            directions = (
                Direction(5, 1, 0, distribution, support),
                Direction(5, 2, 1, distribution),
            )
            totals = [np.zeros(arena.size, np.float32) for arena in arenas]
            for arena, total, whole in zip(arenas, totals, (False, False, True), strict=True):

                def rule(xp: Any, weights: Any, state: State, first: Any, second: Any) -> Any:
                    total = state["total"] + first * second
                    moved = weights + np.float32(0.1) * first / xp.sqrt(total * total + ONE)
                    return moved, {"total": total}

                decay, state = np.float32(0.9), {"total": total}
                if whole:
                    placed = [
                        Placed(p, arena.views[p.name].reshape(-1), arena.noise_offsets[p.name])
                        for p in arena.parameters
                    ]
                    update_with(np, placed, rule, directions, decay, state, 40_000)
                else:
                    arena.update(rule, directions, decay, state)
            assert contents(arenas[0]) == contents(arenas[1]) == contents(arenas[2])
            assert np.array_equal(totals[0], totals[1]) and np.array_equal(totals[0], totals[2])


@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
def test_a_support_is_where_the_direction_is_not_zero(distribution: str) -> None:
    specs = (*MIXED, ("h", (300, 333), "float32"))
    for mask in (None, RandomMask(3, 1, 0.25)):
        arena, expected = make_arena(specs, threads=2), make_arena(specs)
        places = arena.noise_offsets
        ranges = ((places["b"], places["d"]), (places["h"], arena.size))
        direction = Direction(5, 1, 0, distribution, Support(ranges, mask))
        arena.add(term(9, 0.1), Term(direction, np.float32(0.5), np.float32(0.9)), term(8, 0.1))
        expected.add(term(9, 0.1))
        whole = Direction(5, 1, 0, distribution, Support(None, mask)).draw(np, arena.size)
        for name, _, dtype in specs:
            if name in "bch":
                one = expected.views[name]
                z = whole(places[name], places[name] + one.size).reshape(one.shape)
                named = dtypes.named(dtype)
                moved = dtypes.to_float32(one, named) + np.float32(0.5) * z
                moved = moved * np.float32(0.9) if one.ndim >= 2 else moved
                one[...] = dtypes.from_float32(moved, named)
        expected.add(term(8, 0.1))
        assert contents(arena) == contents(expected)
        if mask:
            z = whole(places["h"], arena.size)
            assert (z != 0).mean() == pytest.approx(0.25, abs=0.05)
