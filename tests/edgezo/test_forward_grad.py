"""Forward gradients on a tiny Llama: slopes that are the gradient's, and runs that replay."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from edgezo_runs import called, refused, result_of
from gradient_batches import OBJECTIVES, batch_of, torch_gradients

from edgezo.run_folder import RunFolder
from edgezo_export.adapters.base import adapt
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_runtime.batch import Batch, Objective, TokenLoss
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, Bundle, open_bundle
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.journal import read
from edgezo_runtime.methods import make
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction
from edgezo_runtime.parts import PartedBatch
from edgezo_runtime.weights import Weights


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with its gradient and its tangent graph."""
    folder = tmp_path_factory.mktemp("tangents")
    add_to_bundle(open_bundle(tiny_bundle), folder / "gradients.edgezo", GRADIENTS)
    add_to_bundle(open_bundle(folder / "gradients.edgezo"), folder / "tiny.edgezo", TANGENTS)
    return folder / "tiny.edgezo"


def along(model: Model, gradients: dict[str, np.ndarray], direction: Direction) -> float:
    """Returns the gradients times a direction."""
    z = direction.draw(np, model.arena.size)
    slope = 0.0
    for name in model.arena.views:
        start = model.arena.noise_offsets[name]
        flat = gradients[name].reshape(-1).astype(np.float64)
        slope += float(flat @ z(start, start + flat.size))
    return slope


def agree(model: Model, batch: Batch, gradients: dict[str, np.ndarray], rounding: float) -> None:
    """Checks slopes along several directions, as gradients give them."""
    size = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    for step, distribution in ((1, "binomial"), (2, "rademacher"), (1 << 40, "gaussian")):
        direction = Direction(3, step, 0, distribution)
        loss = BatchLoss(model, batch)
        value, slope = loss.derivative(direction)
        assert value == pytest.approx(model.loss(batch), rel=1e-6)
        assert abs(slope - along(model, gradients, direction)) < rounding * size
        assert loss.forwards == 3


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_the_slope_is_torchs_gradient_along_the_direction(
    bundle: Path, objective: Objective
) -> None:
    batch = batch_of(objective)
    loss, gradients = torch_gradients(bundle, batch)
    model = load(bundle, threads=1)
    assert model.derivative(batch, Direction(0, 1))[0] == pytest.approx(loss, rel=1e-5)
    agree(model, batch, gradients, 1e-5)


def adapted_to(bundle: Path, kind: str) -> Model:
    """Returns the model with an adapter in its graphs, whose values are not the first ones."""
    opened = adapt(open_bundle(bundle), {"kind": kind})
    weights = Weights(opened)
    weights.load()
    generator = np.random.default_rng(1)
    for view in weights.arena.views.values():
        view[...] = generator.standard_normal(view.shape) * 0.1
    return Model(weights)


@pytest.mark.parametrize(
    "tune", ["norm", "model.layers.1.*", "model.layers.0.mlp.*", "lora", "prefix"]
)
def test_weights_that_stay_have_no_tangents(bundle: Path, tune: str) -> None:
    adapter = tune in ("lora", "prefix")
    model = adapted_to(bundle, tune) if adapter else load(bundle, tune=tune, threads=1)
    batch = batch_of(OBJECTIVES["tokens"])
    agree(model, batch, BatchLoss(model, batch).gradients(list(model.arena.views)), 2e-5)
    read_by = {tangent.name for _, tangents in model._tangents._stages() for tangent in tangents}
    assert read_by == {f"{name}.tangent" for name in model.arena.views}
    whole = load(bundle, threads=1)
    whole.derivative(batch, Direction(0, 1))
    sizes = [sum(len(p.model) for p, _ in m._tangents._stages()) for m in (model, whole)]
    assert sizes[0] < sizes[1] or adapter


def test_the_tangents_of_one_stage_at_a_time_are_in_memory(bundle: Path) -> None:
    model = load(bundle, threads=1)
    stages = model._tangents._stages()
    sizes = [sum(tangent.elements.nbytes for tangent in tangents) for _, tangents in stages]
    assert len(stages) == 2 * 2 + 3 and all(sizes[:-1])
    places = [t.elements.__array_interface__["data"][0] for _, ts in stages for t in ts]
    assert max(places) - min(places) < max(sizes) + 64 * 4 * 20
    assert max(sizes) < model.arena.nbytes / 2
    crossing = [{name for name, _ in piece.outputs} for piece, _ in stages[:-1]]
    assert sum(name.endswith(".tangent") for made in crossing for name in made) == len(crossing)


def test_a_batch_in_parts_has_the_slope_of_the_whole(bundle: Path) -> None:
    model, direction = load(bundle, threads=1), Direction(0, 1)
    ids = np.random.default_rng(0).integers(3, 512, (3, 6))

    def rows(chosen: slice) -> Batch:
        some, places = ids[chosen], np.arange(ids[chosen].size - 1)
        targets = some.reshape(-1)[1:]
        return Batch(some, np.ones_like(some), places, targets, targets[:1], TokenLoss(len(some)))

    parts = [rows(slice(0, 1)), rows(slice(1, 3))]
    parted = PartedBatch.of(parts)
    each = [model.derivative(part, direction) for part in parts]
    expected = [(5 * first + 11 * rest) / 16 for first, rest in zip(*each, strict=True)]
    assert model.derivative(parted, direction) == pytest.approx(expected, rel=1e-6)
    assert model.loss(parted) == pytest.approx(expected[0], rel=1e-6)


def test_it_learns(bundle: Path) -> None:
    model = load(bundle, threads=1)
    loss = BatchLoss(model, batch_of(OBJECTIVES["tokens"]))
    method = make("forward-grad", model.arena, 0, {"weight_decay": 0.01})
    before = loss()
    for number in range(1, 61):
        assert not method.step(number, loss, np.float32(2e-4)).record.skipped
    model.arena.settle()
    assert loss() < 0.9 * before


FLAGS = ("--method", "forward-grad", "--lr", 1e-4, "--weight-decay", 0.1, "--snapshot-every", 5)


def test_a_run_replays_and_goes_on_to_the_same_bytes(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "again.edgezo"
    files = ("--data", data / "train.jsonl", "--eval-data", data / "dev.jsonl", "--out", whole)
    best = ("--keep", "best", "--eval-every", 4)
    done = called(
        "train", bundle, *files, "--steps", 12, "--batch-size", 4, "--threads", 1, *FLAGS, *best
    )
    assert done.status == 0, done.err
    journal = read(whole / "journal.ezj")
    assert journal.header["replay"] is True and journal.header["scalars"] == 1
    assert journal.header["settings"] == {"distribution": "binomial", "weight_decay": 0.1}
    lines = RunFolder.open(whole).read_metrics()
    kept = next(line["kept"] for line in lines if "kept" in line)
    assert [line["forwards"] for line in lines if "loss" in line] == [3] * 12
    replay = ("replay", whole, "--base", bundle, "--out", out, "--at-step", kept)
    done = called(*replay)
    assert done.status == 0, done.err
    weights = (whole / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / TANGENTS).is_file()
    for left in (1, 0):  # from the snapshot of step 5, and from the start
        broken = tmp_path / f"broken{left}"
        shutil.copytree(whole, broken)
        (broken / "model.safetensors").unlink()
        content = (broken / "journal.ezj").read_bytes()
        (broken / "journal.ezj").write_bytes(content[: -16 * 4 - 3])
        for note in sorted((broken / "snapshots").glob("step-*.json"))[left:]:
            note.unlink()
        done = called("resume", broken)
        assert done.status == 0, done.err
        assert result_of(broken) == result_of(whole)


def test_the_command_adds_the_graph(tiny_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.edgezo"
    done = called("export", tiny_bundle, "--gradients", "--tangents", "--out", both)
    assert done.status == 0, done.err
    for name in (GRADIENTS, TANGENTS):
        assert (both / name).read_bytes() == (bundle / name).read_bytes()
    adapted = tmp_path / "lora.edgezo"
    done = called("export", tiny_bundle, "--tune", "lora", "--tangents", "--out", adapted)
    assert done.status == 0, done.err
    later: Bundle = adapt(open_bundle(bundle), {"kind": "lora"})
    assert (adapted / TANGENTS).read_bytes() == later.read_graph(TANGENTS)


def test_what_is_refused(bundle: Path, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    files = ("--data", data / "train.jsonl", "--out", tmp_path / "none")
    lacking = called("train", tiny_bundle, *files, "--method", "forward-grad")
    refused(lacking, 2, "has no tangent graph", f"edgezo export {tiny_bundle} --tangents --out")
    perturbing = called("train", bundle, *files, "--method", "forward-grad", "--eps", 1e-3)
    refused(perturbing, 2, "method forward-grad has no setting 'eps'")
