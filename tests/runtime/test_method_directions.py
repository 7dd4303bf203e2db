"""Where methods go: which weights move, and directions that are unbiased, masked or low-rank."""

from __future__ import annotations

import numpy as np
import pytest
from method_cases import RATE, SPECS, Flat, every_method, make, short
from runtime_helpers import make_arena

from edgezo_runtime import noise
from edgezo_runtime.lowrank import Subspace, orthonormal
from edgezo_runtime.methods import Method


@every_method
def test_directions_are_unbiased(name: str) -> None:
    """The mean of z (z . a) is a, times the share of steps in which a weight moves."""
    arena = make_arena(SPECS)
    flat = Flat(arena)
    method = short(name, arena)
    method.prepare(1)
    a = flat.target
    steps = 300
    zs = np.array([flat.dense(method.direction(number)) for number in range(1, steps + 1)])
    moved = (zs != 0).mean(0)
    share = moved / 1 if name in ("block", "lezo", "sparse-random") else np.sign(moved)
    mean = (zs * (zs @ a)[:, None]).mean(0)
    assert float(mean @ a) / float((share * a) @ a) == pytest.approx(1, abs=0.5)
    wrong = np.linalg.norm(mean - share * a) / np.linalg.norm(share * a)
    assert wrong < 2.5 * (flat.inside.sum() / steps) ** 0.5
    mean_square = (zs**2).sum() / (zs != 0).sum()
    assert mean_square == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("seed", [0, 7])
def test_supports(seed: int) -> None:
    arena = make_arena(SPECS)
    flat = Flat(arena)
    names = [p.name for p in arena.parameters]

    def moving(method: Method, number: int) -> set[str]:
        z = flat.dense(method.direction(number))
        offsets = arena.noise_offsets
        return {n for n in names if z[offsets[n] : offsets[n] + arena.views[n].size].any()}

    def layer(i: int) -> set[str]:
        return {n for n in names if n.startswith(f"layers.{i}.")}

    lezo = make("lezo", arena, seed, {"dropped": 0.5})
    drawn = [moving(lezo, number) - {"embed.weight", "norm.weight"} for number in range(1, 40)]
    assert all(len(one) == 6 and any(layer(i) < one for i in range(4)) for one in drawn)
    assert set().union(*drawn) == set().union(*map(layer, range(4)))
    up = make("block", arena, seed, {"interval": 2, "layers": 3})
    turns = [{"embed.weight"}, layer(0) | layer(1) | layer(2), layer(3), {"norm.weight"}]
    assert [moving(up, number) for number in range(1, 11)] == [
        turn for turn in (*turns, turns[0]) for _ in range(2)
    ]
    down = make("block", arena, seed, {"order": "down", "layers": 3})
    assert [moving(down, number) for number in range(1, 5)] == turns[::-1]
    mixed = make("block", arena, seed, {"order": "random"})
    cycle = [moving(mixed, number) for number in range(1, 13)]
    assert cycle[:6] == cycle[6:] and sorted(map(sorted, cycle[:6])) == sorted(
        map(sorted, [{"embed.weight"}, *map(layer, range(4)), {"norm.weight"}])
    )


def test_what_does_not_move_keeps_its_bits() -> None:
    for name in ("block", "lezo", "sparse-random", "sparse-magnitude", "sparse-mezo"):
        arena = make_arena(SPECS)
        flat = Flat(arena)
        method = make(name, arena, 1, {"weight_decay": 0.0})
        before = flat.weights()
        method.step(1, flat, RATE)
        changed = flat.weights() != before
        assert np.array_equal(changed, flat.dense(method.direction(1)) != 0), name


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.9])
def test_masks_by_magnitude(sparsity: float) -> None:
    arena = make_arena(SPECS)
    flat = Flat(arena)
    for name, above in (("sparse-magnitude", True), ("sparse-mezo", False)):
        method = make(name, arena, 1, {"sparsity": sparsity})
        method.prepare(1)
        mask = method.direction(1).support.mask
        assert mask is not None
        bits = mask.draw(np, arena.size)(0, arena.size)
        assert not bits[~flat.inside].any()
        for parameter in arena.parameters:
            offset = arena.noise_offsets[parameter.name]
            found = bits[offset : offset + parameter.size]
            sizes = np.abs(arena.views[parameter.name].reshape(-1))
            kept, left = sizes[found], sizes[~found]
            if above:
                assert not len(left) or kept.min() > left.max()
            else:
                assert not len(left) or kept.max() < left.min()
            assert abs(len(kept) - (1 - sparsity) * parameter.size) < 1 + len(set(sizes)) / 50


def test_sparse_mezo_looks_at_the_weights_each_step() -> None:
    """Its thresholds stay, its mask follows the weights."""
    arena = make_arena(SPECS)
    flat = Flat(arena)
    method = make("sparse-mezo", arena, 1, {})
    method.step(1, flat, RATE)
    arena.settle()
    limits = method.state["thresholds"].copy()
    arena.views["embed.weight"][...] = 100
    method.step(2, flat, np.float32(0))
    z = flat.dense(method.direction(2))
    assert not z[: arena.views["embed.weight"].size].any() and z.any()
    assert np.array_equal(method.state["thresholds"], limits)


def test_low_rank_directions() -> None:
    arena = make_arena((("a.weight", (40, 50), "float32"), ("b", (70,), "float32")))
    lozo = make("lozo", arena, 2, {"rank": 3, "interval": 4})
    subzero = make("subzero", arena, 2, {"rank": 5, "interval": 4})

    def matrix(method: Method, number: int) -> np.ndarray:
        draw = method.direction(number).draw(np, arena.size)
        whole = draw(0, 2000)
        parts = [draw(start, min(start + 333, 2000)) for start in range(0, 2000, 333)]
        assert np.array_equal(whole, np.concatenate(parts))  # however it is cut
        return whole.reshape(40, 50).astype(np.float64)

    for method, rank in ((lozo, 3), (subzero, 5)):
        zs = [matrix(method, number) for number in range(1, 6)]
        assert [np.linalg.matrix_rank(z, tol=1e-3) for z in zs] == [rank] * 5
        rows = [np.linalg.svd(z)[2][:rank] for z in zs]
        within = [np.linalg.norm(row @ rows[0].T, 2) for row in rows]
        aligned = [np.linalg.svd(row @ rows[0].T)[1].min() for row in rows]
        assert min(aligned[:4]) > 1 - 1e-4 and aligned[4] < 0.5 and within[4] < 1 - 1e-4
    direction = subzero.direction(1)
    assert isinstance(direction, Subspace)
    u, v = direction.bases.left.reshape(40, 5), direction.bases.right.reshape(5, 50)
    assert np.allclose(u.T @ u, np.eye(5), atol=1e-6) and np.allclose(v @ v.T, np.eye(5), atol=1e-6)
    plain = lozo.direction(1).draw(np, arena.size)(2048, 2048 + 70)
    assert np.array_equal(plain, noise.direction(arena.size, 2, 1)[2048 : 2048 + 70])


def test_orthonormal_columns_that_depend_on_others_are_zero() -> None:
    drawn = noise.pool()[:40].reshape(20, 2)
    basis = orthonormal(np.concatenate([drawn, drawn[:, :1]], 1))
    assert np.allclose(basis.T @ basis, np.diag([1, 1, 0]), atol=1e-6)
