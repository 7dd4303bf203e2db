"""Every tuning method: its estimate, its exactness, its state, and what it does in trouble."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from method_cases import (
    EXACT,
    RATE,
    SHORT,
    SPECS,
    TINY,
    Flat,
    every_method,
    every_perturbing,
    make,
    short,
)
from method_references import REFERENCES, Step
from runtime_helpers import NoNumber, Quadratic, contents, fill, make_arena

from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import LORA, Parameter
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.journal import ACCEPTED, REVERSED, SKIPPED, Record
from edgezo_runtime.masks import StoredMask
from edgezo_runtime.methods import FORWARD_ONLY, Method
from edgezo_runtime.methods.options import settings_of
from edgezo_runtime.methods.probe import find_rate
from edgezo_runtime.power import power

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


@pytest.mark.parametrize("name", [n for n in FORWARD_ONLY if n not in {*EXACT, "helene"}])
def test_the_defaults_fit_weights_that_go_further(name: str) -> None:
    """In units in which its weights are ten times as large, LoRA takes the same steps."""
    ends = []
    for kind, unit in (("linear", 1), (LORA, 10)):
        arena = Arena([Parameter("layers.0.w", (12, 9), "float32", kind)], CpuDevice(1))
        fill(arena, scale=0.5)
        weights = arena.views["layers.0.w"]
        first = weights.copy()
        weights *= unit
        method = make(name, arena, 3, {})

        def loss(weights: np.ndarray = weights, unit: int = unit) -> float:
            return float(np.sum((weights.astype(np.float64) / unit - 1) ** 2))

        for number in range(1, 9):
            method.step(number, loss, np.float32(method.lr))
        arena.settle()
        ends.append(weights / unit - first)
    moved = np.abs(ends[0]).max()
    assert moved > 1e-5
    assert np.abs(ends[1] - ends[0]).max() < 0.02 * moved


def test_helenes_default_fits_weights_that_go_further() -> None:
    """Its slopes are divided by their own squares: ten times as far is the same rate."""
    arena = make_arena(TINY)
    lora = Arena([Parameter("layers.0.w", (12, 9), "float32", LORA)], CpuDevice(1))
    rates = [make("helene", one, 3, {}).lr for one in (arena, lora)]
    assert rates[0] == 1e-4 and rates[1] == pytest.approx(1e-4)


def test_the_least_stride_of_what_is_tuned_counts() -> None:
    specs = (("norm.weight", "norm"), ("norm.bias", "bias"), ("layers.0.weight", "linear"))
    parameters = [Parameter(name, (4,), "float32", kind) for name, kind in specs]
    for tuned, lr, eps in ((parameters[:2], 2.5e-4, 5e-3), (parameters, 1e-5, 1e-3)):
        method = make("mezo", Arena(tuned, CpuDevice(1)), 3, {})
        assert (method.lr, method.settings()["eps"]) == pytest.approx((lr, eps))
        assert make("mezo", method.arena, 3, {"eps": 2e-3}).settings()["eps"] == 2e-3


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


def test_equal_losses_move_nothing_in_fzoo() -> None:
    """Their mean may be rounded to another number, and a spread of 5e-17 would divide."""
    method = make("fzoo", make_arena(SPECS), 0, {"samples": 16})
    for loss in (0.3, 0.3125):
        assert method.compared(0.25, [loss] * 16) == [0.0] * 16  # type: ignore[attr-defined]
    assert np.isnan(method.compared(0.25, [np.nan] * 16)).all()  # type: ignore[attr-defined]


def test_masks_of_two_methods_are_two() -> None:
    masks = [StoredMask(1, np.zeros(8, np.uint8)) for _ in range(2)]
    assert masks[0] == StoredMask(1, masks[0].bits) != StoredMask(2, masks[0].bits)
    assert masks[0] != masks[1]


@pytest.mark.parametrize("name", ["mezo-momentum", "mezo-adam"])
def test_a_slope_that_was_clipped_stays_so_when_it_is_looked_back_on(name: str) -> None:
    """Steps with a slope beyond all bounds are those with the bound itself."""
    found = []
    for steep in (1000.0, 1.0):
        arena = make_arena(SPECS)
        method = make(name, arena, 0, {"median_clip": 1.0})
        for number in range(1, 16):
            slope = np.float32(steep if number == 11 else 1.0)
            method.replay(number, Record((slope,), RATE))
        found.append(contents(arena))
    assert found[0] == found[1]


def test_where_most_slopes_are_0_none_is_clipped() -> None:
    arena = make_arena(SPECS)
    method = make("mezo", arena, 0, {"median_clip": 1.0})
    for number in range(1, 12):
        method.replay(number, Record((np.float32(0),), RATE))
    before = contents(arena)
    method.replay(12, Record((np.float32(1),), RATE))
    assert contents(arena) != before


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
