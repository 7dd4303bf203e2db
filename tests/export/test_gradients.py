"""Gradient graphs against torch's own gradients, and on graphs too small to hide a mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from foreign_files import classifier, save, with_weights
from tiny_checkpoints import tiny_model
from tiny_families import tiny_family

from edgezo_export.architectures import architecture_of
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_export.gradients.reverse import add_gradients
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_export.verify import sample_batch
from edgezo_runtime.batch import ArrayBatch, RowLoss
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.graph import cotangent_of, gradient_of
from edgezo_runtime.model import load

CAUSAL = ("gpt2", "qwen2")
MASKED = ("bert",)


def _run(model: ir.Model, feeds: Mapping[str, np.ndarray], outputs: list[str]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(outputs, dict(feeds)))


@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_gradients_are_torchs(name: str) -> None:
    model = tiny_model(name) if name in CAUSAL else tiny_family(name)
    architecture = architecture_of(type(model).__name__)
    assert architecture is not None
    graph = architecture.export(model)
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
        ours = _run(graph, {**arrays, **feeds, **given}, [gradient_of(key) for key in weights])
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


def _scalar(text: str) -> ir.Model:
    """Returns the model of one function of `w`, written as ONNX text."""
    header = '<ir_version: 9, opset_import: ["" : 18]>'
    return ir.from_proto(onnx.parser.parse_model(f"{header} graph {text}"))


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
    "rows": ("y = Gather(w, twice)", lambda w: w[[1, 0, 1]]),
    "columns": ("y = Gather<axis=1>(w, table)", lambda w: w[:, [[3, 3], [0, 1]]]),
    "joined": ("n = Neg(w) y = Concat<axis=1>(n, w, w)", lambda w: torch.cat([-w, w, w], 1)),
    "parts": ("a, b = Split<axis=1, num_outputs=2>(w) y = Relu(b)", lambda w: w[:, 2:].relu()),
    "broadcast": ("a = Gather(w, zero) y = Mul(a, w)", lambda w: w[0] * w),
    "divided": ("a = ReduceSum(w, one) y = Div(w, a)", lambda w: w / w.sum(1, keepdim=True)),
    "chosen": ("c = Greater(w, half) y = Where(c, w, half)", lambda w: w.where(w > 0.5, 0.5)),
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
    float two = {2.0}, int64[1] four_ = {4},
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
    model = _scalar(f"(float{shape} w) => (float y) <{_CONSTANTS}> {{ {nodes} }}")
    model.graph.outputs[0].shape = None
    add_gradients(model, ["w"])
    weight = torch.tensor([[0.5, -1.2, 0.3, 0.9], [1.5, 0.25, -0.7, 2.0]], requires_grad=True)
    output = function(weight)
    cotangent = torch.arange(1.0, output.numel() + 1).reshape(output.shape) / 10
    output.backward(cotangent)
    feeds = {"w": weight.detach().numpy(), cotangent_of("y"): cotangent.numpy()}
    (ours,) = _run(model, feeds, [gradient_of("w")])
    assert weight.grad is not None
    np.testing.assert_allclose(ours, weight.grad.numpy(), rtol=2e-5, atol=1e-6)


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
    add_to_bundle(open_bundle(tmp_path / "plain.edgezo"), tmp_path / "mlp.edgezo")
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


def test_what_has_no_rule_in_a_file(tmp_path: Path) -> None:
    onnx_to_bundle(save(classifier(opset=16), tmp_path / "c.onnx"), tmp_path / "c.edgezo")
    with pytest.raises(InputError, match="GlobalAveragePool: tune the model with mezo or es"):
        add_to_bundle(open_bundle(tmp_path / "c.edgezo"), tmp_path / "out.edgezo")
    assert not (tmp_path / "out.edgezo").exists()


def test_a_node_without_a_rule_is_named() -> None:
    model = _scalar("(float[4] w) => (float[4] y) { a = Neg(w) y = HardSwish(a) }")
    list(model.graph)[1].name = "odd"
    with pytest.raises(InputError, match=r"no gradient of node 'odd', HardSwish"):
        add_gradients(model, ["w"])


def test_integers_have_no_gradient() -> None:
    model = _scalar("(int64[4] w) => (float[4] y) { y = Cast<to=1>(w) }")
    with pytest.raises(InputError, match="w is INT64, and only float32 weights have gradients"):
        add_gradients(model, ["w"])
