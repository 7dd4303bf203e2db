"""The end of a lean graph, taken off and computed by the device, with a stand-in for the card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import onnx
import pytest
from tiny_checkpoints import VOCABULARY

from edgezo_runtime.batch import Batch, CandidateLoss, TokenLoss
from edgezo_runtime.bundle import GRAPH, LEAN, Bundle, open_bundle
from edgezo_runtime.devices import cuda_vocabulary, open_device
from edgezo_runtime.devices.cuda_vocabulary import VocabularyPart
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.session import Session
from edgezo_runtime.vocabulary import take_off
from edgezo_runtime.weights import Weights

FAMILIES = ("qwen2_window", "opt", "gpt2")
UPPER = "*[sh].1.*"
Bundles = Callable[[str], Path]


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch)
    monkeypatch.setattr(cuda_vocabulary, "_BYTES", 3 * 4 * VOCABULARY)  # three rows at once


def session_on(name: str, bundle: Bundle, tune: str = "full") -> Session:
    weights = Weights(bundle, tune, open_device(name, 1))
    weights.load()
    return Session(bundle, weights.arrays(), weights.arena.views.keys(), weights.device)


def tokens(rows: int, length: int, seed: int, objective: Any = None) -> Batch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY, (rows, length))
    places = np.arange(rows * length).reshape(rows, length)[:, :-1].ravel()
    mask = np.ones_like(ids)
    return Batch(ids, mask, places, ids[:, 1:].ravel(), np.arange(2), objective or TokenLoss(rows))


@pytest.mark.parametrize("tune", ["full", UPPER])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_losses_are_the_cpu_s(bundle_folder: Bundles, family: str, tune: str) -> None:
    bundle = open_bundle(bundle_folder(family))
    on_card, on_host = (session_on(device, bundle, tune) for device in ("cuda", "cpu"))
    assert isinstance(on_card._suffix, VocabularyPart)
    assert (on_card._prefix is None) == (tune == "full")
    for turn, shape in enumerate([(2, 5), (3, 4), (2, 5), (2, 5), (1, 2), (3, 4), (4, 9), (4, 9)]):
        batch = tokens(*shape, turn)
        found, expected = on_card.forward(batch), on_host.forward(batch)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-5)
        late = on_card.stay(batch)
        assert late is not None
        loss = batch.objective.loss(expected)
        assert float(late.operands[0][0]) == pytest.approx(loss, rel=2e-6)


def test_what_nobody_asks_for_is_not_computed(
    bundle_folder: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_on("cuda", open_bundle(bundle_folder("opt")))
    monkeypatch.setattr(cuda_vocabulary.Logprobs, "__call__", None)
    batch = tokens(2, 2, 0, CandidateLoss(np.array([1, 0])))
    assert session.stay(batch) is not None
    with pytest.raises(EdgezoError, match="NoneType"):
        session.forward(batch)


@pytest.mark.parametrize("target", [-1, VOCABULARY])
def test_a_target_that_is_no_token_is_named(bundle_folder: Bundles, target: int) -> None:
    session, batch = session_on("cuda", open_bundle(bundle_folder("opt"))), tokens(2, 3, 0)
    batch.targets[1] = target
    with pytest.raises(InputError, match=f"targets must be 4 tokens from 0 to {VOCABULARY - 1}"):
        session.stay(batch)


def test_recordings_of_all_shapes_leave_hidden_states_in_one_place(bundle_folder: Bundles) -> None:
    session = session_on("cuda", open_bundle(bundle_folder("opt")))
    for shape in [(4, 9), (2, 5), (3, 9)] * 2:
        session.forward(tokens(*shape, 0))
    part = session._suffix
    assert isinstance(part, VocabularyPart)
    recordings = part._body._recordings.values()
    assert len(recordings) == 3
    assert len({one.outputs[part._end.hidden].data.ptr for one in recordings}) == 1


def test_other_ends_stay_in_the_graph(bundle_folder: Bundles) -> None:
    """One that scales its logits, one that reads another weight too, and one of a plain graph."""
    bundle = open_bundle(bundle_folder("opt"))
    lean = bundle.read_graph(LEAN)
    assert take_off(lean) is not None
    assert take_off(bundle.read_graph(GRAPH)) is None
    for change in (_scale, _bias, _cap, _weigh, _over_rows):
        model = onnx.load_model_from_string(lean)
        change(model.graph)
        assert take_off(model.SerializeToString()) is None, change.__name__


def _products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    made = {name: node for node in graph.node for name in node.output}
    ends = [made[node.input[0]] for node in graph.node if node.op_type == "LogSoftmax"]
    return [made[end.input[0]] if end.op_type == "Cast" else end for end in ends]


def _scale(graph: onnx.GraphProto) -> None:
    for product in _products(graph):
        product.attribute.append(onnx.helper.make_attribute("alpha", 0.5))


def _bias(graph: onnx.GraphProto) -> None:
    bias = next(p.name for p in graph.input if p.name.endswith("fc1.bias"))
    _after(graph, "Add", bias)


def _cap(graph: onnx.GraphProto) -> None:
    _after(graph, "Tanh")


def _weigh(graph: onnx.GraphProto) -> None:
    """What comes after the log-softmax is computed with."""
    graph.node[-1].output[0] = "plain"
    twice = onnx.helper.make_node("Add", ["plain", "plain"], ["logprobs"])
    graph.node.append(twice)


def _over_rows(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "LogSoftmax").attribute[0].i = 0


def _after(graph: onnx.GraphProto, operator: str, *more: str) -> None:
    """Puts a node behind the product of the first piece."""
    product = _products(graph)[0]
    place = list(graph.node).index(product)
    node = onnx.helper.make_node(operator, ["before", *more], [product.output[0]])
    product.output[0] = "before"
    graph.node.insert(place + 1, node)
