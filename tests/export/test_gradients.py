"""Gradient and tangent graphs against torch's, and on graphs too small to hide a mistake."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from foreign_files import classifier, save, with_weights
from gradient_graphs import graph_of, run
from tiny_checkpoints import tiny_model
from tiny_families import tiny_family
from torch.nn.utils.stateless import _reparametrize_module

from edgezo_export.architectures import Architecture, architecture_of
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_export.gradients.reverse import add_gradients
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_export.tangents.forward import add_tangents
from edgezo_export.verify import sample_batch
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.bundle import TANGENTS, open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import Graph, cotangent_of, gradient_of, tangent_of
from edgezo_runtime.model import load
from edgezo_runtime.noise import Direction

CAUSAL = ("gpt2", "llama_untied", "opt", "qwen2")
MASKED = ("bert", "roberta")


@functools.cache
def _exported(name: str) -> tuple[Any, Architecture, bytes]:
    """Returns a tiny model, what edgezo knows of its kind, and its graph as an ONNX file."""
    model = tiny_model(name) if name in CAUSAL else tiny_family(name)
    architecture = architecture_of(type(model).__name__)
    assert architecture is not None
    return model, architecture, ir.to_proto(architecture.export(model)).SerializeToString()


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_gradients_are_torchs(name: str) -> None:
    model, architecture, exported = _exported(name)
    graph = ir.from_proto(onnx.load_from_string(exported))
    weights = dict(model.named_parameters())
    add_gradients(graph, list(weights))
    arrays = {key: weight.detach().numpy() for key, weight in weights.items()}
    rng = np.random.default_rng(0)
    for rows, length in ((3, 11), (1, 5)):
        config = model.config
        feeds = sample_batch(
            config.vocab_size, rows, length, form=architecture.form(model), pad=config.pad_token_id
        )
        shapes = {
            "logprobs": (len(feeds["targets"]),),
            "candidate_logits": (len(feeds["targets"]), len(feeds["candidates"])),
        }
        cotangents = {
            key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()
        }
        given = {cotangent_of(key): array for key, array in cotangents.items()}
        ours = run(graph, {**arrays, **feeds, **given}, [gradient_of(key) for key in weights])
        tensors = {key: torch.from_numpy(array) for key, array in feeds.items()}
        logits = architecture.logits(model, tensors)
        logprobs = logits.log_softmax(1).gather(1, tensors["targets"][:, None])[:, 0]
        model.zero_grad()
        outputs = {"logprobs": logprobs, "candidate_logits": logits[:, tensors["candidates"]]}
        loss = sum((outputs[k] * torch.from_numpy(c)).sum() for k, c in cotangents.items())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        theirs = {key: weight.grad for key, weight in weights.items()}
        largest = max(float(grad.norm()) for grad in theirs.values() if grad is not None)
        for key, gradient in zip(weights, ours, strict=True):
            expected = theirs[key]
            assert expected is not None
            error = np.linalg.norm(gradient - expected.numpy())
            # A bias of keys has a gradient of 0, of which either finds its own roundings.
            assert error <= 1e-5 * float(expected.norm()) + 1e-7 * largest, key


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_tangents_are_torchs(name: str) -> None:
    """Those that torch finds in float64."""
    model, architecture, exported = _exported(name)
    graph = ir.from_proto(onnx.load_from_string(exported))
    weights = {key: weight.detach() for key, weight in model.named_parameters()}
    add_tangents(graph, list(weights))
    generator = torch.Generator().manual_seed(0)
    tangents = {k: torch.randn(w.shape, generator=generator) for k, w in weights.items()}
    given = {tangent_of(key): tangent.numpy() for key, tangent in tangents.items()}
    arrays = {key: weight.numpy() for key, weight in weights.items()}
    double = copy.deepcopy(model).double()
    outputs = ["logprobs", "candidate_logits"]
    for rows, length in ((3, 11), (1, 5)):
        config = model.config
        feeds = sample_batch(
            config.vocab_size, rows, length, form=architecture.form(model), pad=config.pad_token_id
        )
        ours = run(graph, {**arrays, **feeds, **given}, [*outputs, *map(tangent_of, outputs)])
        tensors = {key: torch.from_numpy(array) for key, array in feeds.items()}

        def forward(
            weights: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor] = tensors
        ) -> tuple[torch.Tensor, torch.Tensor]:
            with _reparametrize_module(double, weights, tie_weights=True):
                logits = architecture.logits(double, tensors)
            logprobs = logits.log_softmax(1).gather(1, tensors["targets"][:, None])[:, 0]
            return logprobs, logits[:, tensors["candidates"]]

        values = ({k: w.double() for k, w in weights.items()},)
        theirs = torch.func.jvp(forward, values, ({k: t.double() for k, t in tangents.items()},))
        for found, expected in zip(ours, [*theirs[0], *theirs[1]], strict=True):
            error = np.linalg.norm(found - expected.numpy())
            assert error <= 1e-5 * float(expected.norm())


_RULES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "pow": ("y = Pow(w, three)", lambda w: w**3),
    "gelu": ("y = Erf(w)", torch.erf),
    "reciprocal": ("y = Reciprocal(w)", torch.reciprocal),
    "log": ("a = Abs(w) y = Log(a)", lambda w: w.abs().log()),
    "cosine": ("a = Cos(w) b = Sin(a) y = Exp(b)", lambda w: w.cos().sin().exp()),
    "mean": ("y = ReduceMean<keepdims=0>(w, one)", lambda w: w.mean(1)),
    "mean of all": ("y = ReduceMean<keepdims=0>(w)", lambda w: w.mean()),
    "sum": ("y = ReduceSum(w, one)", lambda w: w.sum(1, keepdim=True)),
    "log_softmax": ("y = LogSoftmax<axis=0>(w)", lambda w: w.log_softmax(0)),
    "log_sum_exp": (
        "y = ReduceLogSumExp<keepdims=0>(w, one)",
        lambda w: w.logsumexp(1),
    ),
    "norm": (
        "s = ReduceSum<keepdims=0>(w, one) y = LayerNormalization(w, w0, s0)",
        lambda w: torch.nn.functional.layer_norm(w, (4,)) * 3,
    ),
    "backwards": ("y = Slice(w, three_, zero_, one, minus_)", lambda w: w.flip(1)[:, :3]),
    "strided": ("y = Slice(w, zero_, three_, one, two_)", lambda w: w[:, :3:2]),
    "halves": (
        "a = Slice(w, zero_, two_, one) b = Slice(w, two_, four_, one) n = Neg(b) "
        "r = Concat<axis=1>(n, a) p = Mul(r, row) y = Add(p, w)",
        lambda w: torch.cat([-w[:, 2:], w[:, :2]], 1) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + w,
    ),
    "overlapping": (
        "a = Slice(w, zero_, three_, one) b = Slice(w, one, four_, one) y = Mul(a, b)",
        lambda w: w[:, :3] * w[:, 1:],
    ),
    "silu": ("s = Sigmoid(w) p = Mul(s, w) y = Mul(p, w)", lambda w: torch.sigmoid(w) * w * w),
    "rms": (
        "s = Pow(w, two) m = ReduceMean(s, one) r = Sqrt(m) d = Div(w, r) y = Add(d, s)",
        lambda w: w / (w**2).mean(1, keepdim=True).sqrt() + w**2,
    ),
    "mean of squares with an axis more": (
        "g = Gather(w, zero) s = Pow(g, squared) y = ReduceMean(s, one)",
        lambda w: (w[:1] ** 2).mean(1, keepdim=True),
    ),
    "rows": ("y = Gather(w, twice)", lambda w: w[[1, 0, 1]]),
    "columns": ("y = Gather<axis=1>(w, table)", lambda w: w[:, [[3, 3], [0, 1]]]),
    "joined": ("n = Neg(w) y = Concat<axis=1>(n, w, w)", lambda w: torch.cat([-w, w, w], 1)),
    "parts": ("a, b = Split<axis=1, num_outputs=2>(w) y = Relu(b)", lambda w: w[:, 2:].relu()),
    "broadcast": ("a = Gather(w, zero) y = Mul(a, w)", lambda w: w[0] * w),
    "divided": ("a = ReduceSum(w, one) y = Div(w, a)", lambda w: w / w.sum(1, keepdim=True)),
    "chosen": ("c = Greater(w, half) y = Where(c, w, half)", lambda w: w.where(w > 0.5, 0.5)),
    "larger": (
        "a = Max(w, row) b = Max(half, w) y = Mul(a, b)",
        lambda w: w.maximum(torch.tensor([1.0, 2.0, 3.0, 4.0])) * w.clamp(min=0.5),
    ),
    "smaller": (
        "f = Gather(w, twice) g = Gather(w, zero) y = Min(f, g)",
        lambda w: w[[1, 0, 1]].minimum(w[0]),
    ),
    "clipped": (
        "a = Clip(w, , half) b = Clip(a, minus) y = Mul(b, w)",
        lambda w: w.clamp(-1, 0.5) * w,
    ),
    "hard_sigmoid": (
        "y = HardSigmoid<alpha=0.4, beta=0.6>(w)",
        lambda w: (0.4 * w + 0.6).clamp(0, 1),
    ),
    "largest": ("y = ReduceMax<keepdims=0>(w, one)", lambda w: w.amax(1)),
    "smallest of equals": (
        "a = Relu(w) y = ReduceMin(a)",
        lambda w: w.relu().amin((0, 1), keepdim=True),
    ),
    "expanded": (
        "a = Gather<axis=1>(w, zero_) y = Expand(a, six)",
        lambda w: w[:, :1].expand(2, 6),
    ),
    "product": ("t = Transpose(w) y = MatMul(w, t)", lambda w: w @ w.T),
    "gemm": (
        "y = Gemm<transA=1, transB=0, alpha=2.0, beta=3.0>(w, w, row)",
        lambda w: 2 * w.T @ w + 3 * torch.tensor([1.0, 2.0, 3.0, 4.0]),
    ),
}
_CONSTANTS = """
    float two = {2.0}, float[1, 1] squared = {2.0}, float minus = {-1.0}, int64[1] four_ = {4},
    float three = {3.0}, float half = {0.5}, int64[1] one = {1}, int64 zero = {0},
    int64[1] zero_ = {0}, int64[1] three_ = {3}, int64[1] minus_ = {-1}, int64[1] two_ = {2},
    int64[3] twice = {1, 0, -1}, int64[2,2] table = {3, 3, 0, 1}, int64[2] six = {2, 6},
    float[4] row = {1.0, 2.0, 3.0, 4.0}, float[4] w0 = {3.0, 3.0, 3.0, 3.0},
    float[4] s0 = {0.0, 0.0, 0.0, 0.0}
"""


@pytest.mark.parametrize("shape", ["[2,4]", "[n,m]"])
@pytest.mark.parametrize("name", _RULES)
def test_rules_are_torchs(name: str, shape: str) -> None:
    """Each rule on a weight of fixed sizes, and of sizes that are known when it runs."""
    text, function = _RULES[name]
    if name == "norm" and shape == "[n,m]":
        pytest.skip("the norm's axis has a fixed size everywhere")
    nodes = "\n".join(text.replace(") ", ")\n").split("\n"))
    model = graph_of(f"(float{shape} w) => (float y) <{_CONSTANTS}> {{ {nodes} }}")
    model.graph.outputs[0].shape = None
    add_gradients(model, ["w"])
    weight = torch.tensor([[0.5, -1.2, 0.3, 0.9], [1.5, 0.25, -0.7, 2.0]], requires_grad=True)
    output = function(weight)
    cotangent = torch.arange(1.0, output.numel() + 1).reshape(output.shape) / 10
    output.backward(cotangent)
    feeds = {"w": weight.detach().numpy(), cotangent_of("y"): cotangent.numpy()}
    (ours,) = run(model, feeds, [gradient_of("w")])
    assert weight.grad is not None
    np.testing.assert_allclose(ours, weight.grad.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", ["[2,4]", "[n,m]"])
@pytest.mark.parametrize("name", _RULES)
def test_tangent_rules_are_torchs(name: str, shape: str) -> None:
    """On the sum of two weights, of which one has no tangent: it is given as zeros, or left out."""
    text, function = _RULES[name]
    if name == "norm" and shape == "[n,m]":
        pytest.skip("the norm's axis has a fixed size everywhere")
    nodes = "\n".join(f"w = Add(u, v) {text}".replace(") ", ")\n").split("\n"))
    inputs = f"float{shape} u, float{shape} v"
    model = graph_of(f"({inputs}) => (float y) <{_CONSTANTS}> {{ {nodes} }}")
    model.graph.outputs[0].shape = None
    add_tangents(model, ["u", "v"])
    weight = torch.tensor([[0.5, -1.2, 0.3, 0.9], [1.5, 0.25, -0.7, 2.0]])
    tangent = torch.tensor([[1.0, -2.0, 0.5, 0.25], [-1.5, 1.0, 2.0, -0.5]])
    expected = torch.func.jvp(function, (weight,), (tangent,))[1]
    zeros = np.zeros((2, 4), np.float32)
    feeds = {"u": weight.numpy(), "v": zeros, "u.tangent": tangent.numpy()}
    (ours,) = run(model, feeds | {"v.tangent": zeros}, ["y.tangent"])
    np.testing.assert_allclose(ours, expected.numpy(), rtol=2e-5, atol=1e-6)
    graph = Graph(ir.to_proto(model).SerializeToString()).without(["v.tangent"])
    piece = graph.piece(["y.tangent"], ())
    session = ort.InferenceSession(piece.model)
    (alone,) = session.run(None, {own: feeds[name] for name, own in piece.inputs})
    np.testing.assert_allclose(np.asarray(alone), expected.numpy(), rtol=2e-5, atol=1e-6)


def test_a_weight_without_a_tangent_costs_nothing() -> None:
    """Where a weight is broadcast, chosen or joined, the others' tangents are still whole."""
    nodes = """
        a = Add(u, v)
        b = Sub(v, a)
        c = Greater(u, half)
        d = Where(c, v, b)
        e = Unsqueeze(v, zero_)
        f = Concat<axis=0>(d, e, u)
        y = LayerNormalization(f, v, v)
    """
    model = graph_of(f"(float[n,4] u, float[4] v) => (float[k,4] y) <{_CONSTANTS}> {{ {nodes} }}")
    add_tangents(model, ["u", "v"])
    graph = Graph(ir.to_proto(model).SerializeToString())

    def function(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        d = torch.where(u > 0.5, v, v - (u + v))
        return torch.nn.functional.layer_norm(torch.cat([d, v[None], u]), (4,), v, v)

    values = {"u": torch.randn(3, 4), "v": torch.randn(4)}
    feeds = {name: value.numpy() for name, value in values.items()}
    for left in ("u", "v"):
        other = "v" if left == "u" else "u"
        tangents = {left: torch.zeros_like(values[left]), other: torch.randn(values[other].shape)}
        directions = (tangents["u"], tangents["v"])
        expected = torch.func.jvp(function, tuple(values.values()), directions)[1]
        piece = graph.without([tangent_of(left)]).piece(["y.tangent"], ())
        given = feeds | {tangent_of(other): tangents[other].numpy()}
        session = ort.InferenceSession(piece.model)
        (found,) = session.run(None, {own: given[name] for name, own in piece.inputs})
        np.testing.assert_allclose(np.asarray(found), expected.numpy(), rtol=1e-4, atol=1e-5)
        assert len(graph.without([tangent_of(left)]).nodes) < len(graph.nodes)


MLP = """
<ir_version: 8, opset_import: ["" : 16]>
mlp (float[N, 3] x) => (float[N, 4] scores) {
    hidden = MatMul(x, first)
    shifted = Add(hidden, bias)
    bent = Tanh(shifted)
    mean = ReduceMean<axes=[1]>(bent)
    centred = Sub(bent, mean)
    scores = Gemm<transB=1>(centred, second)
}
"""


def test_an_onnx_file_has_gradients_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"first": (3, 8), "bias": (8,), "second": (4, 8)}
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    source = save(with_weights(MLP, weights), tmp_path / "mlp.onnx")
    onnx_to_bundle(source, tmp_path / "plain.edgezo")
    add_to_bundle(open_bundle(tmp_path / "plain.edgezo"), tmp_path / "gradients.edgezo")
    add_to_bundle(open_bundle(tmp_path / "gradients.edgezo"), tmp_path / "mlp.edgezo", TANGENTS)
    model = load(tmp_path / "mlp.edgezo", threads=1)
    x, labels = rng.standard_normal((5, 3)).astype(np.float32), np.array([0, 1, 2, 3, 0])
    found: dict[str, np.ndarray] = {}
    batch = ArrayBatch({"x": x}, labels, RowLoss(labels, "scores"))
    loss = model.descend(batch, list(shapes), found.__setitem__, False)
    tensors = {n: torch.tensor(w, requires_grad=True) for n, w in weights.items()}
    bent = torch.tanh(torch.from_numpy(x) @ tensors["first"] + tensors["bias"])
    scores = (bent - bent.mean(1, keepdim=True)) @ tensors["second"].T
    expected = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(found[name], np.asarray(tensor.grad), rtol=1e-4, atol=1e-6)
    direction = Direction(0, 1)
    z = direction.draw(np, model.arena.size)
    starts = model.arena.noise_offsets
    along = sum(float(g.reshape(-1) @ z(starts[n], starts[n] + g.size)) for n, g in found.items())
    assert model.derivative(batch, direction) == pytest.approx((loss, along), rel=1e-5)


def test_what_has_no_rule_in_a_file(tmp_path: Path) -> None:
    source = classifier(end="bent = Selu(scores)", output="bent")
    onnx_to_bundle(save(source, tmp_path / "c.onnx"), tmp_path / "c.edgezo")
    with pytest.raises(InputError, match="Selu: tune the model with mezo or es"):
        add_to_bundle(open_bundle(tmp_path / "c.edgezo"), tmp_path / "out.edgezo")
    assert not (tmp_path / "out.edgezo").exists()


@pytest.mark.parametrize("add", [add_gradients, add_tangents])
def test_a_node_without_a_rule_is_named(add: Callable[[ir.Model, list[str]], None]) -> None:
    model = graph_of("(float[4] w) => (float[4] y) { a = Neg(w) y = HardSwish(a) }")
    list(model.graph)[1].name = "odd"
    with pytest.raises(InputError, match=r"no gradient of node 'odd', HardSwish"):
        add(model, ["w"])


def test_integers_have_no_gradient() -> None:
    model = graph_of("(int64[4] w) => (float[4] y) { y = Cast<to=1>(w) }")
    with pytest.raises(InputError, match="w is INT64, and only float32 weights have gradients"):
        add_gradients(model, ["w"])


@pytest.mark.parametrize("add", [add_gradients, add_tangents])
@pytest.mark.parametrize("dtype", [10, 11, 16])
def test_what_computes_in_another_dtype_is_named(
    add: Callable[[ir.Model, list[str]], None], dtype: int
) -> None:
    """As an adapter in float32 over a model in float16 does: its derivative would be lost there."""
    nodes = f"a = Cast<to={dtype}>(w) b = Mul(a, a) y = Cast<to=1>(b)"
    model = graph_of(f"(float[4] w) => (float[4] y) {{ {nodes} }}")
    next(iter(model.graph)).name = "odd"
    with pytest.raises(InputError, match=r"no gradient of node 'odd', Cast, in B?(FLOAT16|DOUBLE)"):
        add(model, ["w"])
