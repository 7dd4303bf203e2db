"""What a run does where no method is named: it suits the bundle, and what is named wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from edgezo_runs import called

import edgezo
from edgezo.recipe import complete, recipe_for, told, tuned_by_default
from edgezo.settings import RunSettings, Settings
from edgezo_runtime.bundle import Manifest, Parameter, Port
from edgezo_runtime.methods import FORWARD_ONLY

NAMES = ("embed.weight", "layers.0.w", "layers.1.w", "layers.2.w", "norm.weight")
UPPER = {"method": "fzoo", "samples": 16, "tune": "upper", "steps": 300}


def manifest(*names: str, dtype: str = "float32", **fields: Any) -> Manifest:
    kinds = {name: "scale" if name.endswith("scale") else "linear" for name in names}
    parameters = [Parameter(name, (2, 2), dtype, kind) for name, kind in kinds.items()]
    ports = (Port("x", "int64", ("rows",)),)
    return Manifest(tuple(parameters), ports, ports, fields.pop("context_length", 8), **fields)


HEAD = {"kind": "head", "labels": ["a", "b"], "position": 0}


@pytest.mark.parametrize(
    ("found", "tune", "method"),
    [
        (manifest(*NAMES), "upper", "fzoo"),
        (manifest(*NAMES, dtype="float16"), "full", "mezo"),
        (manifest("first", "second"), "full", "mezo"),
        (manifest(*NAMES, form=HEAD), "full", "mezo"),
        (manifest(*NAMES, "layers.2.w_scale"), "scales", "es"),
        (manifest(*NAMES, "layers.2.w_scale", adapter={"kind": "lora"}), "lora", "fzoo"),
        (manifest(*NAMES, context_length=None), "full", "mezo"),
        (manifest(*NAMES, "layers.2.w_scale", context_length=None), "full", "es"),
    ],
)
def test_it_suits_the_model(found: Manifest, tune: str, method: str) -> None:
    assert tuned_by_default(found) == tune
    assert recipe_for(found, tune).method == method


def test_scales_of_arrays_are_moved_less_than_their_weights() -> None:
    found = manifest(*NAMES, "layers.2.w_scale", context_length=None)
    told = recipe_for(found, "scales")
    assert (told.method, told.samples, told.eps, told.lr) == ("es", 16, 3e-4, "auto")
    assert recipe_for(found, "layers.0.*").eps == 1e-2  # none among them


@pytest.mark.parametrize("tune", ["upper", "norm*", "full"])
def test_float16_gets_a_method_that_takes_it(tune: str) -> None:
    found = recipe_for(manifest(*NAMES, dtype="float16"), tune)
    assert (found.method, found.lr) == ("mezo", 1e-5)


def test_patterns_and_scales_among_what_is_tuned() -> None:
    found = manifest(*NAMES, "layers.2.w_scale")
    assert recipe_for(found, "layers.1.*") == recipe_for(manifest(*NAMES), "upper")
    assert recipe_for(found, "layers.*") == recipe_for(found, "scales") == recipe_for(found, "full")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, UPPER | {"lr": 5e-3, "eps": 1.6e-3}),
        ({"lr": 0.1, "steps": 7, "samples": 2}, UPPER | {"lr": 0.1, "steps": 7, "samples": 2}),
        ({"lr": "auto"}, UPPER | {"lr": "auto"}),
        ({"tune": "*.mlp.*"}, UPPER | {"tune": "*.mlp.*", "lr": 5e-3}),
        ({"tune": "full", "eps": 0.1}, {"method": "mezo", "tune": "full", "eps": 0.1}),
        (
            {"method": "fzoo"},
            {"method": "fzoo", "tune": "full", "steps": 1000, "samples": None, "lr": None},
        ),
        ({"method": "es", "tune": "upper"}, {"tune": "upper", "steps": 1000, "eps": None}),
        ({}, {"objective": "auto"}),
        ({"method": "mezo"}, {"objective": "loss"}),
        ({"objective": "accuracy"}, {"objective": "accuracy"}),
    ],
)
def test_what_is_named_wins(
    tiny_bundle: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = complete(Settings(str(tiny_bundle), "rows.jsonl", "out", **given))
    assert {name: getattr(found, name) for name in expected} == expected
    assert isinstance(found, RunSettings) and complete(found) is found


def test_what_is_told_is_what_is_taken(tiny_bundle: Path) -> None:
    given = Settings(str(tiny_bundle), "rows.jsonl", "out", options={"samples": "2"})
    assert told(complete(given)).startswith("method fzoo, samples 2, eps 0.0016")


def test_a_run_keeps_what_the_recipe_chose(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    rows = ("--data", data / "train.jsonl", "--threads", 1, "--batch-size", 2)
    asked = ("train", tiny_bundle, *rows, "--steps", 2, "--out")
    done = called(*asked, tmp_path / "a")
    assert done.status == 0, done.err
    (line,) = [line for line in done.err.splitlines() if "recipe" in line]
    chosen = "method fzoo, samples 16, eps 0.0016, lr 0.005, tune upper, steps 2, start auto"
    assert line.endswith(chosen)
    settings = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text())
    assert settings.items() >= (UPPER | {"lr": 5e-3, "eps": 1.6e-3, "steps": 2}).items()
    # The same, named.
    named = ("--method", "fzoo", "--samples", 16, "--eps", 1.6e-3, "--lr", 5e-3, "--tune", "upper")
    named = (*named, "--start", "auto")
    same = called(*asked, tmp_path / "b", *named)
    assert same.status == 0 and "recipe" not in same.err
    journals = [(tmp_path / name / "journal.ezj").read_bytes() for name in "ab"]
    assert journals[0] == journals[1]


def test_a_tuner_without_a_method(tiny_bundle: Path) -> None:
    upper = edgezo.Tuner(edgezo.load(tiny_bundle, tune="upper", threads=1))
    settings = upper.header["settings"]
    assert (upper.header["method"], upper.header["lr"]["lr"]) == ("fzoo", 5e-3)
    assert (settings["samples"], settings["eps"]) == (16, 1.6e-3)
    model = edgezo.load(tiny_bundle, tune="upper", threads=1)
    named = edgezo.Tuner(model, method="fzoo")
    assert named.header["lr"]["lr"] == FORWARD_ONLY["fzoo"].full_lr
    given = edgezo.Tuner(model, lr=0.5, eps=0.25, samples=3)
    assert given.header["settings"].items() >= {"samples": 3, "eps": 0.25}.items()
    assert given.header["lr"]["lr"] == 0.5
    assert edgezo.Tuner(edgezo.load(tiny_bundle, threads=1)).header["method"] == "mezo"
