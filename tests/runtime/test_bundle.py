"""Bundles and manifests: what is damaged or made to harm is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_helpers import write_bundle

from edgezo_runtime.bundle import (
    MANIFEST,
    Manifest,
    Parameter,
    Port,
    is_bundle,
    open_bundle,
    write_manifest,
)
from edgezo_runtime.errors import InputError
from edgezo_runtime.files import sha256
from edgezo_runtime.weights import Weights

MANIFEST_OBJECT = Manifest(
    (Parameter("w", (3, 4), "float32", "linear", ("tied",)), Parameter("s", (), "int64", "bias")),
    (Port("input_ids", "int64", ("rows", 8)),),
    (Port("logprobs", "float32", ("answers",)),),
    2048,
    {"name": "classify", "labels": ["a", "b"]},
    {"graph.onnx": "0" * 64, "model.safetensors": "f" * 64},
    {"edgezo": "0.1.0"},
)


def load(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def save(folder: Path, manifest: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST_OBJECT)
    text = (tmp_path / MANIFEST).read_text(encoding="utf-8")
    assert Manifest.from_json(text, tmp_path) == MANIFEST_OBJECT
    assert is_bundle(tmp_path) and not is_bundle(tmp_path / "none")
    assert MANIFEST_OBJECT.parameters[0].size == 12 and MANIFEST_OBJECT.parameters[1].size == 1


def test_a_bundle_opens(small_bundle: Path, small_tensors: dict[str, np.ndarray]) -> None:
    bundle = open_bundle(str(small_bundle))
    assert [p.name for p in bundle.manifest.parameters] == list(small_tensors)
    assert bundle.graph == small_bundle / "graph.onnx"
    assert len(bundle.digest) == 64
    weights = Weights(bundle)
    weights.load()
    for name, array in small_tensors.items():
        assert np.array_equal(weights.arena.views[name], array)


def test_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not an edgezo bundle.*edgezo export"):
        open_bundle(tmp_path)
    with pytest.raises(InputError, match=r"there is no bundle.*none: make one.*edgezo export"):
        open_bundle(tmp_path / "none")
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not an edgezo bundle"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["graph.onnx", "model.safetensors"])
def test_missing_files_are_named(small_bundle: Path, name: str) -> None:
    (small_bundle / name).unlink()
    with pytest.raises(InputError, match=f"lacks {name}"):
        open_bundle(small_bundle)


def test_a_changed_graph_is_refused(small_bundle: Path) -> None:
    (small_bundle / "graph.onnx").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"graph\.onnx does not match its checksum"):
        open_bundle(small_bundle)


def test_a_graph_opens_no_other_file(small_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = small_bundle / "graph.onnx"
    assert open_bundle(small_bundle).read_graph() == graph.read_bytes()
    model = onnx.ModelProto()
    tensor = model.graph.initializer.add(name="w", dims=[4], data_type=1)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    for content, sentence in (
        (model.SerializeToString(), "keeps data in other files"),
        (b"location without a field", "not a sound ONNX file"),
    ):
        graph.write_bytes(content)
        manifest = load(small_bundle)
        manifest["files"]["graph.onnx"] = sha256(graph)
        save(small_bundle, manifest)
        with pytest.raises(InputError, match=sentence):
            open_bundle(small_bundle).read_graph()


def test_changed_weights_are_refused_when_loaded(small_bundle: Path) -> None:
    path = small_bundle / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    weights = Weights(open_bundle(small_bundle))
    with pytest.raises(InputError, match="does not match its checksum"):
        weights.load()


def test_cut_weights_are_refused_before_room_is_made(small_bundle: Path) -> None:
    path = small_bundle / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="is smaller than"):
        open_bundle(small_bundle)


def test_a_huge_shape_is_refused_before_room_is_made(small_bundle: Path) -> None:
    manifest = load(small_bundle)
    manifest["parameters"][0]["shape"] = [2**40, 2**20]
    save(small_bundle, manifest)
    with pytest.raises(InputError, match="is smaller than"):
        open_bundle(small_bundle)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_weights_is_refused(tmp_path: Path, value: float) -> None:
    tensors = {"a": np.ones((3, 3), np.float32), "b": np.array([1, value], np.float32)}
    weights = Weights(open_bundle(write_bundle(tmp_path / "nan.edgezo", tensors)))
    with pytest.raises(InputError, match="NaN or infinity in b"):
        weights.load()


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"shape": [11, 9]}, {"dtype": "float16"}, {"shape": [9, 10]}],
)
def test_a_manifest_that_disagrees_with_the_weights(small_bundle: Path, change: dict) -> None:
    manifest = load(small_bundle)
    manifest["parameters"][0].update(change)
    save(small_bundle, manifest)
    weights = Weights(open_bundle(small_bundle))
    with pytest.raises(InputError, match=r"no tensor 'other'|as the manifest says"):
        weights.load()


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/hostname", "..", ".", "", "sub/file", "..\\secret", "C:secret", "a\0b"],
)
def test_files_outside_the_folder_are_refused(small_bundle: Path, name: str) -> None:
    (small_bundle.parent / "secret").write_text("keep out")
    manifest = load(small_bundle)
    manifest["files"][name] = "0" * 64
    save(small_bundle, manifest)
    with pytest.raises(InputError, match="lie in its own folder"):
        open_bundle(small_bundle)


@pytest.mark.parametrize("name", ["graph.onnx", "model.safetensors"])
def test_a_manifest_names_graph_and_weights(small_bundle: Path, name: str) -> None:
    manifest = load(small_bundle)
    del manifest["files"][name]
    save(small_bundle, manifest)
    with pytest.raises(InputError, match=f"names no {name}"):
        open_bundle(small_bundle)


def test_a_manifest_without_a_form_is_causal(small_bundle: Path) -> None:
    manifest = load(small_bundle)
    manifest.pop("form", None)
    save(small_bundle, manifest)
    assert open_bundle(small_bundle).manifest.form == {"kind": "causal"}


HEAD = {"kind": "head", "position": -1, "labels": ["a", "b"]}


@pytest.mark.parametrize(
    "form", [HEAD, {"kind": "masked"}, {"kind": "seq2seq", "decoder_start": 0}]
)
def test_forms_are_kept(small_bundle: Path, form: dict[str, Any]) -> None:
    save(small_bundle, load(small_bundle) | {"form": form})
    assert open_bundle(small_bundle).manifest.form == form


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"kind": "diffusion"},
        {"kind": ["causal"]},
        {"kind": "head"},
        HEAD | {"labels": ["a"]},
        HEAD | {"labels": "ab"},
        HEAD | {"position": 3},
        {"kind": "seq2seq"},
        {"kind": "seq2seq", "decoder_start": "0"},
    ],
)
def test_unknown_forms_are_refused(small_bundle: Path, form: dict[str, Any]) -> None:
    save(small_bundle, load(small_bundle) | {"form": form})
    with pytest.raises(InputError, match="which this edgezo does not know"):
        open_bundle(small_bundle)


DAMAGES: dict[str, dict[str, Any]] = {
    "no parameters": {"parameters": None},
    "parameter is text": {"parameters": ["w"]},
    "no inputs": {"inputs": 3},
    "input is text": {"inputs": ["input_ids"]},
    "input without a dtype": {"inputs": [{"name": "x", "shape": []}]},
    "dimension is a list": {"inputs": [{"name": "x", "dtype": "int64", "shape": [[]]}]},
    "output's name is a number": {"outputs": [{"name": {}, "dtype": "int64", "shape": []}]},
    "context is text": {"context_length": "12"},
    "context is zero": {"context_length": 0},
    "context is fractional": {"context_length": 1.5},
    "context is infinite": {"context_length": float("inf")},
    "context is true": {"context_length": True},
    "files is a list": {"files": ["graph.onnx"]},
    "file has no name": {"files": [[None, None]]},
    "checksum is a number": {"files": {"graph.onnx": 3, "model.safetensors": "f"}},
    "task is a number": {"task": 3},
    "schema is newer": {"schema": 2},
    "schema is text": {"schema": "1"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_manifests_are_refused(small_bundle: Path, damage: str) -> None:
    save(small_bundle, load(small_bundle) | DAMAGES[damage])
    with pytest.raises(InputError) as caught:
        open_bundle(small_bundle)
    assert str(small_bundle / MANIFEST) in str(caught.value)


@pytest.mark.parametrize("field", ["schema", "parameters", "inputs", "files", "context_length"])
def test_a_missing_field_is_refused(small_bundle: Path, field: str) -> None:
    manifest = load(small_bundle)
    del manifest[field]
    save(small_bundle, manifest)
    with pytest.raises(InputError, match=f"not an edgezo manifest.*{field}"):
        open_bundle(small_bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3.0, 4]},
        {"shape": [-3, 4]},
        {"shape": "34"},
        {"shape": [True]},
        {"shape": 4},
        {"dtype": "complex64"},
        {"dtype": ["float32"]},
        {"dtype": None},
        {"name": 5},
        {"name": "a.bias"},
        {"kind": []},
        {"aliases": [1]},
        {"aliases": ["b.weight"]},
        {"aliases": None},
    ],
)
def test_a_damaged_parameter_is_refused(small_bundle: Path, change: dict) -> None:
    manifest = load(small_bundle)
    manifest["parameters"][0].update(change)
    save(small_bundle, manifest)
    with pytest.raises(InputError):
        open_bundle(small_bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"schema": 1}'])
def test_text_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="not an edgezo manifest"):
        Manifest.from_json(text, tmp_path / MANIFEST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_arbitrary_values_anywhere(small_bundle: Path, data: st.DataObject) -> None:
    """Any one value of the manifest replaced by any other: opened, or InputError."""
    manifest = json.loads(MANIFEST_OBJECT.to_json())
    at: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(JSON)
    folder = small_bundle.parent / "any"
    folder.mkdir(exist_ok=True)
    save(folder, manifest)
    with pytest.raises(InputError):  # at the latest because the folder holds no files
        open_bundle(folder)
