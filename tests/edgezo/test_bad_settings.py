"""A setting that is wrong gets one sentence and an exit status, and nothing is begun."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from edgezo_runs import called, refuse_train, refused, write_rows

FLAGS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "method": (("--method", "odd"), ("method 'odd'", "mezo")),
    "schedule": (("--schedule", "odd"), ("schedule is 'odd'", "linear")),
    "task": (("--task", "odd"), ("odd", "classify")),
    "tune": (("--tune", "odd*"), ("odd*", "matches no parameter")),
    "negative lr": (("--lr", -1e-3), ("lr is -0.001",)),
    "lr NaN": (("--lr", "nan"), ("lr is nan",)),
    "lr infinite": (("--lr", "inf"), ("lr is inf",)),
    "lr is no number": (("--lr", "fast"), ("lr", "fast", "a number or auto")),
    "eps zero": (("--eps", 0), ("eps is 0",)),
    "weight decay": (("--weight-decay", -1), ("weight decay is -1",)),
    "negative seed": (("--seed", -1), ("seed is -1",)),
    "large seed": (("--seed", 2**64), ("seed is 18446744073709551616",)),
    "no steps": (("--steps", 0), ("steps is 0",)),
    "batch size": (("--batch-size", 0), ("batch_size is 0",)),
    "threads": (("--threads", 0), ("--threads",)),
    "snapshots": (("--snapshot-every", -1), ("snapshot_every is -1",)),
    "template without columns": (("--template", "Label:"), ("template",)),
    "template with an unknown column": (("--template", "{odd}"), ("odd",)),
    "template with the answer": (("--template", "{text} {label}"), ("label", "answer")),
    "a setting of addax": (("--zo-batch-size", 4), ("is a setting of addax and addax-wa, not",)),
    "a setting of addax alone": (
        ("--method", "addax-wa", "--length-limit", 9),
        ("length_limit is a setting of addax, not of addax-wa",),
    ),
    "nothing to evaluate on": (("--eval-every", 2), ("eval_every is 2", "give eval_data")),
    "no rows left to train on": (("--eval-examples", 120), ("120 rows; some to train on and 120",)),
    "no rows left to hold out": (
        ("--examples", 120, "--eval-examples", 1),
        ("has 120 rows; 120 to train on and 1 to hold out were asked",),
    ),
    "an adapter among other things": (("--tune", "norm,lora"), ("--tune lora adds weights",)),
    "a method of gradients": (("--method", "adamw"), ("has no gradient graph",)),
    "no gradient of a score": (
        ("--method", "adamw", "--objective", "accuracy"),
        ("--objective accuracy has no gradient, which adamw needs", "cross-entropy", "mezo"),
    ),
    "one label word": (("--label-words", "negative"), ("one label",)),
    "an option there is none of": (("--odd", 1), ("--odd",)),
}


@pytest.mark.parametrize("name", FLAGS)
def test_settings(tiny_bundle: Path, data: Path, tmp_path: Path, name: str) -> None:
    flags, parts = FLAGS[name]
    rows = shutil.copyfile(data / "train.jsonl", tmp_path / "train.jsonl")
    refuse_train(tiny_bundle, rows, *flags, parts=parts)


@pytest.mark.parametrize("flags", [("--schedule", "odd"), ("--lr", -1), ("--seed", -1)])
def test_nobody_waits_to_hear_of_a_bad_setting(
    tiny_bundle: Path, data: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    """The recipe's first pass over the rows may take minutes."""
    asked = ("--data", data / "train.jsonl", "--start", "probe", "--out", tmp_path / "run")
    done = called("train", tiny_bundle, *asked, *flags)
    refused(done, 2)
    assert "fitting the labels" not in done.err


def test_rows_that_addax_cannot_assign_leave_no_run(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "film", "completion": " good"}] * 4)
    exact = tmp_path / "exact.edgezo"
    assert called("export", tiny_bundle, "--gradients", "--out", exact).status == 0
    refuse_train(exact, rows, "--method", "addax", parts=("no row is longer", "addax-wa"))


CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no YAML": ("lr: [1\nsteps: 2", ("config.yaml",)),
    "a list": ("- 1\n- 2", ("config.yaml",)),
    "unknown key": ("lr: 1e-4\nlearning_speed: 3", ("learning_speed", "lr")),
    "wrong kind": ("lr: fast", ("config.yaml", "lr", "'fast'")),
    "a fraction of a step": ("eval-every: 2.5", ("eval_every", "2.5", "whole number")),
    "infinity": ("eval-every: .inf", ("eval_every", "whole number")),
    "yes": ("lr: yes", ("lr", "True")),
    "a number as a text": ("template: 5", ("template", "5")),
    "binary": ("\x00\x01", ("config.yaml",)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config(tiny_bundle: Path, data: Path, tmp_path: Path, name: str) -> None:
    text, parts = CONFIGS[name]
    (tmp_path / "config.yaml").write_text(text)
    rows = shutil.copyfile(data / "train.jsonl", tmp_path / "train.jsonl")
    flags = ("--config", tmp_path / "config.yaml")
    refuse_train(tiny_bundle, rows, *flags, parts=parts)


def test_missing_config(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    rows = shutil.copyfile(data / "train.jsonl", tmp_path / "train.jsonl")
    refuse_train(tiny_bundle, rows, "--config", tmp_path / "none.yaml", parts=("none.yaml",))


@pytest.mark.parametrize("missing", ["bundle", "data", "out"])
def test_missing_settings(tiny_bundle: Path, data: Path, tmp_path: Path, missing: str) -> None:
    given: Mapping[str, Any] = {
        "bundle": str(tiny_bundle),
        "data": str(data / "train.jsonl"),
        "out": str(tmp_path / "run"),
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in given.items() if k != missing}))
    refused(called("train", "--config", config), 2, f"{missing} is missing")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--temperature", -1), "temperature is -1"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--seed", 2**64, "--temperature", 1), "seed"),
    ],
)
def test_generate(tiny_bundle: Path, flags: tuple[object, ...], part: str) -> None:
    refused(called("generate", tiny_bundle, "a film", *flags), 2, part)


@pytest.mark.parametrize(("prompt", "part"), [("", "empty"), ("film " * 100, "takes 64")])
def test_prompts(tiny_bundle: Path, prompt: str, part: str) -> None:
    refused(called("generate", tiny_bundle, prompt), 2, part)
