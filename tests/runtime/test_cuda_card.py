"""The CUDA device on a card: the CPU's bits, and its outputs within rounding."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifier_bundle import check_recorded_runs, rows_for_classifier, write_classifier
from ended_bundle import check_ended, write_ended
from late_steps import (
    CASES,
    OTHERS,
    WAITED,
    begin,
    check_descents,
    check_float16,
    check_losses,
    check_nothing_is_added,
    check_numbers,
    check_steps,
    check_waits,
)
from layered_bundle import rows_for_layered, write_layered
from runtime_helpers import contents, fill
from steps_on_devices import DIFFERENTIATING, check_agreement, check_resume
from test_vectors import ARENAS, after, arena_of, check, terms_of
from tied_bundle import rows_for_tied, write_tied

from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.batch import ArrayBatch
from edgezo_runtime.bundle import Parameter, open_bundle
from edgezo_runtime.devices import CpuDevice, Device, open_device
from edgezo_runtime.devices.cuda import CudaDevice
from edgezo_runtime.devices.cuda_kernels import THREADS, kernel
from edgezo_runtime.devices.cuda_vocabulary import Logprobs
from edgezo_runtime.dtypes import FLOAT16
from edgezo_runtime.first_order import rules
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.first_order.state import State
from edgezo_runtime.methods import Method, make
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import BLOCK_SIZE, Direction
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights

pytestmark = pytest.mark.cuda
SPIN = r"""
extern "C" __global__ void spin(long long cycles) {
    const long long end = clock64() + cycles;
    while (clock64() < end);
}
"""
SIZES = ((70, 9), (5,), (400, 1000), (3, BLOCK_SIZE), (33,), (257, 129))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sweeps_have_the_cpu_s_bits(card: Device, dtype: str) -> None:
    rng = np.random.default_rng(0)
    parameters = [Parameter(f"p{i}", shape, dtype, "linear") for i, shape in enumerate(SIZES)]
    arenas = [Arena(parameters, device) for device in (CpuDevice(2), card)]
    for arena in arenas:
        fill(arena, scale=0.02)
    for number in range(8):
        terms = [
            Term(
                Direction(int(rng.integers(1 << 62)), number, i, ("binomial", "rademacher")[i % 2]),
                np.float32(rng.normal() * 10.0 ** -rng.integers(0, 7)),
                np.float32(1 if number % 3 else 0.999),
            )
            for i in range(1 + number % 4)
        ]
        for arena in arenas:
            arena.add(*terms)
        assert contents(arenas[0]) == contents(arenas[1])


@ARENAS
def test_golden_vectors(card: Device, case: dict[str, Any]) -> None:
    arena = arena_of(case, card)
    for term in terms_of(case):
        arena.add(term)
    check(case, after(arena))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("cuda"))


def batch_of(seed: int) -> ArrayBatch:
    return rows_for_classifier(5, seed)


def test_each_weight_is_seen(card: Device, bundle: Path) -> None:
    model = load(bundle, device="cuda")
    batch = batch_of(0)
    before = model.loss(batch)
    for name, view in model.arena.views.items():
        kept = card.host(view)
        view += 0.125
        moved = model.loss(batch)
        fresh = Weights(open_bundle(bundle), "full", CpuDevice(1))
        fresh.load()
        fresh.arena.views[name] += np.float32(0.125)
        assert moved != before
        assert moved == pytest.approx(Model(fresh).loss(batch), abs=1e-5)
        view.set(kept)
    assert model.loss(batch) == before


def test_losses_agree_with_the_cpu(card: Device, bundle: Path) -> None:
    on_card, on_cpu = (load(bundle, device=device) for device in ("cuda", "cpu"))
    for seed in range(4):
        batch = batch_of(seed)
        assert on_card.loss(batch) == pytest.approx(on_cpu.loss(batch), abs=1e-6)


def test_recorded_runs_follow_weights_and_shapes(card: Device, bundle: Path) -> None:
    for tune in ("full", "bias,second"):
        check_recorded_runs(load(bundle, tune=tune, device="cuda"), load(bundle, tune=tune))


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layered(tmp_path_factory.mktemp("layered"))


def test_gradients_and_slopes_agree_with_the_cpu_s(card: Device, layered: Path) -> None:
    """Also where words come back, whose gradients are added up."""
    on_card, on_cpu = (load(layered, device=device) for device in ("cuda", "cpu"))
    names = list(on_cpu.arena.views)
    for words in (5000, 4):
        for rows in (5, 2):
            batch = rows_for_layered(rows, rows, words=words)
            for keep in (False, True):
                found: dict[str, Any] = {}
                theirs: dict[str, Any] = {}
                loss = on_card.descend(batch, names, found.__setitem__, keep)
                assert loss == pytest.approx(
                    on_cpu.descend(batch, names, theirs.__setitem__, keep), abs=1e-6
                )
                for name, gradient in theirs.items():
                    assert isinstance(found[name], card.xp.ndarray)
                    np.testing.assert_allclose(
                        card.host(found[name]), gradient, rtol=1e-4, atol=1e-6, err_msg=name
                    )
            slopes = [model.derivative(batch, Direction(5, rows)) for model in (on_card, on_cpu)]
            assert slopes[0] == pytest.approx(slopes[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_steps_with_true_gradients_agree_with_the_cpu_s(
    card: Device, layered: Path, name: str
) -> None:
    check_agreement(layered, "cuda", name)


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_a_run_goes_on_to_the_same_bytes(
    card: Device, layered: Path, tmp_path: Path, name: str
) -> None:
    check_resume(layered, "cuda", name, tmp_path)


def test_updates_have_the_cpu_s_bits(card: Device) -> None:
    """Given the same gradients, for rules that look at each element alone."""
    parameters = [Parameter(f"layers.{i}.w", s, "float32", "x") for i, s in enumerate(SIZES)]
    kinds = [kind for kind in rules.RULES.values() if issubclass(kind, rules.ChunkRule)]
    for kind in kinds:
        found = []
        for device in (CpuDevice(2), card):
            arena = Arena(parameters, device)
            fill(arena, scale=0.02)
            rule, rng = kind(arena), np.random.default_rng(0)
            held = [rule.lengths(parameter) for parameter in parameters]
            slots = {slot: [lengths[slot] for lengths in held] for slot in held[0]}
            state = State(parameters, slots, disk=kind is rules.AdamW, device=device)
            for _ in range(3):
                for parameter in parameters:
                    gradient = rng.standard_normal(parameter.size, np.float32) * np.float32(1e-3)
                    weights = arena.views[parameter.name].reshape(-1)
                    with device.queue:
                        rule.update(parameter, weights, device.put(gradient), 1e-3, state)
            kept = {slot: device.host(array).tobytes() for slot, array in state.arrays.items()}
            found.append((contents(arena), kept))
        assert found[0] == found[1], kind.name


@pytest.mark.parametrize("name", ["mezo", "es", "spsa-n"])
def test_a_step_that_waits_once_is_the_same(
    card: Device, bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes that are queued while the one before is computed, on shapes that come back."""
    monkeypatch.setattr(Method, "late", False)
    found = []
    for kind in (BatchLoss, lambda model, batch: functools.partial(model.loss, batch)):
        model = load(bundle, device="cuda")
        method = make(name, model.arena, 5, {})
        estimates = []
        for number in range(1, 30):
            loss = kind(model, batch_of(number % 7))
            estimates.append(method.step(number, loss, np.float32(1e-3)))
        found.append((estimates, contents(model.arena)))
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_slopes_that_stay_are_those_that_are_waited_for(
    card: Device, bundle: Path, name: str, settings: dict[str, Any]
) -> None:
    """Records and weights of both, and a replay on the CPU."""
    check_steps(bundle, name, settings)


@pytest.mark.parametrize(("name", "settings"), OTHERS)
def test_others_wait(card: Device, bundle: Path, name: str, settings: dict[str, Any]) -> None:
    check_steps(bundle, name, settings, late=False)


def test_slopes_that_stay_with_weights_in_float16(card: Device, tmp_path: Path) -> None:
    check_float16(write_tied(tmp_path, "float16"))


@pytest.mark.parametrize("name", WAITED)
def test_a_step_waits_for_the_one_before(
    card: Device, bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_waits(bundle, name, monkeypatch)


def test_losses_numbers_and_terms_on_the_card_are_the_host_s(card: Device) -> None:
    check_losses(card)
    check_numbers(card)
    check_descents(card)
    check_nothing_is_added(card)


@pytest.mark.parametrize(
    ("dtype", "columns"), [("float16", 50272), ("float32", 49152), ("float16", 1001)]
)
def test_logprobs_of_targets(card: CudaDevice, dtype: str, columns: int) -> None:
    rng = np.random.default_rng(0)
    hidden, weight = (rng.normal(size=(n, 96)).astype(dtype) for n in (3000, columns))
    targets = rng.integers(0, columns, 3000)
    logprobs = Logprobs(card, card.put(weight))
    found = card.host(logprobs(card.put(hidden), targets))
    scores = (hidden.astype(np.float32) @ weight.astype(np.float32).T).astype(dtype)
    rows, wide = np.arange(3000), scores.astype(np.float64)
    highest = wide.max(axis=1)
    sums = np.log(np.exp(wide - highest[:, None]).sum(axis=1))
    expected = wide[rows, targets] - highest - sums
    # Scores of float16 are up to 64: products that are summed in another order round elsewhere.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0.04 if dtype == "float16" else 0)
    again = card.host(logprobs(card.put(hidden[:7]), targets[:7]))
    np.testing.assert_allclose(again, expected[:7], rtol=1e-5, atol=0.04)


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 2e-2)])
def test_the_end_of_a_graph_is_computed_apart(
    card: CudaDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, near: float
) -> None:
    check_ended(monkeypatch, write_ended(tmp_path, dtype), near)


@pytest.mark.parametrize("columns", [24, 1001])
def test_logprobs_of_scores_that_are_not_finite(card: CudaDevice, columns: int) -> None:
    scores = np.full((4, columns), -np.inf, np.float16)
    scores[0, 3], scores[1, :2], scores[2, 5], scores[3, 3] = 2, 1, np.nan, np.inf
    given = (("DTYPE", FLOAT16.onnx), ("PLAIN", 1))
    with card.stream:
        out = card.xp.empty(4, np.float32)
        targets = card.xp.asarray(np.array([3, 1, 3, 3]))
        arguments = (card.put(scores), targets, out, np.uint64(columns))
        kernel("vocabulary.cu", "vocabulary", given)((4,), (THREADS,), arguments)
    np.testing.assert_allclose(card.host(out), [0, -np.log(2), np.nan, np.nan], rtol=1e-6)


@pytest.mark.parametrize("name", WAITED)
def test_a_step_is_queued_while_the_card_is_busy(card: Device, bundle: Path, name: str) -> None:
    """Whatever the host might wait for, it would wait for the kernel in front."""
    spin = card.xp.RawKernel(SPIN, "spin")
    model, tuning = begin(bundle, "cuda", name, {"weight_decay": 0.1})
    for _ in range(4):  # until the shape is recorded
        tuning.step(BatchLoss(model, batch_of(0)), np.float32(1e-3))
    assert isinstance(model.device, CudaDevice)
    stream = model.device.stream
    with stream:
        spin((1,), (1,), (np.int64(0),))
    stream.synchronize()
    began = time.perf_counter()
    with stream:
        spin((1,), (1,), (np.int64(1 << 30),))
    taken = tuning.start(BatchLoss(model, batch_of(0)), np.float32(1e-3))
    queued = time.perf_counter() - began
    assert taken.late
    tuning.found(taken)
    done = time.perf_counter() - began
    assert done > 0.2
    assert queued < done / 4, (queued, done)


@pytest.mark.parametrize(
    ("name", "dtype", "options", "tune"),
    [
        ("mezo", "float32", {}, "full"),
        ("mezo", "float16", {}, "full"),
        ("mezo", "float16", {}, "layers.2*,layers.3*"),
        ("fzoo", "float32", {"samples": 16}, "full"),
        ("fzoo", "float32", {"samples": 16}, "layers.2*,layers.3*"),
    ],
)
def test_weights_that_pass_through_the_card(
    card: Device, tmp_path: Path, name: str, dtype: str, options: dict[str, Any], tune: str
) -> None:
    """The losses are those of weights on the card, within rounding; what was done replays."""
    folder = write_tied(tmp_path / "tied", dtype, width=1280)
    models = [load(folder, device=d, tune=tune) for d in ("cuda-offload", "cuda")]
    model, resident = models
    method = make(name, model.arena, 7, {"weight_decay": 0.1, **options})
    tuning = Tuning(model.weights, MemoryJournal(describe(model.weights, method)))
    near = 1e-4 if dtype == "float32" else 2e-2
    for step in range(12):
        batch = rows_for_tied(64, step)
        tuning.step(functools.partial(model.loss, batch), np.float32(1e-4))
        if step % 5:
            continue
        expected = Weights(open_bundle(folder), tune, card)
        Tuning(expected, MemoryJournal(tuning.journal.header)).catch_up(tuning.journal.records)
        for target, source in zip(
            resident.arena.buffers.values(), expected.arena.buffers.values(), strict=True
        ):
            target[...] = source
        assert model.loss(batch) == pytest.approx(resident.loss(batch), abs=near)
    for device in (CpuDevice(4), card, open_device("cuda-offload")):
        other = Weights(open_bundle(folder), tune, device)
        Tuning(other, MemoryJournal(tuning.journal.header)).catch_up(tuning.journal.records)
        assert contents(model.arena) == contents(other.arena)
