"""Gradients of a tiny Llama, beside PyTorch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgezo_runs import called
from gradient_batches import OBJECTIVES, batch_of, torch_gradients

from edgezo_export.adapters.base import adapt
from edgezo_export.gradients.reverse import gradient_graph
from edgezo_export.shipped_graphs import shipped_folder
from edgezo_export.signature import read_signature
from edgezo_runtime.bundle import Manifest, open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.first_order import stages
from edgezo_runtime.first_order.graph import Graph
from edgezo_runtime.first_order.session import GradientSession
from edgezo_runtime.select import select
from edgezo_runtime.weights import Weights


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_has_torchs_gradients(derived_bundle: Path, name: str) -> None:
    batch = batch_of(OBJECTIVES[name])
    loss, expected = torch_gradients(derived_bundle, batch)
    weights = Weights(open_bundle(derived_bundle))
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
def test_a_choice_of_weights_costs_no_other_gradient(derived_bundle: Path, tune: str) -> None:
    batch = batch_of(OBJECTIVES["tokens"])
    weights = Weights(open_bundle(derived_bundle))
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


def test_lora_has_the_gradients_of_what_it_adds(derived_bundle: Path) -> None:
    """With w' = w + s B A, the chain rule gives dA = s B^T dw' and dB = s dw' A^T."""
    batch = batch_of(OBJECTIVES["tokens"])
    base = open_bundle(derived_bundle)
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


def test_the_command_adds_the_graph(
    tiny_bundle: Path, derived_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "added.edgezo"
    done = called("export", tiny_bundle, "--gradients", "--out", out)
    assert done.status == 0, done.err
    assert (out / "grad.onnx").read_bytes() == (derived_bundle / "grad.onnx").read_bytes()
    adapted = tmp_path / "lora.edgezo"
    done = called("export", tiny_bundle, "--tune", "lora", "--gradients", "--out", adapted)
    assert done.status == 0, done.err
    later = adapt(open_bundle(derived_bundle), {"kind": "lora"})
    assert (adapted / "grad.onnx").read_bytes() == later.read_graph("grad.onnx")
