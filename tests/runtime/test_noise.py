"""Noise, version 1: the same bits as its definition, and the statistics that it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_oracle import block_draw, element, philox4x32, pool_value

from edgezo_runtime import noise
from edgezo_runtime.errors import InputError
from edgezo_runtime.philox import philox, split64

WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(0, 2**64 - 1)
SAMPLE = st.integers(0, 2**24 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: str, key: str, words: str) -> None:
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    expected = [int(word, 16) for word in words.split()]
    assert [int(word) for word in philox((c0, c1, c2, c3), (k0, k1))] == expected
    assert list(philox4x32((c0, c1, c2, c3), (k0, k1))) == expected


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_philox_equals_the_scalar_one(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == philox4x32(counter, key)


def test_philox_broadcasts() -> None:
    words = philox((np.arange(3)[:, None], 5, np.arange(4), 2**32 - 1), (1, 2))
    for i, j in np.ndindex(3, 4):
        expected = philox4x32((i, 5, j, 2**32 - 1), (1, 2))
        assert tuple(int(word[i, j]) for word in words) == expected
    assert {word.dtype for word in words} == {np.dtype(np.uint32)}


@given(SEED)
def test_split64(value: int) -> None:
    low, high = split64(value)
    assert low + (high << 32) == value and low < 2**32 and high < 2**32


@pytest.mark.parametrize("distribution", ["binomial", "rademacher"])
def test_pool_equals_its_definition(distribution: str) -> None:
    values = noise.pool(distribution)
    assert values.shape == (2**20,) and values.dtype == np.float32
    chosen = np.random.default_rng(0).integers(0, 2**20, 3000)
    for index in (0, 1, 2**20 - 1, *chosen.tolist()):
        assert float(values[index]) == pool_value(index, distribution)


def test_pool_cannot_be_changed() -> None:
    with pytest.raises(ValueError):
        noise.pool()[0] = 1


@settings(max_examples=40, deadline=None)
@given(SEED, SEED, SAMPLE, st.sampled_from(["binomial", "rademacher"]), st.data())
def test_direction_equals_its_definition(
    seed: int, step: int, sample: int, distribution: str, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, 3 * 2**15))
    values = noise.direction(size, seed, step, sample, distribution)
    assert values.shape == (size,) and values.dtype == np.float32
    chosen = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    edges = [i for i in (0, 2**15 - 1, 2**15, 2**16, size - 1) if i < size]
    for index in edges + chosen:
        assert float(values[index]) == element(index, seed, step, sample, distribution)


@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
@pytest.mark.parametrize("size", [0, 1, 63, 2**15, 2**15 + 1, 70_000])
def test_a_shorter_direction_is_a_prefix(distribution: str, size: int) -> None:
    longer = noise.direction(100_000, 9, 4, 2, distribution)
    assert np.array_equal(noise.direction(size, 9, 4, 2, distribution), longer[:size])


@given(SEED, SEED, SAMPLE)
def test_blocks_equal_their_definition(seed: int, step: int, sample: int) -> None:
    offsets, signs = noise.Direction(seed, step, sample).blocks(5)
    drawn = list(zip(offsets.tolist(), signs.tolist(), strict=True))
    assert drawn == [block_draw(seed, step, sample, block) for block in range(5)]


def test_a_window_runs_round_the_pool() -> None:
    """A block that starts near the pool's end goes on at its beginning."""
    for step in range(200):
        offset, sign = block_draw(0, step, 0, 0)
        if offset > 2**20 - 2**15:
            values = noise.direction(2**15, 0, step)
            turn = 2**20 - offset
            assert float(values[turn]) == sign * pool_value(0)
            assert float(values[turn - 1]) == sign * pool_value(2**20 - 1)
            return
    pytest.fail("no window reached the pool's end")


def test_pool_has_the_moments_of_its_distribution() -> None:
    """Binomial(128, 1/2): variance 1 and excess kurtosis -2/128; errors of 4.5 sigma allowed."""
    values = noise.pool().astype(np.float64)
    assert abs(values.mean()) < 4.5 / 2**10
    assert abs(values.var() - 1) < 4.5 * np.sqrt(2) / 2**10
    assert abs((values**3).mean()) < 4.5 * np.sqrt(15) / 2**10
    assert abs((values**4).mean() - (3 - 2 / 128)) < 4.5 * np.sqrt(96) / 2**10
    counts = values / np.float64(np.float32(0.17677669))
    assert np.allclose(counts, counts.round(), atol=1e-5)
    neighbours = np.corrcoef(values[1:], values[:-1])[0, 1]
    assert abs(neighbours) < 4.5 / 2**10


def test_rademacher_is_signs() -> None:
    values = noise.direction(2**17, 3, 1, distribution="rademacher")
    assert set(np.unique(values)) == {-1, 1}
    assert abs(values.mean()) < 4.5 / np.sqrt(values.size)


def test_gaussian_is_normal_and_independent_of_the_pool() -> None:
    values = noise.direction(2**17, 3, 1, distribution="gaussian").astype(np.float64)
    error = 4.5 / np.sqrt(values.size)
    assert abs(values.mean()) < error
    assert abs(values.var() - 1) < error * np.sqrt(2)
    assert abs((values**4).mean() - 3) < error * np.sqrt(96)
    assert np.unique(values).size > 0.9 * values.size
    blocks = values.reshape(4, -1)
    assert np.abs(np.corrcoef(blocks) - np.eye(4)).max() < 4.5 / np.sqrt(2**15)


@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
def test_directions_of_different_names_are_uncorrelated(distribution: str) -> None:
    names = [(s, t, k) for s in (0, 1, 2**40) for t in (1, 2, 2**32 + 1) for k in (0, 1)]
    rows = np.array([noise.direction(2**15, *name, distribution) for name in names])
    correlation = np.corrcoef(rows) - np.eye(len(names))
    assert np.abs(correlation).max() < 4.8 / np.sqrt(2**15)


def test_the_covariance_over_steps_is_the_identity() -> None:
    """Over 4,000 steps, elements of one block and of several have covariance delta_ij."""
    index = np.array([0, 1, 2, 64, 32_767, 32_768, 32_769, 65_535, 65_536, 98_303])
    steps, pool = 4000, noise.pool()
    rows = np.empty((steps, index.size))
    for step in range(steps):
        offsets, signs = noise.Direction(11, step).blocks(3)
        block = index >> 15
        rows[step] = signs[block] * pool[(offsets[block] + (index & 32_767)) % 2**20]
    covariance = rows.T @ rows / steps
    assert np.abs(covariance - np.eye(index.size)).max() < 4.5 * np.sqrt(2 / steps)
    assert np.abs(rows.mean(axis=0)).max() < 4.5 / np.sqrt(steps)


def test_the_sum_over_all_elements_behaves_like_that_of_normals() -> None:
    """The norm of z over 8 blocks, and z along a constant vector, over 300 steps."""
    size = 2**18
    rows = [noise.direction(size, 5, step) for step in range(300)]
    along = np.array([row.sum(dtype=np.float64) for row in rows]) / np.sqrt(size)
    norms = np.array([float(row @ row) / size for row in rows])
    assert abs(along.mean()) < 4.5 / np.sqrt(300)
    assert 0.6 < along.var() < 1.5
    assert np.abs(norms - 1).max() < 0.02


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, 0.5, float("nan"), "0", None])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(InputError, match="seed is"):
        noise.direction(10, seed, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed is"):
        noise.random_words(seed, noise.Purpose.BATCH_ORDER, 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("step", "sample"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**24), (1.5, 0)])
@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
def test_bad_steps_and_samples_are_refused(step: int, sample: int, distribution: str) -> None:
    with pytest.raises(InputError, match="whole number"):
        noise.direction(10, 0, step, sample, distribution)


@pytest.mark.parametrize("number", [np.int8, np.int32, np.int64, np.uint64])
def test_seeds_of_numpy_are_seeds(number: type[np.integer]) -> None:
    expected = noise.direction(100, 5, 7)
    assert np.array_equal(noise.direction(100, number(5), number(7)), expected)  # type: ignore[arg-type]


def test_unknown_distributions_are_refused() -> None:
    with pytest.raises(InputError, match="use one of binomial, rademacher, gaussian"):
        noise.direction(10, 0, 0, distribution="cauchy")
    with pytest.raises(InputError, match="no pool"):
        noise.pool("gaussian")


def test_purposes_never_share_words() -> None:
    drawn = {
        tuple(int(word[0]) for word in noise.random_words(1, purpose, 2, 1, sample))
        for purpose in noise.Purpose
        for sample in (0, 1, 2**24 - 1)
    }
    assert len(drawn) == 3 * len(noise.Purpose)
    words = noise.random_words(2**63 + 5, noise.Purpose.BATCH_ORDER, 2**40 + 3, 4, 9)
    for i in range(4):
        counter = (i, (1 << 24) | 9, 3, 2**8)
        expected = philox4x32(counter, (5, 2**31))
        assert tuple(int(word[i]) for word in words) == expected
