"""A method's own settings and the learning rate that is found, from the command line to the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from edgezo_runs import called, refused

import edgezo
from edgezo.settings import Settings
from edgezo_runtime import journal
from edgezo_runtime.errors import InputError
from edgezo_runtime.methods import FORWARD_ONLY

ZERO = ("--threads", 1, "--batch-size", 4, "--steps", 9)


def words(bundle: Path, data: Path, out: Path, *flags: object) -> tuple[object, ...]:
    return ("train", bundle, "--data", data / "train.jsonl", "--out", out, *ZERO, *flags)


def test_a_run_with_own_settings_and_state(tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    """Trained, replayed, and resumed from a snapshot with half its journal gone."""
    run = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text("method: zo-adam\noptions: {beta1: 0.5, beta2: 0.9}\nsnapshot-every: 4\n")
    flags = ("--config", config, "--set", "beta2=0.99", "--set", "median-clip=2", "--lr", "auto")
    done = called(*words(tiny_bundle, data, run, *flags))
    assert done.status == 0, done.err
    header = journal.read(run / "journal.ezj").header
    chosen = header["settings"]
    assert (chosen["beta1"], chosen["beta2"], chosen["median_clip"]) == (0.5, 0.99, 2.0)
    rate = header["lr"]["lr"]
    assert header["probe"]["lr"] == rate > 0 and header["probe"].keys() >= {"slope", "curvature"}
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    assert settings["lr"] == rate and settings["eps"] == 1e-3
    assert settings["options"] == {n: v for n, v in chosen.items() if n not in settings}
    out = tmp_path / "again.edgezo"
    assert called("replay", run, "--base", tiny_bundle, "--out", out).status == 0
    weights = (run / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == weights

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "model.safetensors").unlink()
    content = (copy / "journal.ezj").read_bytes()
    (copy / "journal.ezj").write_bytes(content[: -16 * 3])
    assert {path.name[:6] for path in (copy / "snapshots").iterdir()} == {"step-0", "state-"}
    done = called("resume", copy)
    assert done.status == 0, done.err
    assert (copy / "model.safetensors").read_bytes() == weights
    assert (copy / "journal.ezj").read_bytes() == content

    settings["options"]["beta1"] = 0.25
    (copy / "settings.yaml").write_text(yaml.safe_dump(settings))
    refused(called("resume", copy), 2, "options", "the run began with")


def test_an_option_of_the_method_is_no_setting_of_the_adapter(
    tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    flags = ("--method", "lozo", "--set", "rank=3", "--set", "interval=2")
    done = called(*words(tiny_bundle, data, tmp_path / "run", *flags))
    assert done.status == 0, done.err
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert settings["options"]["rank"] == 3 and settings["rank"] is None
    assert settings["lr"] == FORWARD_ONLY["lozo"].full_lr


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--set", "colour=red"), ("method fzoo has no setting 'colour'", "samples")),
        (("--set", "rank"), ("--set rank sets nothing", "NAME=VALUE")),
        (("--set", "eps=0"), ("eps is '0'", "above 0")),
        (("--set", "seed=1"), ("method fzoo has no setting 'seed'",)),
        (("--method", "mezo", "--samples", 4), ("method mezo has no setting 'samples'",)),
        (("--method", "adamx"), ("'adamx' is unknown", "zo-adam")),
        (("--method", "adamw"), ("has no gradient graph", "--gradients")),
        (("--lr", "some"), ("lr", "'some'", "a number or auto")),
        (("--lr", "auto", "--eps", 1e30), ("no learning rate was found", "--lr")),
    ],
)
def test_what_is_wrong_is_named(
    tiny_bundle: Path, data: Path, tmp_path: Path, flags: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    status = 1 if "auto" in flags else 2
    refused(called(*words(tiny_bundle, data, tmp_path / "run", *flags)), status, *parts)
    assert not (tmp_path / "run" / "journal.ezj").exists()


def test_finding_a_rate_leaves_no_trace(tiny_bundle: Path, data: Path) -> None:
    model = edgezo.load(tiny_bundle, threads=1)
    before = {name: view.copy() for name, view in model.arena.views.items()}
    batches = edgezo.batches(str(data / "train.jsonl"), model, task="classify", batch_size=4)
    probe = [batch for batch, _ in zip(batches, range(3), strict=False)]
    tuner = edgezo.Tuner(model, method="sparse-mezo", options={"sparsity": 0.5}, probe=probe)
    assert all((view == before[name]).all() for name, view in model.arena.views.items())
    assert tuner.step(probe[0]).lr == pytest.approx(tuner.header["probe"]["lr"])
    with pytest.raises(InputError, match="give one of them"):
        edgezo.Tuner(model, lr=1e-3, probe=probe)
    with pytest.raises(InputError, match="load the bundle again"):
        edgezo.Tuner(model, probe=probe)


def test_options_must_be_names_with_values(tmp_path: Path) -> None:
    given = {"bundle": "b", "data": "d", "out": "o", "options": ["rank"]}
    with pytest.raises(InputError, match=r"sets options to \['rank'\].*names with values"):
        Settings.from_dict(given, "x.yaml")
