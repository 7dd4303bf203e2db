"""What is wrong gets one sentence and an exit status, and loses nothing that was there before."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import (
    called,
    contents,
    edgezo,
    forge,
    labelled,
    refuse_train,
    refused,
    run,
    succeed,
    train_words,
    words,
    write_rows,
)

from edgezo.tuner import Tuner
from edgezo_runtime import journal, safetensors_file
from edgezo_runtime.bundle import Bundle, open_bundle
from edgezo_runtime.model import load


@pytest.fixture
def broken(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "broken.edgezo")


# Data

ROWS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("no rows",)),
    "blank": (b"\n \n", ("no rows",)),
    "no JSON": (b'{"text": "a", "label": 0}\n{"text": \n', ("line 2", "not JSON")),
    "no object": (b"[1, 2]\n", ("line 1",)),
    "unknown columns": (b'{"utterance": "a", "intent": "b"}\n', ("line 1", "utterance")),
    "column missing later": (
        b'{"text": "a", "label": 0}\n{"text": "b"}\n',
        ("line 2", '"label"'),
    ),
    "wrong kind": (b'{"text": 5, "label": 0}\n', ("line 1", '"text"')),
    "empty text": (b'{"text": " ", "label": 0}\n', ("line 1", '"text"')),
    "one label": (b'{"text": "a", "label": 0}\n', ("label",)),
    "invalid UTF-8": (
        b'{"text": "a", "label": 0}\n{"text": "\xff\xfe", "label": 1}\n',
        ("line 2", "UTF-8"),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_data(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    content, parts = ROWS[name]
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(content)
    refuse_train(tiny_bundle, rows, parts=(*parts, "rows.jsonl") if name != "one label" else parts)


def test_missing_data(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    refuse_train(tiny_bundle, tmp_path / "none.jsonl", parts=("none.jsonl", "does not exist"))
    refused(called("eval", tiny_bundle, "--data", tmp_path / "none.jsonl"), 2, "none.jsonl")
    flags = ("--eval-data", tmp_path / "dev.jsonl")
    rows = shutil.copyfile(data / "train.jsonl", tmp_path / "train.jsonl")
    refuse_train(tiny_bundle, rows, *flags, parts=("dev.jsonl",))


def test_label_outside_the_label_words(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*labelled(4), {"text": "a film", "label": "odd"}])
    flags = ("--label-words", "negative,positive")
    refuse_train(tiny_bundle, rows, *flags, parts=("line 5", '"odd"', '"negative"'))
    refused(called("eval", tiny_bundle, "--data", rows, *flags), 2, "line 5", '"odd"')
    train = write_rows(tmp_path / "train.jsonl", labelled(8))
    refuse_train(tiny_bundle, train, "--eval-data", rows, parts=("line 5", '"odd"'))


def test_a_run_s_labels_hold_for_its_evaluation(reference: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*labelled(4), {"text": "a film", "label": "odd"}])
    refused(called("eval", reference, "--data", rows), 2, "line 5", '"odd"')


def test_text_longer_than_the_context_is_cut(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = labelled(12)
    for row in rows[:5]:
        row["text"] = words(len(row["text"]), 300)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    told = succeed("eval", tiny_bundle, "--data", path, "--threads", 1, "--json").json
    assert (told["examples"], told["truncated"]) == (12, 5)
    said = succeed("eval", tiny_bundle, "--data", path, "--threads", 1).out
    assert "5 texts were cut" in said
    flags = ("--data", path, "--steps", 2, "--threads", 1)
    told = succeed("train", tiny_bundle, *flags, "--out", tmp_path / "run", "--json").json
    assert told["truncated"] == 5
    assert "5 texts" in succeed("train", tiny_bundle, *flags, "--out", tmp_path / "run2").out


# Bundles


def corrupt(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "edgezo.json"
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))

    return apply


def weights_with(value: float) -> Callable[[Path], None]:
    """Returns what puts `value` into one weight and makes the checksum right again."""

    def change(bundle: Bundle) -> None:
        path = bundle.weights
        entries = safetensors_file.read_header(path)
        arrays = {name: np.empty(e.shape, e.dtype.storage) for name, e in entries.items()}
        safetensors_file.read_into(path, arrays)
        arrays["model.norm.weight"][3] = value
        safetensors_file.write(path, [(n, e.dtype, arrays[n]) for n, e in entries.items()])

    return lambda folder: forge(folder, change)


def rename_parameter(fields: dict[str, Any]) -> None:
    fields["parameters"][1]["name"] += "_b"


def transpose_parameter(fields: dict[str, Any]) -> None:
    (parameter,) = [p for p in fields["parameters"] if p["name"].endswith("0.mlp.up_proj.weight")]
    parameter["shape"].reverse()


BUNDLES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no manifest": (lambda b: (b / "edgezo.json").unlink(), ("is not an edgezo bundle",)),
    "manifest is no JSON": (lambda b: (b / "edgezo.json").write_text("{"), ("edgezo.json",)),
    "manifest of the future": (
        edit_manifest(lambda fields: fields.update(schema=99)),
        ("schema 99",),
    ),
    "no graph": (lambda b: (b / "graph.onnx").unlink(), ("graph.onnx",)),
    "graph changed": (lambda b: corrupt(b / "graph.onnx"), ("graph.onnx", "checksum")),
    "tokenizer changed": (lambda b: corrupt(b / "tokenizer.json"), ("tokenizer.json",)),
    "weights changed": (lambda b: corrupt(b / "model.safetensors"), ("safetensors", "checksum")),
    "weights cut": (
        lambda b: os.truncate(b / "model.safetensors", 5000),
        ("model.safetensors",),
    ),
    "weights NaN": (weights_with(np.nan), ("NaN", "model.norm.weight")),
    "weights infinite": (weights_with(np.inf), ("infinity", "model.norm.weight")),
    "parameter renamed": (edit_manifest(rename_parameter), ("_b",)),
    "parameter transposed": (edit_manifest(transpose_parameter), ("up_proj.weight",)),
    "graph lacks an input": (
        edit_manifest(
            lambda fields: fields["inputs"].append({"name": "odd", "dtype": "int64", "shape": []})
        ),
        ("'odd'", "manifest"),
    ),
    "file outside the folder": (
        edit_manifest(lambda fields: fields["files"].update({"../odd": "00"})),
        ("../odd",),
    ),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_bundle(broken: Path, data: Path, tmp_path: Path, name: str) -> None:
    damage, parts = BUNDLES[name]
    damage(broken)
    rows = shutil.copyfile(data / "train.jsonl", tmp_path / "train.jsonl")
    refuse_train(broken, rows, parts=parts)


def test_a_manifest_that_disagrees_with_the_graph(broken: Path, data: Path, tmp_path: Path) -> None:
    """Weights and manifest agree with each other, only the graph does not."""

    def transpose(bundle: Bundle) -> None:
        entries = safetensors_file.read_header(bundle.weights)
        arrays = {name: np.empty(e.shape, e.dtype.storage) for name, e in entries.items()}
        safetensors_file.read_into(bundle.weights, arrays)
        name = "model.layers.0.mlp.up_proj.weight"
        arrays[name] = np.ascontiguousarray(arrays[name].T)
        tensors = [(n, e.dtype, arrays[n]) for n, e in entries.items()]
        safetensors_file.write(bundle.weights, tensors)

    forge(broken, transpose)
    edit_manifest(transpose_parameter)(broken)
    rows = shutil.copyfile(data / "train.jsonl", tmp_path / "train.jsonl")
    refuse_train(broken, rows, parts=("disagrees with its graph", "up_proj.weight"))


def test_a_frozen_nan_is_refused_too(broken: Path, data: Path, tmp_path: Path) -> None:
    weights_with(np.nan)(broken)
    rows = shutil.copyfile(data / "train.jsonl", tmp_path / "train.jsonl")
    refuse_train(broken, rows, "--tune", "*.mlp.*", parts=("NaN", "model.norm.weight"))


# Folders


def obey_permissions() -> None:
    """Takes from a child of root, before it starts, the right to write where nobody may."""
    drop_from_bounding_set, dac_override = 24, 1  # see prctl(2) and capabilities(7)
    ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


def test_a_read_only_folder(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    options: dict[str, Any] = {}
    if os.access(folder, os.W_OK):
        options["preexec_fn"] = obey_permissions if sys.platform == "linux" else None
        script = f"import os, sys; sys.exit(os.access({str(folder)!r}, os.W_OK))"
        if run([sys.executable, "-c", script], **options).status:
            pytest.skip("nothing is denied to this user")
    for out in (folder, folder / "run"):
        done = edgezo(*train_words(tiny_bundle, data, out), **options)
        refused(done, 1, str(out), "cannot write")
    assert not list(folder.iterdir())


def test_an_output_folder_that_cannot_be(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "run"):
        refused(called(*train_words(tiny_bundle, data, out)), 1, str(out))
    assert file.read_text() == "mine"


def test_a_run_is_never_overwritten(reference: Path, tiny_bundle: Path, data: Path) -> None:
    before = contents(reference)
    said = refused(called(*train_words(tiny_bundle, data, reference)), 2, "edgezo resume")
    assert str(reference) in said
    assert contents(reference) == before


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "config.json"])
def test_a_model_is_never_overwritten(
    tiny_bundle: Path, data: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("mine", "utf-8")
    words = ("--data", data / "train.jsonl", "--steps", 1, "--out", out)
    refused(called("train", tiny_bundle, *words), 2, f"{out} holds {name} of a model")
    assert [path.read_text("utf-8") for path in out.iterdir()] == ["mine"]


def test_a_bundle_is_never_overwritten(tiny_bundle: Path, data: Path) -> None:
    words = ("--data", data / "train.jsonl", "--steps", 1, "--out", tiny_bundle)
    refused(called("train", tiny_bundle, *words), 2, "holds edgezo.json of a model")


def test_a_run_of_a_program_is_gone_on_with_there(tiny_bundle: Path, tmp_path: Path) -> None:
    tuner = Tuner(load(tiny_bundle), lr=1e-3)
    tuner.save(tmp_path / "run")
    refused(called("resume", tmp_path / "run"), 2, "is a run of a program", "Tuner.resume(model")


@pytest.mark.parametrize("source", ["nothing", "./nothing", "nothing.onnx", "/no/where/at/all"])
def test_no_source_there(source: str, tmp_path: Path) -> None:
    """No package has to be installed to hear it."""
    done = called("export", source, "--out", tmp_path / "out")
    refused(done, 2, f"there is no {Path(source)}", "ORG/NAME")


def test_an_unfinished_run_has_no_model(reference: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reference, tmp_path / "run")
    (folder / "model.safetensors").unlink()
    for command in (("eval", folder, "--data", data / "dev.jsonl"), ("generate", folder, "a film")):
        refused(called(*command), 2, "not finished", "edgezo resume")


@pytest.mark.parametrize("command", ["resume", "report"])
def test_no_run_there(tmp_path: Path, command: str) -> None:
    refused(called(command, tmp_path), 2, "is not a run folder")


def test_no_bundle_there(data: Path, tmp_path: Path) -> None:
    dev = data / "dev.jsonl"
    refused(called("eval", tmp_path, "--data", dev), 2, "is not an edgezo bundle")
    refused(called("info", tmp_path / "none"), 2, "there is no bundle", "edgezo export")


def test_weights_that_diverge_stop_the_run(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = train_words(tiny_bundle, data, out, "--eps", 1e38)
    refused(called(*words), 1, "not finite", "--lr")
    assert journal.read(out / "journal.ezj").records
    assert open_bundle(tiny_bundle)
