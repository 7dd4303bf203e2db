"""Weights that stay on the host and pass through a card, with a stand-in for the card."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
from runtime_helpers import contents
from tied_bundle import LAYERS, rows_for_tied, write_tied

from edgezo_runtime import dtypes
from edgezo_runtime.arena import Term
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.devices import open_device
from edgezo_runtime.devices.lane import Lane
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.first_order.graph import Graph
from edgezo_runtime.methods import make
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction
from edgezo_runtime.parts import PartedBatch
from edgezo_runtime.stages import cut
from edgezo_runtime.tuning import MemoryJournal, Tuning, describe
from edgezo_runtime.weights import Weights

UPPER = "layers.2*,layers.3*"
LR = np.float32(1e-3)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layered")
    return {dtype: write_tied(folder / dtype, dtype) for dtype in ("float32", "float16")}


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts what passes."""
    counts: Counter[str] = Counter()
    for name in ("fetch", "write_back"):
        original = getattr(Lane, name)

        def counted(self: Lane, *rest: Any, name: str = name, original: Any = original) -> None:
            counts[name] += 1
            original(self, *rest)

        monkeypatch.setattr(Lane, name, counted)
    yield counts


def tuning_of(model: Model, name: str, options: dict[str, Any] | None = None) -> Tuning:
    method = make(name, model.arena, 5, {"weight_decay": 0.1, **(options or {})})
    return Tuning(model.weights, MemoryJournal(describe(model.weights, method)))


def steps(model: Model, tuning: Tuning, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        tuning.step(functools.partial(model.loss, rows_for_tied(6, number)), LR)


def test_a_graph_is_cut_between_its_layers(bundles: dict[str, Path]) -> None:
    bundle = open_bundle(bundles["float32"])
    sizes = {p.name: 4 * p.size for p in bundle.manifest.parameters}
    stages = cut(Graph(bundle.read_graph()), sizes)
    layers = [{f"layers.{i}.w", f"layers.{i}.b"} for i in range(LAYERS)]
    assert [s.weights for s in stages] == [
        {"table"},
        layers[0] | layers[1],
        layers[2] | layers[3],
        {"table"},
    ]
    assert stages[1].piece.model == stages[2].piece.model  # one session runs both
    assert [[name for name, _ in s.piece.outputs] for s in stages] == [
        ["h0"],
        ["h2"],
        ["h4"],
        ["losses"],
    ]


@pytest.mark.parametrize(
    ("name", "dtype", "options", "tune", "late"),
    [
        ("mezo", "float32", {}, "full", True),
        ("mezo", "float32", {}, UPPER, False),
        ("mezo", "float16", {}, "full", False),
        ("fzoo", "float32", {"samples": 16}, UPPER, True),
        ("fzoo", "float32", {"samples": 5}, "full", False),
        ("spsa-n", "float32", {"samples": 3}, "full", True),
        ("one-sided", "float16", {}, UPPER, True),
    ],
)
def test_steps_are_those_of_weights_on_the_card(
    bundles: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: str,
    options: dict[str, Any],
    tune: str,
    late: bool,
) -> None:
    """Records, weights and losses are the same bits, however late or early copies are made."""
    monkeypatch.setattr(cuda_stand_in.Stream, "late", late)
    found = []
    for device in ("cuda", "cuda-offload"):
        model = load(bundles[dtype], tune=tune, device=device, threads=2)
        tuning = tuning_of(model, name, options)
        losses = []
        for turn in range(3):
            steps(model, tuning, 2, 2 * turn)
            losses.append(model.loss(rows_for_tied(9, 77)))
        found.append((tuning.journal.records, losses, contents(model.arena)))
        other = Weights(open_bundle(bundles[dtype]), tune)
        Tuning(other, MemoryJournal(tuning.journal.header)).catch_up(tuning.journal.records)
        assert contents(other.arena) == found[-1][2]
    if dtype == "float32":
        assert found[0] == found[1]
    else:  # the CPU computes in float32, and rounds where a stage ends
        assert found[0][1] == pytest.approx(found[1][1], abs=0.01)


@pytest.mark.parametrize("name", ["zo-adam", "lezo", "lozo", "mezo-svrg", "zo-sgd-cons"])
def test_what_a_card_cannot_add_the_host_does(bundles: dict[str, Path], name: str) -> None:
    found = []
    for device in ("cpu", "cuda-offload"):
        model = load(bundles["float32"], device=device, threads=2)
        tuning = tuning_of(model, name)
        steps(model, tuning, 4)
        found.append((tuning.journal.records, contents(model.arena)))
    assert found[0] == found[1]


def test_the_losses_of_a_step_take_one_visit(
    bundles: dict[str, Path], fetched: Counter[str]
) -> None:
    model = load(bundles["float32"], device="cuda-offload")
    for name, options in (("mezo", {}), ("fzoo", {"samples": 16})):
        tuning = tuning_of(model, name, options)
        fetched.clear()
        steps(model, tuning, 2)
        assert fetched["fetch"] == 2 * 4
    parts = [rows_for_tied(3, seed) for seed in range(2)]
    whole = PartedBatch.of(parts)
    tuning.step(lambda: model.loss(whole), LR)
    assert fetched["fetch"] == (2 + 2) * 4


def test_the_memory_is_written_every_few_steps(
    bundles: dict[str, Path], fetched: Counter[str]
) -> None:
    model = load(bundles["float32"], device="cuda-offload")
    tuning = tuning_of(model, "mezo")
    steps(model, tuning, 13)  # three terms each
    assert fetched["fetch"] == 13 * 4
    assert fetched["write_back"] == 2 * 4


def test_frozen_layers_in_front_are_computed_once_for_a_batch(
    bundles: dict[str, Path], fetched: Counter[str]
) -> None:
    model = load(bundles["float32"], tune=UPPER, device="cuda-offload")
    oracle = load(bundles["float32"], tune=UPPER)
    for seed in (1, 1, 2):
        batch = rows_for_tied(5, seed)
        assert model.loss(batch) == oracle.loss(batch)
        for one in (model, oracle):
            one.arena.add(Term(Direction(3, 1), np.float32(0.01)))
        assert model.loss(batch) == oracle.loss(batch)
    assert fetched["fetch"] == 2 * (4 + 2) + 2 * 2


@pytest.mark.parametrize("when", [0, 2])
def test_a_step_that_breaks_off_leaves_no_trace(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Wherever it breaks off, also while the memory is written."""
    model, oracle = (load(bundles["float32"], device=d) for d in ("cuda-offload", "cpu"))
    tunings = [tuning_of(one, "fzoo", {"samples": 8}) for one in (model, oracle)]
    for one, tuning in zip((model, oracle), tunings, strict=True):
        steps(one, tuning, 2)
    original, calls = Lane.take, iter(range(100))

    def broken(self: Lane, buffer: int) -> None:
        if next(calls) == when:
            raise KeyboardInterrupt
        original(self, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "take", broken)
        with pytest.raises(KeyboardInterrupt):
            steps(model, tunings[0], 1, 2)
    batch = rows_for_tied(4, 9)
    assert model.loss(batch) == oracle.loss(batch)
    steps(model, tunings[0], 2, 2)
    steps(oracle, tunings[1], 2, 2)
    assert contents(model.arena) == contents(oracle.arena)


def test_weights_half_written_are_not_used(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(bundles["float32"], device="cuda-offload")
    arena, batch = model.arena, rows_for_tied(4, 0)
    arena.add(*(Term(Direction(1, i), np.float32(0.01)) for i in range(20)))
    arena.foresee([])
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "leave", lambda *_: 1 / 0)
        with pytest.raises(EdgezoError):
            model.loss(batch)
    for use in (lambda: model.loss(batch), arena.settle):
        with pytest.raises(EdgezoError, match="load the model again"):
            use()
    model.weights.load()
    assert model.loss(batch) == load(bundles["float32"]).loss(batch)


def test_weights_are_saved_with_all_that_was_added(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    saved = []
    for device in ("cpu", "cuda-offload"):
        model = load(bundles["float32"], tune=UPPER, device=device)
        steps(model, tuning_of(model, "mezo"), 2)
        saved.append(model.weights.save(tmp_path / f"{device}.safetensors"))
    assert saved[0] == saved[1]


def test_little_memory_of_the_host_is_named(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_stand_in._Memory, "limit", 1000)
    with pytest.raises(EdgezoError, match="the host has no 0 MiB more"):
        load(bundles["float32"], device="cuda-offload")


def test_what_needs_the_weights_on_the_card_is_refused(bundles: dict[str, Path]) -> None:
    model = load(bundles["float32"], tune=UPPER, device="cuda-offload")
    with pytest.raises(InputError, match="--prefix-cache is not for device cuda-offload"):
        model.check_prefix()
    with pytest.raises(InputError, match="cuda-offload"):
        open_device("cuda-offload:x")
    assert dtypes.FLOAT32 in model.arena.buffers
