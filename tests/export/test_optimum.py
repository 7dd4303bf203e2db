"""optimum as the exporter, and folders that it wrote earlier, against the torch exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from tiny_checkpoints import MODELS, VOCABULARY, rows_gathered, tiny_model
from transformers import PreTrainedModel

from edgezo_export.huggingface import checkpoint_to_bundle
from edgezo_export.optimum_graph import ONNX_FILE
from edgezo_export.verify import GraphRunner, reference, sample_batch
from edgezo_runtime.bundle import WEIGHTS, open_bundle
from edgezo_runtime.errors import InputError


def optimum_folder(model: PreTrainedModel, folder: Path, task: str, fold: bool = True) -> Path:
    """Writes `model` as `optimum-cli export onnx` does: `fold` is its default."""
    from optimum.exporters.onnx import main_export

    model.save_pretrained(folder / "checkpoint")
    out = folder / "onnx"
    main_export(
        str(folder / "checkpoint"),
        output=out,
        task=task,
        do_constant_folding=fold,
        do_validation=False,
        local_files_only=True,
    )
    return out


def assert_agrees(bundle: Path, model: PreTrainedModel) -> None:
    """Compares with transformers at several shapes."""
    runner = GraphRunner(open_bundle(bundle))
    for batch, length in [(1, 2), (4, 33), (2, 64)]:
        inputs = sample_batch(VOCABULARY, batch, length, seed=length)
        for ours, theirs in zip(runner(inputs), reference(model, inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_both_exporters_make_one_bundle(
    name: str,
    checkpoint: Callable[[str], Path],
    bundle_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    out = checkpoint_to_bundle(checkpoint(name), tmp_path / "b.edgezo", via="optimum")
    ours, theirs = open_bundle(out).manifest, open_bundle(bundle_folder(name)).manifest
    assert ours.parameters == theirs.parameters
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
    assert ours.files[WEIGHTS] == theirs.files[WEIGHTS]
    assert "optimum-onnx" in ours.versions
    assert_agrees(out, tiny_model(name))
    assert rows_gathered(out) == rows_gathered(bundle_folder(name)) == [32, 32]


@pytest.mark.parametrize("with_checkpoint", [True, False])
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("llama_tied", "text-generation"),
        ("llama_untied", "text-generation-with-past"),
        ("gpt2", "text-generation-with-past"),
        ("opt", "text-generation"),
    ],
)
def test_folders_that_optimum_wrote(
    name: str,
    task: str,
    with_checkpoint: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if name == "llama_untied":
        monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    model = tiny_model(name)
    source = optimum_folder(model, tmp_path, task)
    assert (source / f"{ONNX_FILE}_data").exists() == (name == "llama_untied")
    named = {
        t.name for t in onnx.load(source / ONNX_FILE, load_external_data=False).graph.initializer
    }
    assert any(n.startswith("onnx::MatMul") for n in named) == (name != "gpt2")
    if with_checkpoint:
        (tmp_path / "checkpoint" / WEIGHTS).rename(source / WEIGHTS)
    via = "optimum" if with_checkpoint else None
    out = checkpoint_to_bundle(source, tmp_path / "b.edgezo", via=via)
    weights = load_file(out / WEIGHTS)
    expected = {key: value.detach().numpy() for key, value in model.named_parameters()}
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value)
    assert_agrees(out, model)


def test_merged_parameters_are_parted(tmp_path: Path) -> None:
    model = tiny_model("opt")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.5)
    source = optimum_folder(model, tmp_path, "text-generation")
    graph = onnx.load(source / ONNX_FILE).graph
    weights = {tensor.name for tensor in graph.initializer}
    merged = {n.output[0] for n in graph.node if n.op_type == "Identity" and n.input[0] in weights}
    assert len(merged) > 10
    out = checkpoint_to_bundle(source, tmp_path / "b.edgezo")  # which moves each one alone
    assert merged < {p.name for p in open_bundle(out).manifest.parameters}
    assert_agrees(out, model)


def edit(source: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(source / ONNX_FILE)
    change(model)
    onnx.save(model, source / ONNX_FILE)


def hide_paths(model: onnx.ModelProto) -> None:
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"


def drop_norm(model: onnx.ModelProto) -> None:
    norm = next(t for t in model.graph.initializer if t.name == "model.norm.weight")
    norm.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(norm), "somebody"))
    for node in model.graph.node:
        node.input[:] = ["somebody" if n == "model.norm.weight" else n for n in node.input]


def point_outside(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "model.norm.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../checkpoint/model.safetensors")


def fix_sizes(model: onnx.ModelProto) -> None:
    """As where an exporter took the sizes of its example for constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    reshape = next(
        n for n in model.graph.node if n.op_type == "Reshape" and n.input[1] not in constants
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 16, 4, 8]), "sizes"))
    reshape.input[1] = "sizes"


def change_domain(model: onnx.ModelProto) -> None:
    model.graph.node[5].domain = "my.own"


def rename_logits(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "scores"
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hide_paths, r"cannot tell which parameter the tensor 'onnx::MatMul_\d+' is"),
        (drop_norm, r"no tensor for parameter 'model\.norm\.weight'"),
        (
            point_outside,
            r"'model\.norm\.weight' lies in '\.\./checkpoint/.*outside the file's folder",
        ),
        (fix_sizes, r"does not run on \d+ rows of \d+ tokens.*export it with dynamic axes"),
        (change_domain, r"model\.onnx uses my\.own\.\w+, which ONNX Runtime does not have"),
        (rename_logits, "does not turn input_ids and attention_mask into logits"),
    ],
)
def test_refused_graphs(
    change: Callable[[onnx.ModelProto], object],
    message: str,
    tmp_path: Path,
) -> None:
    source = optimum_folder(tiny_model("llama_tied"), tmp_path, "text-generation")
    edit(source, change)
    with pytest.raises(InputError, match=message):
        checkpoint_to_bundle(source, tmp_path / "b.edgezo")
    assert not (tmp_path / "b.edgezo").exists()


def test_a_checkpoint_replaces_the_paths(tmp_path: Path) -> None:
    source = optimum_folder(tiny_model("llama_untied"), tmp_path, "text-generation")
    edit(source, hide_paths)
    (tmp_path / "checkpoint" / WEIGHTS).rename(source / WEIGHTS)
    out = checkpoint_to_bundle(source, tmp_path / "b.edgezo", via="optimum")
    assert_agrees(out, tiny_model("llama_untied"))
