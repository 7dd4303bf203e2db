"""True gradients and the methods that use them, on a tiny Llama."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, refused, result_of

from edgezo.callbacks import Callback
from edgezo.data.mixed import MixedPlan
from edgezo.settings import Settings
from edgezo.train import resume
from edgezo.train import train as run_training
from edgezo_export.adapters.base import adapt
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_export.gradients.reverse import gradient_graph
from edgezo_export.shipped_graphs import shipped_folder
from edgezo_export.signature import read_signature
from edgezo_runtime.arena import Arena, Term
from edgezo_runtime.batch import Batch, CandidateLoss, Objective, OptionLoss, TokenLoss
from edgezo_runtime.bundle import Manifest, Parameter, open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order import rules, stages
from edgezo_runtime.first_order.graph import Graph
from edgezo_runtime.first_order.groups import layer_groups
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.first_order.session import GradientSession
from edgezo_runtime.first_order.state import State
from edgezo_runtime.journal import read
from edgezo_runtime.methods import METHODS, make
from edgezo_runtime.methods.first_order import FIRST_ORDER
from edgezo_runtime.methods.hift import HIFT, Hift
from edgezo_runtime.methods.hybrid import Hybrid
from edgezo_runtime.model import load
from edgezo_runtime.noise import Direction
from edgezo_runtime.select import select
from edgezo_runtime.weights import Weights

torch = pytest.importorskip("torch")

OBJECTIVES: dict[str, Objective] = {
    "candidates": CandidateLoss(np.array([0, 1, 1, 0])),
    "options": OptionLoss(np.array([0, 1, 2, 3]), np.array([1, 0]), np.array([2, 2])),
    "uneven": OptionLoss(np.array([0, 1, 2, 2]), np.array([1, 0]), np.array([2, 1]), mean=True),
    "tokens": TokenLoss(2),
}


def batch_of(objective: Objective) -> Batch:
    ids = np.random.default_rng(0).integers(3, 512, (2, 9))
    mask = np.array([[1] * 9, [1] * 6 + [0] * 3])
    positions = np.array([3, 8, 12, 14])
    return Batch(ids, mask, positions, np.array([7, 9, 7, 30]), np.array([7, 9]), objective)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with its gradient graph."""
    out = tmp_path_factory.mktemp("gradients") / "tiny.edgezo"
    add_to_bundle(open_bundle(tiny_bundle), out)
    return out


def torch_gradients(folder: Path, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """Returns loss and gradients as transformers and torch compute them."""
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    logits = model(input_ids=ids, attention_mask=mask).logits.reshape(-1, 512)[batch.positions]
    chosen = logits.log_softmax(1)[torch.arange(4), torch.from_numpy(batch.targets)]
    if isinstance(batch.objective, CandidateLoss):
        labels = torch.from_numpy(batch.objective.labels)
        loss = cross_entropy(logits[:, torch.from_numpy(batch.candidates)], labels)
    elif isinstance(batch.objective, OptionLoss) and batch.objective.mean:
        loss = cross_entropy(chosen[None, :2], torch.tensor([1])) / 2  # a row of one has no loss
    elif isinstance(batch.objective, OptionLoss):
        loss = cross_entropy(chosen.reshape(2, 2), torch.from_numpy(batch.objective.labels))
    else:
        loss = -chosen.mean()
    loss.backward()
    return loss.item(), {n: np.asarray(p.grad) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_has_torchs_gradients(bundle: Path, name: str) -> None:
    batch = batch_of(OBJECTIVES[name])
    loss, expected = torch_gradients(bundle, batch)
    weights = Weights(open_bundle(bundle))
    weights.load()
    for keep in (0, 0.5, 1):
        session = GradientSession(weights.bundle, weights.arrays(), CpuDevice(1), keep)
        found = {}
        assert session.run(batch, list(expected), found.__setitem__) == pytest.approx(
            loss, rel=1e-5
        )
        for key, gradient in expected.items():
            error = np.linalg.norm(found[key] - gradient)
            assert error <= 2e-5 * np.linalg.norm(gradient), (key, keep)


@pytest.mark.parametrize("tune", ["norm", "model.layers.1.*", "model.layers.0.mlp.*", "*q_proj*"])
def test_a_choice_of_weights_costs_no_other_gradient(bundle: Path, tune: str) -> None:
    batch = batch_of(OBJECTIVES["tokens"])
    weights = Weights(open_bundle(bundle))
    weights.load()
    session = GradientSession(weights.bundle, weights.arrays(), CpuDevice(1))
    everything = [p.name for p in weights.bundle.manifest.parameters]
    chosen = [p.name for p in select(weights.bundle.manifest.parameters, tune)]
    whole = session.gradients(batch, everything)
    part = session.gradients(batch, chosen)
    assert part.keys() == set(chosen)
    for name in chosen:
        np.testing.assert_allclose(part[name], whole[name], rtol=1e-4, atol=1e-6)
    sizes = [sum(len(p.model) for p in plan.backward) for plan in session._plans.values()]
    assert sizes[1] < 0.9 * sizes[0]


def test_equal_layers_share_one_session() -> None:
    """However deep a model is, its first layer, its last and one between are all that is loaded."""
    bundle = shipped_folder("opt-125m")
    signature = read_signature(bundle / "graph.onnx")
    manifest = Manifest(signature.parameters, signature.inputs, signature.outputs, 2048)
    graph = Graph(gradient_graph((bundle / "graph.onnx").read_bytes(), manifest))
    names = [p.name for p in signature.parameters]
    outputs = ["logprobs", "candidate_logits"]
    plan, half, whole = (stages.plan(graph, outputs, set(names), names, k) for k in (0, 0.5, 1))
    crossing = [sum(len(piece.outputs) for piece in p.forward) for p in (plan, half, whole)]
    assert crossing[0] < 0.75 * crossing[1] and crossing[1] < 0.75 * crossing[2]
    assert len(plan.forward) == len(plan.backward) == 2 * 12 + 3
    assert len({piece.model for piece in (*plan.forward, *plan.backward)}) <= 16


def test_lora_has_the_gradients_of_what_it_adds(bundle: Path) -> None:
    """With w' = w + s B A, the chain rule gives dA = s B^T dw' and dB = s dw' A^T."""
    batch = batch_of(OBJECTIVES["tokens"])
    base = open_bundle(bundle)
    adapted = adapt(base, {"kind": "lora", "rank": 4, "alpha": 8})
    weights = Weights(adapted)
    weights.load()
    generator = np.random.default_rng(1)
    for view in weights.arena.views.values():
        view[...] = generator.standard_normal(view.shape) * 0.1
    names = list(weights.arena.views)
    arrays = weights.arrays()
    found = GradientSession(adapted, arrays, CpuDevice(1)).gradients(batch, names)
    merged = {p.name: np.array(arrays[p.name]) for p in base.manifest.parameters}
    pairs = {n: n.replace("lora_A", "lora_B") for n in names if "lora_A" in n}
    targets = {a: next(k for k in merged if k.endswith(".weight") and k[:-7] in a) for a in pairs}
    for a, b in pairs.items():
        merged[targets[a]] += 2 * arrays[b] @ arrays[a]
    whole = GradientSession(base, merged, CpuDevice(1)).gradients(batch, list(targets.values()))
    assert pairs
    for a, b in pairs.items():
        slope = whole[targets[a]]
        np.testing.assert_allclose(found[a], 2 * arrays[b].T @ slope, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found[b], 2 * slope @ arrays[a].T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", [m.name for m in (*FIRST_ORDER, *HIFT)])
def test_each_method_learns(bundle: Path, method: str) -> None:
    model = load(bundle, threads=1)
    made = make(method, model.arena, 0, {"weight_decay": 0.01})
    assert made.settings()["weight_decay"] == 0.01
    loss = BatchLoss(model, batch_of(OBJECTIVES["tokens"]))
    rate = {"ip-sgd": 0.05, "hift-sgd": 0.05, "sgd": 0.01, "lomo": 0.1, "hift-adalomo": 0.05}
    lr = np.float32(rate.get(method, 5e-3))
    before = loss()
    estimates = [made.step(number, loss, lr) for number in range(1, 13)]
    assert estimates[0].loss == pytest.approx(before, rel=1e-5)
    assert loss() < 0.8 * before
    assert not any(estimate.record.skipped for estimate in estimates)


def test_hift_changes_one_group_a_step(bundle: Path) -> None:
    model = load(bundle, threads=1)
    made = make("hift-adamw", model.arena, 0, {})
    loss = BatchLoss(model, batch_of(OBJECTIVES["tokens"]))
    groups = layer_groups(model.arena.parameters)
    assert sorted(itertools.chain(*groups)) == sorted(model.arena.views)
    assert [len(group) for group in groups] == [1, 9, 9, 1]
    for number in range(1, 6):
        before = {name: view.copy() for name, view in model.arena.views.items()}
        made.step(number, loss, np.float32(1e-3 * number))
        changed = [n for n, old in before.items() if not np.array_equal(old, model.arena.views[n])]
        assert changed == list(groups[(number - 1) % 4])
    down = make("hift-adamw", model.arena, 0, {"order": "top-down", "layers": 2})
    assert isinstance(down, Hift)
    assert down.names(1) == (*groups[2], *groups[3])


def test_hifts_rate_waits_for_the_next_cycle(bundle: Path) -> None:
    model = load(bundle, threads=1)
    made = make("hift-lion", model.arena, 0, {})
    loss = BatchLoss(model, batch_of(OBJECTIVES["tokens"]))
    for number, expected in ((1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.25)):
        rate = np.float32(0.5 if number == 1 else 0.25)
        before = {name: view.copy() for name, view in model.arena.views.items()}
        made.step(number, loss, rate)
        moved = max(np.abs(model.arena.views[n] - old).max() for n, old in before.items())
        assert moved == pytest.approx(expected, rel=1e-5)


TORCH: dict[type[rules.Rule], Callable[[Any], Any]] = {
    rules.Sgd: lambda ws: torch.optim.SGD(ws, lr=0.1),
    rules.Momentum: lambda ws: torch.optim.SGD(ws, lr=0.1, momentum=0.9),
    rules.AdamW: lambda ws: torch.optim.AdamW(ws, lr=0.1, weight_decay=0),
    rules.Adagrad: lambda ws: torch.optim.Adagrad(ws, lr=0.1),
    rules.RmsProp: lambda ws: torch.optim.RMSprop(ws, lr=0.1),
}


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("kind", TORCH)
def test_rules_are_torchs_optimizers(kind: type[rules.Rule], disk: bool) -> None:
    generator = np.random.default_rng(0)
    parameter = Parameter("w", (300, 301), "float32", "linear")
    weights = generator.standard_normal(parameter.shape).astype(np.float32)
    theirs = torch.tensor(weights.copy(), requires_grad=True)
    optimizer = TORCH[kind]([theirs])
    rule = kind()
    state = State([parameter], {k: [n] for k, n in rule.lengths(parameter).items()}, disk)
    for _ in range(5):
        gradient = generator.standard_normal(parameter.shape).astype(np.float32)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
        rule.update(parameter, weights.reshape(-1), gradient.reshape(-1), 0.1, state)
        state.idle()
    np.testing.assert_allclose(weights, theirs.detach().numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", rules.RULES.values())
def test_threads_change_no_bit(kind: type[rules.Rule]) -> None:
    parameter = Parameter("w", (300, 1001), "float32", "linear")
    found = []
    for threads in (1, 3):
        arena = Arena([parameter], CpuDevice(threads))
        generator, rule = np.random.default_rng(0), kind(arena)
        weights = arena.views["w"].reshape(-1)
        weights[:] = generator.standard_normal(parameter.size, np.float32)
        sizes = rule.lengths(parameter).items()
        state = State([parameter], {slot: [size] for slot, size in sizes}, False)
        for _ in range(3):
            gradient = generator.standard_normal(parameter.size, np.float32)
            squares = rules.square_sum(gradient, arena)
            rules.scale(weights, 0.9, arena)
            rule.update(parameter, weights, gradient, 0.1, state)
        found.append((squares, weights.tobytes(), [a.tobytes() for a in state.arrays.values()]))
    assert found[0] == found[1]


def train(bundle: Path, data: Path, out: Path, *flags: object) -> None:
    files = ("--data", data / "train.jsonl", "--out", out, "--steps", 12, "--batch-size", 4)
    done = called("train", bundle, *files, "--lr", 1e-3, "--threads", 1, *flags)
    assert done.status == 0, done.err


@pytest.mark.parametrize("method", ["adamw", "hift-adamw", "addax", "hybrid"])
def test_a_broken_run_goes_on_to_the_same_bytes(
    bundle: Path, data: Path, tmp_path: Path, method: str
) -> None:
    whole = tmp_path / "whole"
    flags = ("--method", method, "--snapshot-every", 5)
    train(bundle, data, whole, *flags)
    header = read(whole / "journal.ezj").header
    assert header["replay"] is False
    for kept in (2, 1, 0):  # snapshots that are left: of steps 5 and 10, of 5, none
        broken = tmp_path / f"broken{kept}"
        shutil.copytree(whole, broken)
        (broken / "model.safetensors").unlink()
        notes = sorted((broken / "snapshots").glob("step-*.json"))
        assert len(notes) == 2
        for note in notes[kept:]:
            note.unlink()
        done = called("resume", broken)
        assert done.status == 0, done.err
        assert result_of(broken) == result_of(whole)


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self._left = steps

    def should_stop(self) -> bool:
        self._left -= 1
        return self._left == 0


def test_a_stop_keeps_all_that_was_done(bundle: Path, data: Path, tmp_path: Path) -> None:
    files = {"bundle": str(bundle), "data": str(data / "train.jsonl")}
    given = {**files, "method": "lion", "steps": 8, "batch_size": 4, "lr": 1e-3, "threads": 1}
    for name, stop in (("whole", None), ("stopped", 5)):
        settings = Settings.from_dict({**given, "out": str(tmp_path / name)}, "test")
        result = run_training(settings, StopAfter(stop or 100))
    assert (result.steps, result.finished) == (5, False)
    assert (tmp_path / "stopped" / "snapshots" / "state-00000005.safetensors").is_file()
    assert resume(tmp_path / "stopped").steps == 8
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")


def test_a_damaged_state_is_not_used(bundle: Path, data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(bundle, data, whole, "--method", "sgd", "--snapshot-every", 6)
    shutil.copytree(whole, broken)
    (state,) = (broken / "snapshots").glob("state-*.safetensors")
    damaged = bytearray(state.read_bytes())
    damaged[-3] ^= 1
    state.write_bytes(damaged)
    assert called("resume", broken).status == 0
    assert result_of(broken) == result_of(whole)


def test_what_is_refused(bundle: Path, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    train(bundle, data, tmp_path / "run", "--method", "ip-sgd")
    replay = called("replay", tmp_path / "run", "--base", bundle, "--out", tmp_path / "out")
    refused(replay, 2, "true gradients (ip-sgd)", "model.safetensors")
    files = ("--data", data / "train.jsonl", "--out", tmp_path / "none")
    lacking = called("train", tiny_bundle, *files, "--method", "adamw")
    refused(lacking, 2, "has no gradient graph", f"edgezo export {tiny_bundle} --gradients --out")
    batch = batch_of(OBJECTIVES["tokens"])
    with pytest.raises(InputError, match="no gradient by 'nothing'"):
        load(bundle, threads=1).descend(batch, ["nothing"], lambda n, g: None, False)


def test_the_command_adds_the_graph(tiny_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "added.edgezo"
    done = called("export", tiny_bundle, "--gradients", "--out", out)
    assert done.status == 0, done.err
    assert (out / "grad.onnx").read_bytes() == (bundle / "grad.onnx").read_bytes()
    adapted = tmp_path / "lora.edgezo"
    done = called("export", tiny_bundle, "--tune", "lora", "--gradients", "--out", adapted)
    assert done.status == 0, done.err
    later = adapt(open_bundle(bundle), {"kind": "lora"})
    assert (adapted / "grad.onnx").read_bytes() == later.read_graph("grad.onnx")


def test_addax_mixes_the_estimate_on_one_batch_with_the_gradient_on_another(bundle: Path) -> None:
    long, short = batch_of(OBJECTIVES["tokens"]), batch_of(OBJECTIVES["candidates"])
    lr, moved = np.float32(0.02), {}
    for weight in (0.0, 0.25, 1.0):
        model = load(bundle, threads=1)
        start = {name: view.copy() for name, view in model.arena.views.items()}
        made = make("addax", model.arena, 3, {"zo_weight": weight, "eps": 2e-3})
        estimate = made.step(5, BatchLoss(model, long, short), lr)
        moved[weight] = {n: view - start[n] for n, view in model.arena.views.items()}
    exact = BatchLoss(load(bundle, threads=1), short).gradients(list(start))
    direction = load(bundle, threads=1).arena
    before = {name: view.copy() for name, view in direction.views.items()}
    direction.add(Term(Direction(3, 5), np.float32(1)))
    slope = float(estimate.record.scalars[0])
    higher = {name: view.copy() for name, view in direction.views.items()}
    for name, old in before.items():
        z = higher[name] - old
        np.testing.assert_allclose(moved[0.0][name], -lr * exact[name], atol=2e-6)
        np.testing.assert_allclose(moved[1.0][name], -lr * slope * z, atol=2e-6, rtol=1e-4)
        both = -lr * (0.25 * slope * z + 0.75 * exact[name])
        np.testing.assert_allclose(moved[0.25][name], both, atol=2e-6, rtol=1e-4)
    # The slope is that of the long batch, along z.
    expected = sum(
        float((gradient * (higher[name] - before[name])).sum())
        for name, gradient in GradientSession(open_bundle(bundle), start, CpuDevice(1))
        .gradients(long, list(start))
        .items()
    )
    assert slope == pytest.approx(expected, rel=0.02)


class Broken(BatchLoss):
    """A batch whose loss is no number where it is estimated."""

    def __call__(self) -> float:
        return super().__call__() * float("nan")


def test_the_hybrid_has_gradients_of_its_upper_layers_alone(bundle: Path) -> None:
    batch, lr, decay = batch_of(OBJECTIVES["tokens"]), np.float32(0.02), 0.5
    model = load(bundle, threads=1)
    before = {name: view.copy() for name, view in model.arena.views.items()}
    exact = BatchLoss(model, batch).gradients(list(before))
    settings = {"zo_weight": 0.01, "eps": 2e-3, "weight_decay": decay}
    made = make("hybrid", model.arena, 3, settings)
    loss = BatchLoss(model, batch)
    estimate = made.step(5, loss, lr)
    assert loss.forwards == made.forwards == 3 and not estimate.record.skipped
    upper = {n for n in before if n.startswith("model.layers.1.") or n == "model.norm.weight"}
    draw = Direction(3, 5).draw(np, model.arena.size)
    slope, along, squares = float(estimate.record.scalars[0]), 0.0, 0.0
    for name, old in before.items():
        kept = 1 - lr * decay if old.ndim > 1 else 1.0
        if name in upper:
            expected = old * kept - lr * exact[name]
            squares += float((exact[name].astype(np.float64) ** 2).sum())
        else:
            start = model.arena.noise_offsets[name]
            z = draw(start, start + old.size).reshape(old.shape)
            along += float((exact[name] * z).sum())
            expected = (old - lr * 0.01 * slope * z) * kept
        np.testing.assert_allclose(model.arena.views[name], expected, atol=2e-6, rtol=1e-5)
    assert slope == pytest.approx(along, rel=0.02)
    assert float(estimate.record.scalars[1]) == pytest.approx(squares**0.5, rel=1e-4)
    before = {name: view.copy() for name, view in model.arena.views.items()}
    broken = make("hybrid", model.arena, 3, settings).step(6, Broken(model, batch), lr)
    assert broken.record.skipped and broken.record.scalars == (0, 0)
    assert all(np.array_equal(model.arena.views[name], before[name]) for name in upper)


def test_what_a_hybrid_needs(bundle: Path) -> None:
    def names(tune: str, **settings: Any) -> set[str]:
        made = make("hybrid", load(bundle, tune=tune, threads=1).arena, 0, settings)
        assert isinstance(made, Hybrid)
        return set(made.names(1))

    assert names("full", upper=1) == names("full", upper=0.51) > names("full", upper=0.5)
    assert {n.split(".")[2] for n in names("*q_proj*")} == {"1"}
    with pytest.raises(InputError, match="no weight below its upper layers"):
        names("model.layers.1.*")


def test_addax_assigns_rows_by_length() -> None:
    lengths = np.array([3, 9, 4, 8, 5, 7, 30, 31, 2])
    plan = MixedPlan(lengths, 2, 3, 0, assign=True, limit=8)
    long, short = set(), set()
    for step in range(1, 10):
        estimated, exact = plan.indices(step)
        assert (len(estimated), len(exact)) == (3, 2)
        long.update(estimated.tolist())
        short.update(exact.tolist())
    assert long == set(np.nonzero(lengths > 8)[0].tolist())
    assert short == set(np.nonzero(lengths <= 8)[0].tolist())
    both = MixedPlan(lengths, 4, 4, 0, assign=False)
    pairs = [both.indices(step) for step in range(1, 10)]
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in pairs)
    assert {int(i) for a, b in pairs for i in (*a, *b)} == set(range(9))
    with pytest.raises(InputError, match=r"no row is longer than 31 tokens.*addax-wa"):
        MixedPlan(lengths, 2, 2, 0, assign=True, limit=31)


def test_every_method_is_listed() -> None:
    wanted = {"ip-sgd", "sgd", "adamw", "adagrad", "rmsprop", "lion", "lomo", "adalomo"}
    assert wanted <= METHODS.keys()
    assert {"hift-adamw", "hift-lion", "hybrid"} <= METHODS.keys()
