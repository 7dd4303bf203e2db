"""Every tuning method: its estimate, its exactness, its state, and what it does in trouble."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from method_references import REFERENCES, Step
from runtime_helpers import NoNumber, Quadratic, Specs, contents, fill, make_arena, write_bundle

from edgezo_runtime import methods, noise, snapshot
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.journal import (
    ACCEPTED,
    NAME,
    REVERSED,
    SKIPPED,
    JournalWriter,
    Record,
    read,
)
from edgezo_runtime.lowrank import Subspace, orthonormal
from edgezo_runtime.methods import FORWARD_ONLY, Method
from edgezo_runtime.methods.options import settings_of
from edgezo_runtime.methods.probe import find_rate
from edgezo_runtime.noise import BLOCK_SIZE, AnyDirection
from edgezo_runtime.power import power
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights

SPECS: Specs = (
    ("embed.weight", (40, 12), "float32"),
    *(
        (f"layers.{i}.{name}", shape, "float32")
        for i in range(4)
        for name, shape in (("up.weight", (24, 12)), ("up.bias", (24,)), ("down.weight", (12, 24)))
    ),
    ("norm.weight", (12,), "float32"),
)
TINY: Specs = (
    ("layers.0.weight", (6, 5), "float32"),
    ("layers.1.weight", (5, 4), "float32"),
    ("layers.1.bias", (5,), "float32"),
)
# Those that shorten runs: periods that end within a few steps.
SHORT: dict[str, dict[str, Any]] = {
    "block": {"interval": 2, "order": "random"},
    "sparse-random": {"interval": 3},
    "sparse-magnitude": {"interval": 4},
    "lozo": {"interval": 3},
    "subzero": {"interval": 3, "rank": 4},
    "mezo-svrg": {"interval": 3},
    "mezo": {"median_clip": 1.0},
    "mezo-momentum": {"window": 4},
    "mezo-adam": {"window": 4},
    "zo-adamu": {"warmup": 2, "anneal": 4},
    "helene": {"anneal": 5, "interval": 2},
    "hizoo": {"alpha": 1e-5},
}
# The bytes a weight that a method keeps, of a square matrix of 1024 x 1024.
STATE = {
    "zo-sgd-mmt": 4,
    "zo-adam": 8,
    "zo-adamu": 4,
    "mezo-svrg": 4,
    "hizoo": 4,
    "helene": 8,
    "sparse-magnitude": 1 / 8,
    "sparse-mezo": 1 / 8,
    "subzero": 4 * 8 * 2 / 1024,
}
RATE = np.float32(1e-4)

every_method = pytest.mark.parametrize("name", FORWARD_ONLY)
EXACT = {"forward-grad"}  # whose slopes are not taken from losses
every_perturbing = pytest.mark.parametrize("name", [n for n in FORWARD_ONLY if n not in EXACT])


def make(name: str, arena: Arena, seed: int, settings: Mapping[str, Any]) -> Method:
    made = methods.make(name, arena, seed, settings)
    assert isinstance(made, Method)
    return made


def short(name: str, arena: Arena, seed: int = 3, **more: Any) -> Method:
    chosen = SHORT.get(name, {}) | more
    if name in EXACT:
        chosen.pop("eps", None)
    return make(name, arena, seed, chosen)


def taken(method: Method, loss: Callable[[], float], steps: int, broken: int = 5) -> list[Record]:
    """Takes steps, of which each `broken`-th sees no finite loss."""
    records = []
    for number in range(1, steps + 1):
        function = loss if number % broken else NoNumber()
        records.append(method.step(number, function, RATE).record)
    method.arena.settle()
    return records


def test_the_names() -> None:
    assert list(FORWARD_ONLY) == [method.name for method in FORWARD_ONLY.values()]
    assert FORWARD_ONLY.keys() >= STATE.keys() | SHORT.keys() and len(FORWARD_ONLY) == 25


@every_method
def test_replay_gives_the_same_bits(name: str) -> None:
    """On two threads, with skipped steps; the state too."""
    arena, copy = make_arena(SPECS), make_arena(SPECS, threads=2)
    method = short(name, arena, weight_decay=0.1)
    records = taken(method, Quadratic(arena), 14)
    assert {len(record.scalars) for record in records} == {method.scalars}
    again = make(name, copy, 3, method.settings())
    for number, record in enumerate(records, start=1):
        again.replay(number, record)
    assert contents(arena) == contents(copy) != contents(make_arena(SPECS))
    assert method.state.keys() == again.state.keys()
    assert all(np.array_equal(method.state[k], again.state[k]) for k in method.state)


@every_method
def test_a_skipped_step_restores_weights_and_state(name: str) -> None:
    arena = make_arena(SPECS)
    method = short(name, arena)
    method.step(1, Quadratic(arena), RATE)
    arena.settle()
    before = {n: view.copy() for n, view in arena.views.items()}
    state = {n: array.copy() for n, array in method.state.items()}
    record = method.step(2, NoNumber(), RATE).record
    arena.settle()
    assert record == Record((np.float32(0),) * method.scalars, RATE, SKIPPED)
    for n, view in arena.views.items():
        assert np.abs(view - before[n]).max() < 2e-6
    for n in state.keys() - {"mask"}:  # which is looked for anew before the losses are
        assert np.abs(method.state[n] - state[n]).max() < 2e-6  # an anchor went there and back


@every_perturbing
def test_losses_are_asked_for_as_often_as_is_said(name: str) -> None:
    arena = make_arena(SPECS)
    loss, calls = Quadratic(arena), 0

    def counting() -> float:
        nonlocal calls
        calls += 1
        return loss()

    method = short(name, arena)
    for number in (1, 2):
        calls = 0
        method.step(number, counting, RATE)
    assert calls == method.forwards


@every_method
def test_the_state_is_what_is_said(name: str) -> None:
    arena = make_arena((("layers.0.w", (1024, 1024), "float32"),), scale=0)
    method = make(name, arena, 0, {})
    assert method.state_bytes / 2**20 == pytest.approx(STATE.get(name, 0), rel=1e-3)
    held = sum(array.nbytes for array in method.state.values())
    assert held == (0 if name == "subzero" else method.state_bytes)


@every_method
def test_settings_round_trip(name: str) -> None:
    method = short(name, make_arena(SPECS))
    chosen = method.settings()
    assert chosen.keys() == settings_of(FORWARD_ONLY[name]).keys() >= {"weight_decay"}
    assert ("eps" in chosen) == (name not in EXACT)
    as_text = {key: str(value) for key, value in json.loads(json.dumps(chosen)).items()}
    assert make(name, make_arena(SPECS), 3, as_text).settings() == chosen
    with pytest.raises(InputError, match=f"method {name} has no setting 'colour'; it has .*decay"):
        make(name, make_arena(SPECS), 0, {"colour": "red"})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mezo", {"eps": 0}, "eps is 0; use a number"),
        ("mezo", {"eps": float("nan")}, "eps is nan"),
        ("mezo", {"eps": 1e-46}, "eps is"),  # 0 as a float32
        ("mezo", {"eps": 3e38}, "eps is"),  # twice it is no float32
        ("mezo", {"eps": "small"}, "eps is 'small'"),
        ("mezo", {"eps": True}, "eps is True"),
        ("mezo", {"weight_decay": -1}, "weight decay is -1; use a number from 0"),
        ("mezo", {"distribution": "cauchy"}, "distribution is 'cauchy'; use one of binomial"),
        ("es", {"samples": 1}, "samples is 1; use a whole number from 2 to 256"),
        ("es", {"samples": 2.5}, "samples is 2.5; use"),
        ("zo-sgd-mmt", {"beta": 1}, "beta is 1; use a number from 0 and below 1"),
        ("lozo", {"rank": 0}, "rank is 0; use"),
        ("block", {"order": "sideways"}, "use one of up, down, random"),
    ],
)
def test_bad_settings_are_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(name, make_arena(SPECS), 0, change)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="method 'adamx' is unknown; use one of mezo, es"):
        make("adamx", make_arena(SPECS), 0, {})


class Flat:
    """An arena's index space as one vector, and a quadratic loss over it with some curvature."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        generator = np.random.default_rng(5)
        self.inside = np.zeros(arena.size, bool)
        self.decays = np.zeros(arena.size, bool)
        for parameter in arena.parameters:
            offset = arena.noise_offsets[parameter.name]
            self.inside[offset : offset + parameter.size] = True
            self.decays[offset : offset + parameter.size] = len(parameter.shape) >= 2
        self.target = generator.standard_normal(arena.size) * self.inside
        self.curvature = generator.uniform(0.5, 2, arena.size)

    def weights(self) -> np.ndarray:
        self.arena.settle()
        flat = np.zeros(self.arena.size)
        for name, view in self.arena.views.items():
            offset = self.arena.noise_offsets[name]
            flat[offset : offset + view.size] = view.reshape(-1)
        return flat

    def at(self, weights: np.ndarray) -> float:
        return float((self.curvature * (weights - self.target) ** 2).sum()) / 2

    def __call__(self) -> float:
        return self.at(self.weights())

    def derivative(self, direction: AnyDirection) -> tuple[float, float]:
        weights = self.weights()
        gradient = self.curvature * (weights - self.target)
        return self.at(weights), float(gradient @ self.dense(direction))

    def dense(self, direction: Any) -> np.ndarray:
        """The elements of a direction, zero outside of its support and of the parameters."""
        assert self.arena.size <= BLOCK_SIZE
        z = direction.draw(np, self.arena.size)(0, self.arena.size).astype(np.float64)
        return np.where(self.within(direction), z, 0)

    def within(self, direction: Any) -> np.ndarray:
        """Which weights lie in the ranges of a direction."""
        found = np.zeros_like(self.inside)
        for start, stop in direction.support.ranges or [(0, self.arena.size)]:
            found[start:stop] = self.inside[start:stop]
        return found


@every_method
def test_steps_follow_the_formula(name: str) -> None:
    """Against the method written down again in float64; see `method_references`."""
    arena = make_arena(SPECS)
    flat = Flat(arena)
    decay = 0.5 if name != "mezo-svrg" else 0.0
    method = short(name, arena, eps=1e-2, weight_decay=decay)
    lr, state = np.float32(5e-4), {}
    for number in range(1, 13):
        before = flat.weights()
        record = method.step(number, flat, lr).record
        after = flat.weights()

        def known(*values: float, record: Record = record) -> Any:
            found = [float(scalar) for scalar in record.scalars]
            assert found == pytest.approx(values, rel=2e-3, abs=0.05)
            return found if len(found) > 1 else found[0]

        def z(number: int, sample: int = 0) -> np.ndarray:
            return flat.dense(method.direction(number, sample))

        step = Step(before, flat.at, z, known, float(lr), state, method, number, record.flags)
        expected = REFERENCES[name](step)
        if record.flags or name != "zo-sgd-cons":
            moved = flat.within(method.direction(number))
            expected = expected * np.where(flat.decays & moved, 1 - float(lr) * decay, 1)
        length = np.abs(expected - before).max() + 1e-4
        assert np.abs(after - expected).max() < 1e-3 * length + 3e-6


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
    ((u, v),) = direction.bases
    assert np.allclose(u.T @ u, np.eye(5), atol=1e-6) and np.allclose(v @ v.T, np.eye(5), atol=1e-6)
    plain = lozo.direction(1).draw(np, arena.size)(2048, 2048 + 70)
    assert np.array_equal(plain, noise.direction(arena.size, 2, 1)[2048 : 2048 + 70])


def test_orthonormal_columns_that_depend_on_others_are_zero() -> None:
    drawn = noise.pool()[:40].reshape(20, 2)
    basis = orthonormal(np.concatenate([drawn, drawn[:, :1]], 1))
    assert np.allclose(basis.T @ basis, np.diag([1, 1, 0]), atol=1e-6)


def test_a_forward_gradient_is_tuned_at_mezos_rate() -> None:
    found = []
    for name in ("forward-grad", "mezo"):
        arena = make_arena(TINY)
        found.append(find_rate(make(name, arena, 3, {}), [Quadratic(arena)] * 4))
    assert found[0] == found[1] and found[0].lr > 0


def test_a_forward_gradient_needs_a_loss_that_has_one() -> None:
    method = make("forward-grad", make_arena(TINY), 3, {})
    with pytest.raises(EdgezoError, match="needs true slopes: give it a BatchLoss"):
        method.step(1, lambda: 1.0, RATE)


@every_perturbing
def test_it_minimises_at_the_rate_that_is_found(name: str) -> None:
    arena = make_arena(TINY)
    loss = Quadratic(arena)
    chosen: dict[str, Any] = {"eps": 0.05}  # as 1e-3 is to a language model's weights
    if name in ("sparse-magnitude", "sparse-mezo"):
        chosen["sparsity"] = 0  # the others would stay where they are
    found = find_rate(make(name, arena, 3, chosen), [loss] * 4)
    fill(arena)
    method = make(name, arena, 3, chosen)
    first = loss()
    for number in range(1, 480 // method.forwards):
        method.step(number, loss, np.float32(found.lr))
    arena.settle()
    assert loss() < 0.85 * first


def bundle_with(folder: Path) -> Path:
    arena = make_arena(SPECS)
    return write_bundle(folder, {name: view.copy() for name, view in arena.views.items()})


@every_method
def test_resume_from_a_snapshot_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    """The next steps too: they take state and the last records from before it."""
    opened = open_bundle(bundle_with(tmp_path / "b.edgezo"))
    weights = Weights(opened)
    weights.load()
    header = describe(weights, short(name, weights.arena))
    (tmp_path / "run").mkdir()
    tuning = Tuning(weights, JournalWriter(tmp_path / "run" / NAME, header), tmp_path / "run")
    loss = Quadratic(weights.arena)
    for number in range(1, 13):
        tuning.step(loss if number != 4 else NoNumber(), RATE)
        if number == 7:
            snapshot.write(tmp_path / "run", number, weights, tuning.method.state)
    journal = read(tmp_path / "run" / NAME)
    other = Weights(opened)
    resumed = Tuning(other, MemoryJournal(journal.header), tmp_path / "run")
    resumed.journal.records.extend(journal.records[:9])
    replayed: list[int] = []
    resumed.catch_up(progress=replayed.append)
    assert replayed == [8, 9]
    for _ in range(3):
        resumed.step(Quadratic(other.arena), RATE)
    assert resumed.journal.records == journal.records
    assert contents(other.arena) == contents(weights.arena)


def test_a_snapshot_with_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    opened = open_bundle(bundle_with(tmp_path / "b.edgezo"))
    weights = Weights(opened)
    weights.load()
    tuning = Tuning(
        weights, MemoryJournal(describe(weights, make("zo-adam", weights.arena, 1, {}))), tmp_path
    )
    for number in range(1, 5):
        tuning.step(Quadratic(weights.arena), RATE)
        if number > 2:
            snapshot.write(tmp_path, number, weights, tuning.method.state)
    expected = contents(weights.arena)
    for damage, steps in ((0, []), (1, [4]), (2, [1, 2, 3, 4])):
        for path in sorted((tmp_path / "snapshots").glob("state-*"), reverse=True)[:damage]:
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ damage]))
        replayed: list[int] = []
        tuning.catch_up(progress=replayed.append)
        assert replayed == steps and contents(weights.arena) == expected
    assert all((array != 0).any() for array in tuning.method.state.values())


GOLDEN = {
    ("mezo", 0.1): "c08d32b0df9d039c51e18a4bf0ef3a346f1972da3fc8b096134bdd79ec388408",
    ("es", 5): "292cd19271beba045b64033f361f4c7e82b103ca2b97821b6bf4c49d41970a18",
    ("qzo", 50): "1d8358a0c42273977fc7970c36a6374b381248fcde85824cd44dce69718bad36",
    ("mezo", "signs"): "b6ff2af8f8ffab6c89296c2e3422a5203f1bb0cf599560ae43a699476f78aed6",
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_journals_of_earlier_versions_still_hold(case: tuple[str, Any]) -> None:
    """Records and weights of 40 steps, as the first version of these methods made them."""
    settings: dict[Any, dict[str, Any]] = {
        0.1: {"weight_decay": 0.1},
        5: {"samples": 5, "weight_decay": 0.1},
        50: {"clip": 50.0},
        "signs": {"distribution": "rademacher", "eps": 1e-2},
    }
    arena = make_arena(
        (("m", (5, 7), "float32"), ("v", (9,), "float32"), ("n", (300, 240), "float32"))
    )
    loss = Quadratic(arena)
    method = make(case[0], arena, 2**63 + 5, settings[case[1]])
    digest = hashlib.sha256()
    for number in range(1, 41):
        function = loss if number % 9 else lambda: float("inf")
        record = method.step(number, function, np.float32(1e-5)).record
        digest.update(np.array([*record.scalars, record.lr], np.float32).tobytes())
        digest.update(bytes([record.flags]))
    digest.update(contents(arena))
    assert digest.hexdigest() == GOLDEN[case]


def test_a_conservative_step_takes_the_best_place() -> None:
    for down, up, flags in ((0.5, 2.0, ACCEPTED), (2.0, 0.5, REVERSED), (2.0, 2.0, 0)):
        for bad in (down, float("nan")):
            arena = make_arena(SPECS)
            before = Flat(arena).weights()
            losses = iter([1.0, 1.1, 0.9, bad if down > 1 else down, up])
            record = make("zo-sgd-cons", arena, 1, {}).step(1, lambda: next(losses), RATE).record  # noqa: B023
            assert record.flags == flags
            moved = np.abs(Flat(arena).weights() - before).max()
            assert (moved > 1e-3) == (flags != 0)


@pytest.mark.parametrize("name", ["es", "fzoo"])
def test_what_all_samples_share_moves_nothing(name: str) -> None:
    """The baseline takes out a constant, however large."""
    arena = make_arena(SPECS)
    before = Flat(arena).weights()
    record = make(name, arena, 1, {}).step(1, lambda: 1e6, RATE).record
    assert record.scalars == (0,) * 8 and not record.skipped
    assert np.abs(Flat(arena).weights() - before).max() < 1e-6


def test_a_rate_needs_a_loss_that_changes() -> None:
    for loss in (lambda: 1.0, lambda: float("nan")):
        with pytest.raises(EdgezoError, match="no learning rate was found"):
            find_rate(make("mezo", make_arena(SPECS), 1, {}), [loss] * 2)


def test_powers() -> None:
    assert [power(0.5, n) for n in range(4)] == [1, 0.5, 0.25, 0.125]
    assert power(0.999, 20_000) == pytest.approx(0.999**20_000, rel=1e-11)
