"""`edgezo info`: the memory that every way of tuning takes, and why some models lack some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgezo_runs import called, refused
from foreign_files import attention, branching, save
from onnx import ModelProto, helper, numpy_helper

from edgezo.cli.tuning_memory import WAYS, trained_by, tuning_memory
from edgezo_export.adapters.base import adapt
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_export.quantize import quantize_bundle
from edgezo_runtime.bundle import Bundle, Parameter, open_bundle
from edgezo_runtime.errors import InputError
from edgezo_runtime.model import load
from edgezo_runtime.noise import POOL_SIZE
from edgezo_runtime.select import ADAPTERS

UPPER = ("upper", "upper-quarter")
KINDS = {
    "llama": {"full", *UPPER, "norm", "lora", "prefix", "prompt"},  # tied, and without biases
    "int4": {"full", *UPPER, "norm", "scales", "lora", "prefix", "prompt"},
    "int8": {"full", *UPPER, "norm", "scales", "lora", "prefix", "prompt"},
    "bert_head": {"full", *UPPER, "head", "norm", "bitfit", "lora", "prefix", "prompt"},
    "t5": {"full", *UPPER, "norm", "lora", "prompt"},
    "branches": {"full"},  # of an If
    "attention": {"full", "prefix"},
}


@pytest.fixture(scope="module")
def bundle_of(
    tiny_bundle: Path,
    family_bundle: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Returns the folder of a bundle by its name in `KINDS`."""
    folder = tmp_path_factory.mktemp("kinds")

    def bundle(name: str) -> Path:
        out = folder / f"{name}.edgezo"
        if name == "llama":
            return tiny_bundle
        if out.exists():
            return out
        if name.startswith("int"):
            return quantize_bundle(tiny_bundle, out, name)
        if name in ("branches", "attention"):
            model = branching() if name == "branches" else attention()
            onnx_to_bundle(save(model, folder / f"{name}.onnx"), out, loss="mse")
            return out
        return family_bundle(name)

    return bundle


def info(*words: object) -> dict[str, Any]:
    done = called("info", *words, "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def with_adapter(folder: Path, way: str) -> Bundle:
    """Opens a bundle as a run that tunes it by `way` does."""
    bundle = open_bundle(folder)
    return adapt(bundle, {"kind": way}) if way in ADAPTERS else bundle


@pytest.mark.parametrize("name", KINDS)
def test_the_ways_are_those_of_a_run(name: str, bundle_of: Callable[[str], Path]) -> None:
    folder = bundle_of(name)
    fields = info(folder)
    assert set(fields["tune_mb"]) == KINDS[name]
    manifest, graph = open_bundle(folder).manifest, (folder / "graph.onnx").read_bytes()
    for way in WAYS:
        if way in KINDS[name]:
            model = load(with_adapter(folder, way), tune=way, threads=1)
            named = {p.name for p in trained_by(way, graph, manifest.parameters)}
            assert named == model.arena.views.keys()
            continue
        with pytest.raises(InputError) as caught:
            load(with_adapter(folder, way), tune=way, threads=1)
        assert fields["not_tuned"][way] == str(caught.value)


def test_what_is_held() -> None:
    """Integers and constants stay in memory whatever is tuned; frozen floats need not."""
    parameters = [
        Parameter("head.weight", (1000, 1000), "float32", "linear"),
        Parameter("head.bias", (50_000,), "float16", "bias"),
        Parameter("w_packed", (3_000_000,), "uint8", "quantized"),
        Parameter("w_scale", (250_000,), "float32", "scale"),
    ]

    def tuned(way: str) -> list[Parameter]:
        chosen = [p for p in parameters if way in ("full", p.kind) and p.kind != "quantized"]
        if not chosen:
            raise InputError(f"no {way}")
        return chosen

    pool = POOL_SIZE * 4 / 1e6
    assert tuning_memory(parameters, 2_000_000, ["full", "scale", "norm"], tuned, "bias") == {
        "weights_mb": 10.1,
        "run_mb": 10.1,
        "tune_mb": {
            "bias": round(2 + 3 + 0.1 + pool, 1),
            "full": round(2 + 3 + 5.1 + pool, 1),
            "scale": round(2 + 3 + 1 + pool, 1),
        },
        "not_tuned": {"norm": "no norm"},
    }
    with pytest.raises(InputError, match="no norm"):
        tuning_memory(parameters, 0, [], tuned, "norm")
    half = [Parameter("w", (4,), "bfloat16", "linear")]
    fields = tuning_memory(half, 0, ["full"], lambda _: half)
    assert "bfloat16 weights are not tuned" in fields["not_tuned"]["full"]


def test_a_bundle_with_an_adapter(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.edgezo"
    assert called("export", tiny_bundle, "--tune", "lora", "--out", out).status == 0
    assert set(info(out)["tune_mb"]) == {"lora"}
    refused(called("info", out, "--tune", "head"), 2, "has a lora adapter")


def test_a_file_and_its_bundle_say_the_same(
    bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = bundle_of("attention")
    file = save(attention(), tmp_path / "model.onnx")
    ours, theirs = info(file), info(bundle)
    for key in ("weights_mb", "run_mb", "tune_mb", "not_tuned", "by_kind"):
        assert ours[key] == theirs[key]


def without_weights() -> ModelProto:
    """Returns a file whose only constant, of 8 MB, is not read as a number."""
    model = branching()
    del model.graph.node[:], model.graph.initializer[:]
    table = numpy_helper.from_array(np.zeros((1_000_000, 2), np.int32), "table")
    model.graph.initializer.append(table)
    model.graph.node.append(helper.make_node("Gather", ["table", "rate"], ["row"]))
    model.graph.node.append(helper.make_node("Cast", ["row"], ["out"], to=1))
    return model


def test_a_file_without_weights(tmp_path: Path) -> None:
    file = save(without_weights(), tmp_path / "model.onnx")
    fields = info(file)
    assert fields["parameters"] == 0 and fields["run_mb"] == 8.0
    assert fields["constants"] == {"int32: only float32 and float16 are tuned": 1}
    assert "full" in fields["not_tuned"]
    refused(called("info", file, "--tune", "a*"), 2, "the model has none")


def test_what_there_is_none_of(bundle_of: Callable[[str], Path]) -> None:
    lines = called("info", bundle_of("llama")).out.splitlines()
    assert "task: none" in lines
    bare = called("info", bundle_of("attention")).out.splitlines()
    assert "context_length: none" in bare
