"""LoRA put into a graph computes what PEFT computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_checkpoints import VOCABULARY
from transformers import AutoModelForCausalLM

from edgezo_export.adapters.base import adapt, write_adapted
from edgezo_export.adapters.lora import add_lora, without_lora
from edgezo_export.verify import reference, sample_batch
from edgezo_runtime import adapter_init
from edgezo_runtime.batch import Batch, TokenLoss
from edgezo_runtime.bundle import Bundle, Parameter, open_bundle
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import InputError
from edgezo_runtime.session import Session
from edgezo_runtime.weights import Weights

BUNDLES = Callable[[str], Path]
RANDOM = np.random.default_rng(0)


def outputs(bundle: Bundle, first: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> list:
    """Runs the runtime's own session with the adapter's tensors at `first`."""
    weights = Weights(bundle)
    weights.begin(first)
    weights.load()
    session = Session(bundle, weights.arrays(), weights.arena.views.keys(), CpuDevice(1))
    found = session.forward(Batch(**batch, objective=TokenLoss(1)))
    return [found["logprobs"], found["candidate_logits"]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("opt", {}),
        ("opt", {"target": ["all-linear"], "rank": 3, "rslora": True}),
        ("llama_tied", {"rank": 4, "alpha": 3.0}),
        ("llama_untied", {"target": ["all-linear"]}),
        ("gpt2", {}),
        ("gpt2", {"target": ["all-linear"], "rank": 2}),
        ("llama_tied", {"target": ["model.layers.1.*_proj"]}),
        ("qwen2", {}),
        ("mistral_window", {"target": ["all-linear"]}),
    ],
)
def test_the_graph_computes_what_peft_does(
    name: str, settings: dict, bundle_folder: BUNDLES
) -> None:
    bundle = adapt(open_bundle(bundle_folder(name)), {"kind": "lora", **settings})
    adapter = bundle.manifest.adapter
    added = [p for p in bundle.manifest.parameters if p.init]
    first = {p.name: RANDOM.standard_normal(p.shape, np.float32) / 8 for p in added}
    targets = settings.get("target", adapter["target"])
    if targets == ["model.layers.1.*_proj"]:
        targets = r"model\.layers\.1\..*_proj"
    config = LoraConfig(
        r=adapter["rank"],
        lora_alpha=adapter["alpha"],
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_rslora=adapter["rslora"],
        fan_in_fan_out=adapter["fan_in_fan_out"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(bundle.folder), config).eval()
    theirs = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    named = {f"base_model.model.{n}".replace(".weight", ".default.weight"): n for n in first}
    assert set(named) == set(theirs)
    with torch.no_grad():
        for key, ours in named.items():
            theirs[key].copy_(torch.from_numpy(first[ours]))
    batch = sample_batch(VOCABULARY, 3, 11)
    expected = reference(model, batch)  # type: ignore[arg-type]
    plain = outputs(open_bundle(bundle.folder), {}, batch)
    for ours, want, base in zip(outputs(bundle, first, batch), expected, plain, strict=True):
        assert np.abs(want - base).max() > 0.1
        np.testing.assert_allclose(ours, want, atol=1e-4, rtol=1e-5)


def test_a_new_adapter_changes_nothing(bundle_folder: BUNDLES) -> None:
    base = open_bundle(bundle_folder("opt"))
    bundle = adapt(base, {"kind": "lora"})
    first = adapter_init.draw([p for p in bundle.manifest.parameters if p.init], seed=3)
    batch = sample_batch(VOCABULARY, 2, 7)
    for ours, before in zip(outputs(bundle, first, batch), outputs(base, {}, batch), strict=True):
        np.testing.assert_array_equal(ours, before)


def test_the_same_settings_give_the_same_bundle(bundle_folder: BUNDLES, tmp_path: Path) -> None:
    base = open_bundle(bundle_folder("llama_tied"))
    adapted = adapt(base, {"kind": "lora", "rank": 2})
    assert adapt(base, adapted.manifest.adapter).digest == adapted.digest
    assert adapt(base, {"kind": "lora", "rank": 3}).digest != adapted.digest
    write_adapted(adapted, tmp_path / "lora.edgezo")
    written = open_bundle(tmp_path / "lora.edgezo")
    assert written.digest == adapted.digest
    assert written.manifest == adapted.manifest
    assert written.read_graph() == adapted.read_graph()
    assert written.weights.read_bytes() == base.weights.read_bytes()
    with pytest.raises(InputError, match="lora adapter already"):
        adapt(written, {"kind": "lora"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"target": ["query"]}, "'query' matches no linear layer"),
        ({"target": ["embed_tokens"]}, "'embed_tokens' matches no linear layer"),
        ({"fan_in_fan_out": True}, r"\(in, out\)"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str, bundle_folder: BUNDLES) -> None:
    with pytest.raises(InputError, match=message):
        adapt(open_bundle(bundle_folder("llama_tied")), {"kind": "lora", **settings})


# Graphs from elsewhere: each way in which a graph may multiply with a weight.

FORMS = {
    "matmul": ("(in, out)", "y = MatMul(x, W)"),
    "transposed": ("(out, in)", "t = Transpose<perm=[1,0]>(W) y = MatMul(x, t)"),
    "gemm": ("(in, out)", "y = Gemm<alpha=0.5>(x, W, b)"),
    "gemm_transposed": ("(out, in)", "y = Gemm<transB=1>(x, W, b)"),
    "twice": ("(in, out)", "h = MatMul(x, W) x2 = Mul(x, x) g = MatMul(x2, W) y = Add(h, g)"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_every_form_of_a_linear_layer(form: str, dtype: str) -> None:
    layout, body = FORMS[form]
    shape = (5, 3) if layout == "(in, out)" else (3, 5)
    text = f"""<ir_version: 10, opset_import: ["" : 18]>
    g ({dtype}[n, 5] x, {dtype}[{shape[0]}, {shape[1]}] W, {dtype}[3] b) => ({dtype}[n, 3] y)
    {{ {body} }}"""
    model = ir.from_onnx_text(text)
    weight = Parameter("W", shape, dtype if dtype == "float16" else "float32", "linear")
    added, settings = add_lora(model, [weight], rank=2, alpha=3.0, target=["W"])
    assert [p.shape for p in added] == [(2, 5), (3, 2)]
    assert settings["fan_in_fan_out"] is (layout == "(in, out)")
    numpy_type = np.float32 if dtype == "float" else np.float16
    feeds = {
        "x": RANDOM.standard_normal((4, 5)).astype(numpy_type),
        "W": RANDOM.standard_normal(shape).astype(numpy_type),
        "b": RANDOM.standard_normal(3).astype(numpy_type),
        **{p.name: RANDOM.standard_normal(p.shape).astype(np.float32) for p in added},
    }

    def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
        names = {node.name for node in session.get_inputs()}
        found = session.run(["y"], {k: v for k, v in feeds.items() if k in names})[0]
        return np.asarray(found)

    update = 1.5 * feeds["W.lora_B.weight"] @ feeds["W.lora_A.weight"]
    merged = feeds["W"] + (update.T if settings["fan_in_fan_out"] else update)
    plain = ir.from_onnx_text(text)
    wanted = run(plain, feeds | {"W": merged.astype(numpy_type)})
    tolerance = 1e-4 if dtype == "float" else 5e-2
    np.testing.assert_allclose(run(model, feeds), wanted, atol=tolerance, rtol=tolerance)
    without_lora(model)
    assert [value.name for value in model.graph.inputs] == ["x", "W", "b"]
    np.testing.assert_array_equal(run(model, feeds), run(plain, feeds))


def test_a_weight_with_another_use_is_left_alone() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, 5] x, float[5, 5] W) => (float[n, 5] y)
        { h = MatMul(x, W) s = ReduceSum<keepdims=0>(W) y = Mul(h, s) }"""
    )
    with pytest.raises(InputError, match="has no linear layer for LoRA"):
        add_lora(model, [Parameter("W", (5, 5), "float32", "linear")], target=["W"])
