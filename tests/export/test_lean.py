"""Lean graphs compute what their graphs compute, and see every change of every weight."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from tiny_checkpoints import VOCABULARY, tiny_model

from edgezo_export.adapters.base import adapt
from edgezo_export.bundle_graph import save_graph
from edgezo_export.bundle_writer import complete_bundle
from edgezo_export.lean import verify
from edgezo_export.lean.causal import is_causal
from edgezo_export.lean.edit import operand
from edgezo_export.lean.make import lean_graph, save_lean
from edgezo_export.lean.verify import add_lean
from edgezo_export.text_graph import export_text_graph
from edgezo_export.verify import GraphRunner, sample_batch
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import GRAPH, LEAN, Bundle, open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.session import Session
from edgezo_runtime.weights import Weights

FAMILIES = ("qwen2_window", "opt", "gpt2")
Bundles = Callable[[str], Bundle]


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Returns a bundle with a lean graph by the model's name."""
    made: dict[str, Bundle] = {}

    def bundle(name: str) -> Bundle:
        if name not in made:
            model = tiny_model(name)
            weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
            folder = tmp_path_factory.mktemp(name)
            save_graph(export_text_graph(model), folder / GRAPH)
            assert save_lean(folder)
            complete_bundle(folder, lambda p: weights[p.name], context_length=64)
            made[name] = open_bundle(folder)
        return made[name]

    return bundle


class LeanDevice(CpuDevice):
    """The CPU, as a card would use it."""

    lean = True


def runners(bundle: Bundle) -> tuple[GraphRunner, GraphRunner]:
    return GraphRunner(bundle), GraphRunner(bundle, bundle.read_graph(LEAN))


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    assert all(a.dtype == b.dtype == np.float32 for a, b in zip(ours, theirs, strict=True))
    return float(max(np.abs(a - b).max(initial=0) for a, b in zip(ours, theirs, strict=True)))


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_changes_of_each_weight_are_the_graph_s(name: str, bundle_of: Bundles) -> None:
    bundle = bundle_of(name)
    graph, lean = runners(bundle)
    for batch, length in ((4, 33), (1, 2), (2, 64)):
        inputs = sample_batch(VOCABULARY, batch, length, seed=length)
        assert difference(lean(inputs), graph(inputs)) < 2e-5
    inputs = sample_batch(VOCABULARY, 3, 9)
    before = lean(inputs)
    generator = np.random.Generator(np.random.Philox(5))
    for parameter in bundle.manifest.parameters:
        found = []
        value = graph.weights[parameter.name]
        changed = value + 0.1 * generator.standard_normal(value.shape, np.float32)
        for runner in (lean, graph):
            runner.bind(parameter.name, changed)
            found.append(runner(inputs))
            runner.bind(parameter.name, value)
        assert difference(*found) < 2e-5, parameter.name
        # A softmax does not see what is the same for all keys.
        unread = name == "opt" and parameter.name.endswith("k_proj.bias")
        assert (difference(found[0], before) > 0) is not unread, parameter.name


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_fused(name: str, bundle_of: Bundles) -> None:
    bundle = bundle_of(name)
    graph, lean = (
        ir.from_proto(onnx.load_from_string(bundle.read_graph(file))).graph
        for file in (GRAPH, LEAN)
    )
    assert [v.name for v in lean.inputs] == [v.name for v in graph.inputs]
    assert [v.name for v in lean.outputs] == [v.name for v in graph.outputs]
    nodes = [node.op_type for node in lean]
    assert {"Softmax", "Gemm", "Sqrt", "Neg"}.isdisjoint(nodes)
    attentions = [node for node in lean if node.op_type == "MultiHeadAttention"]
    causal = [node.attributes.get_int("unidirectional", 0) for node in attentions]
    assert causal == ([1, 0] if name == "qwen2_window" else [1, 1])
    rotations = 4 if name == "qwen2_window" else 0
    skips = {"qwen2_window": 4, "opt": 5, "gpt2": 3}
    assert nodes.count("RotaryEmbedding") == rotations
    assert sum(node.startswith("Skip") for node in nodes) == skips[name]
    biased = [node for node in attentions if len(node.inputs) > 3 and node.inputs[3] is not None]
    assert len(biased) == (2 if name == "gpt2" else 0)
    products = [node for node in lean if node.op_type == "MatMul"]
    assert not any(value.is_graph_input() for node in products for value in node.inputs if value)


@pytest.mark.parametrize("answers", [0, 1, 255, 257, 1100])
def test_any_number_of_answers(answers: int, bundle_of: Bundles) -> None:
    graph, lean = runners(bundle_of("opt"))
    inputs = sample_batch(VOCABULARY, 3, 20)
    generator = np.random.Generator(np.random.Philox(answers))
    inputs |= {
        "positions": generator.integers(0, 11, answers),
        "targets": generator.integers(0, VOCABULARY, answers),
    }
    assert [len(output) for output in lean(inputs)] == [answers, answers]
    assert difference(lean(inputs), graph(inputs)) < 2e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_is_not_seen(name: str, bundle_of: Bundles) -> None:
    _, lean = runners(bundle_of(name))
    inputs = sample_batch(VOCABULARY, 3, 11)
    other = inputs | {"input_ids": np.where(inputs["attention_mask"], inputs["input_ids"], 7)}
    assert difference(lean(inputs), lean(other)) == 0


@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
@pytest.mark.parametrize("name", ["qwen2_window", "opt"])
def test_adapters(kind: str, name: str, bundle_of: Bundles) -> None:
    adapted = adapt(bundle_of(name), {"kind": kind})
    assert adapted.adapted.keys() == {GRAPH, LEAN}
    assert adapted.manifest.files[LEAN] != bundle_of(name).manifest.files[LEAN]
    generator = np.random.Generator(np.random.Philox(2))
    added = [p for p in adapted.manifest.parameters if p.init]
    first = {p.name: generator.standard_normal(p.shape, np.float32) / 4 for p in added}
    weights = Weights(adapted)
    weights.begin(first)
    weights.load()
    trained = weights.arena.views.keys()
    batch = Batch(**sample_batch(VOCABULARY, 3, 11), objective=TokenLoss(1))
    ours, theirs = (
        Session(adapted, weights.arrays(), trained, device).forward(batch)
        for device in (LeanDevice(1), CpuDevice(1))
    )
    assert difference(list(ours.values()), list(theirs.values())) < 2e-5


def test_frozen_layers_are_computed_once(bundle_of: Bundles) -> None:
    bundle = bundle_of("qwen2_window")
    arrays = GraphRunner(bundle).weights
    trained = {name for name in arrays if "layers.1." in name}
    batch = Batch(**sample_batch(VOCABULARY, 3, 11), objective=TokenLoss(1))
    found = []
    for device in (LeanDevice(1), CpuDevice(1)):
        session = Session(bundle, arrays, trained, device)
        assert session._prefix is not None
        found.append(list(session.forward(batch).values()))
    assert difference(*found) < 2e-5


def test_a_session_takes_what_its_device_prefers(bundle_of: Bundles) -> None:
    bundle = bundle_of("opt")
    opened: list[bytes] = []

    class Watched(LeanDevice):
        def open_session(self, model: bytes, *rest: object) -> object:
            opened.append(model)
            return super().open_session(model)

    Session(bundle, GraphRunner(bundle).weights, GraphRunner(bundle).weights.keys(), Watched(1))
    without = Bundle(bundle.folder, replace(bundle.manifest, files={GRAPH: ""}))
    Session(without, GraphRunner(bundle).weights, GraphRunner(bundle).weights.keys(), Watched(1))
    assert opened == [bundle.read_graph(LEAN), bundle.read_graph(GRAPH)]


def test_a_lean_graph_that_disagrees_is_left_out(
    bundle_of: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle_of("opt").folder, folder)
    graph = GraphRunner(open_bundle(folder))
    assert add_lean(folder, graph, VOCABULARY)
    assert open_bundle(folder).manifest == bundle_of("opt").manifest

    def save_other(folder: Path) -> bool:
        model = ir.load(folder / GRAPH)
        for node in model.graph:
            if node.op_type == "LayerNormalization":
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)
        save_graph(model, folder / LEAN)
        return True

    monkeypatch.setattr(verify, "save_lean", save_other)
    assert not add_lean(folder, graph, VOCABULARY)
    assert not (folder / LEAN).exists()
    assert LEAN not in open_bundle(folder).manifest.files


@pytest.mark.parametrize(("unread", "agrees"), [("q_proj.bias", False), ("k_proj.bias", True)])
def test_a_weight_that_a_lean_graph_does_not_read_is_one_that_changes_nothing(
    unread: str, agrees: bool, bundle_of: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle_of("opt").folder, folder)
    weights = dict(GraphRunner(bundle_of("opt")).weights)
    biases = [name for name in weights if name.endswith(unread)]
    weights |= {name: np.zeros_like(weights[name]) for name in biases}  # as fresh ones are

    def save_without(folder: Path) -> bool:
        model = ir.load(folder / GRAPH)
        for value in model.graph.inputs:
            if value.name in biases:
                ((add, place),) = value.uses()
                add.outputs[0].replace_all_uses_with(operand(add, 1 - place))
        save_graph(model, folder / LEAN)
        return True

    monkeypatch.setattr(verify, "save_lean", save_without)
    graph = GraphRunner(open_bundle(folder), weights=weights)
    assert add_lean(folder, graph, VOCABULARY) is agrees


def test_a_graph_with_nothing_to_fuse_has_none() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]>
        g (float[n, 4] x, float[3, 4] w) => (float[n, 3] y) { y = Gemm<transB=1>(x, w) }"""
    )
    assert lean_graph(model.SerializeToString()) is None


@pytest.mark.parametrize(
    ("seen", "causal"),
    [
        ("seen = LessOrEqual(key, query)", True),
        ("seen = Less(key, query)", False),
        ("seen = GreaterOrEqual(key, query)", False),
        ("a = LessOrEqual(key, query) b = Greater(key, oldest) seen = And(a, b)", False),
    ],
)
def test_causal_masks_are_told_from_others(seen: str, causal: bool) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 18]>
    g (int64[B, T] attention_mask, float[B, H, T, T] product) => (float[B, H, T, T] scores)
    <int64 zero = {{0}}, int64 one = {{1}}, int64[1] column = {{1}}, int64 window = {{9}},
     float half = {{0.5}}, float none = {{0.0}}, float never = {{-30000.0}}>
    {{
        shape = Shape<start = 1>(attention_mask)
        length = Squeeze(shape)
        key = Range(zero, length, one)
        query = Unsqueeze(key, column)
        oldest = Sub(query, window)
        {seen}
        mask = Where(seen, none, never)
        scaled = Mul(product, half)
        scores = Add(scaled, mask)
    }}"""
    graph = ir.from_proto(onnx.parser.parse_model(text)).graph
    product = next(value for value in graph.inputs if value.name == "product")
    assert is_causal(graph.outputs[0], product, 0.5) is causal
    assert not is_causal(graph.outputs[0], product, 0.25)
