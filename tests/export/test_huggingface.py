"""Hugging Face checkpoints become bundles, or one clear sentence."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import MODELS, VOCABULARY, misread, tiny_model
from transformers import AutoModelForCausalLM

from edgezo_export.huggingface import checkpoint_to_bundle
from edgezo_export.lean.edit import operand
from edgezo_export.verify import GraphRunner, check_mutations, check_parity
from edgezo_runtime.bundle import open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.files import sha256


def edited(source: Path, folder: Path, **changes: object) -> Path:
    """Copies a checkpoint and changes its config."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_is_a_hugging_face_checkpoint(
    name: str, bundle_folder: Callable[[str], Path], checkpoint: Callable[[str], Path]
) -> None:
    folder = bundle_folder(name)
    manifest = open_bundle(folder).manifest
    assert manifest.files["model.safetensors"] == sha256(folder / "model.safetensors")
    assert manifest.task == {"name": "classify"}
    assert manifest.context_length == 64
    assert "torch" in manifest.versions
    assert manifest.files["lean.onnx"] == sha256(folder / "lean.onnx")
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, checkpoint(name)))
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)
    runner = GraphRunner(open_bundle(folder))
    check_parity(runner, AutoModelForCausalLM.from_pretrained(folder))
    check_mutations(runner, VOCABULARY)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_shards_are_widened(
    dtype: torch.dtype,
    bundle_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    model = tiny_model("llama_untied")
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(tmp_path / "half", max_shard_size="20KB")
    assert (tmp_path / "half" / "model.safetensors.index.json").is_file()
    # The graphs of the same model, so as not to export them again.
    graphs = bundle_folder("llama_untied")
    monkeypatch.setattr("edgezo_export.huggingface.find_graphs", lambda config: graphs)
    out = checkpoint_to_bundle(tmp_path / "half", tmp_path / "b.edgezo")
    weights = load_file(out / "model.safetensors")
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(weights[key], value.float().numpy())
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassification"),
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"architectures": ["NonesuchForCausalLM"]}, "'NonesuchForCausalLM', which transformers"),
        ({"architectures": ["OPTForCausalLM"]}, "'llama' makes LlamaForCausalLM"),
        ({"architectures": {"name": "LlamaForCausalLM"}}, "names architecture 'none'"),
        ({"num_attention_heads": 0}, "cannot make the model of .*ZeroDivisionError"),
    ],
)
def test_refused_checkpoints(
    changes: dict[str, object],
    message: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = edited(checkpoint("llama_tied"), tmp_path / "source", **changes)
    with pytest.raises(InputError, match=message):
        checkpoint_to_bundle(source, tmp_path / "b.edgezo")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (np.ones(32, np.int64), r"'model\.norm\.weight' of .* is int64; edgezo exports float32"),
        (np.ones(33, np.float32), r"'model\.norm\.weight' of .* is \[33\], .* says \[32\]"),
        (None, r"has no tensor 'model\.norm\.weight'"),
    ],
)
def test_wrong_weights_are_refused_before_the_graph_is_made(
    changed: np.ndarray | None,
    message: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = edited(checkpoint("llama_tied"), tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    del weights["model.norm.weight"]
    weights |= {} if changed is None else {"model.norm.weight": changed}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("edgezo_export.huggingface.save_graph", lambda *_: 1 / 0)
    with pytest.raises(InputError, match=message):
        checkpoint_to_bundle(source, tmp_path / "b.edgezo")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_pickles_are_never_read(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = edited(checkpoint("opt"), tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors only"):
        checkpoint_to_bundle(source, tmp_path / "b.edgezo")


def test_an_existing_folder_is_not_overwritten(
    checkpoint: Callable[[str], Path], bundle_folder: Callable[[str], Path]
) -> None:
    with pytest.raises(InputError, match="already exists"):
        checkpoint_to_bundle(checkpoint("opt"), bundle_folder("opt"))


def test_other_weights_fail_the_comparison(bundle_folder: Callable[[str], Path]) -> None:
    runner = GraphRunner(open_bundle(bundle_folder("llama_tied")))
    runner.bind("model.norm.weight", runner.weights["model.norm.weight"] * np.float32(1.01))
    with pytest.raises(EdgezoError, match="differs from transformers"):
        check_parity(runner, tiny_model("llama_tied"))


@pytest.mark.parametrize("layer", ["o_proj", "q_proj"])
def test_a_dead_weight_is_named(layer: str, bundle_folder: Callable[[str], Path]) -> None:
    bundle = open_bundle(bundle_folder("llama_tied"))
    dead, other = (f"model.layers.{i}.self_attn.{layer}.weight" for i in (1, 0))
    with pytest.raises(InputError, match=dead):
        check_mutations(GraphRunner(bundle, misread(bundle.read_graph(), dead, other)), VOCABULARY)


@pytest.mark.parametrize(("layer", "matters"), [("k_proj", False), ("q_proj", True)])
def test_a_dead_weight_may_be_one_that_the_model_does_not_see_either(
    layer: str, matters: bool, bundle_folder: Callable[[str], Path]
) -> None:
    """A softmax does not see what is the same for all keys, but for what is rounded."""
    bundle, model = open_bundle(bundle_folder("opt")), tiny_model("opt")
    name = f"model.decoder.layers.1.self_attn.{layer}.bias"
    graph = ir.from_proto(onnx.load_from_string(bundle.read_graph()))
    bias = next(value for value in graph.graph.inputs if value.name == name)
    ((add, place),) = bias.uses()
    add.outputs[0].replace_all_uses_with(operand(add, 1 - place))
    runner = GraphRunner(bundle, ir.to_proto(graph).SerializeToString())
    with pytest.raises(InputError, match=name):
        check_mutations(runner, VOCABULARY)
    with pytest.raises(InputError, match=name) if matters else contextlib.nullcontext():
        check_mutations(runner, VOCABULARY, model)
