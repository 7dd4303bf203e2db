"""Methods with true gradients and their runs, on a tiny Llama."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import cuda_stand_in
import numpy as np
import pytest
from edgezo_runs import called, refused, result_of
from gradient_batches import OBJECTIVES, batch_of
from safetensors.numpy import load_file

from edgezo.callbacks import Callback
from edgezo.settings import Settings
from edgezo.train import resume
from edgezo.train import train as run_training
from edgezo_runtime.arena import Arena
from edgezo_runtime.bundle import Bundle, Manifest, Parameter
from edgezo_runtime.devices import CpuDevice
from edgezo_runtime.errors import InputError
from edgezo_runtime.first_order.groups import layer_groups
from edgezo_runtime.first_order.loss import BatchLoss
from edgezo_runtime.first_order.required import check_graph
from edgezo_runtime.journal import read
from edgezo_runtime.methods import METHODS, make
from edgezo_runtime.methods.first_order import FIRST_ORDER
from edgezo_runtime.methods.hift import HIFT, Hift
from edgezo_runtime.model import load


@pytest.mark.parametrize("method", [m.name for m in (*FIRST_ORDER, *HIFT)])
def test_each_method_learns(derived_bundle: Path, method: str) -> None:
    model = load(derived_bundle, threads=1)
    made = make(method, model.arena, 0, {"weight_decay": 0.01})
    assert made.settings()["weight_decay"] == 0.01
    loss = BatchLoss(model, batch_of(OBJECTIVES["tokens"]))
    rate = {"ip-sgd": 0.05, "hift-sgd": 0.05, "sgd": 0.01, "lomo": 0.1, "hift-adalomo": 0.05}
    lr = np.float32(rate.get(method, 5e-3))
    before = loss()
    estimates = [made.step(number, loss, lr) for number in range(1, 13)]
    assert estimates[0].loss == pytest.approx(before, rel=1e-5)
    assert loss() < 0.8 * before
    assert not any(estimate.record.skipped for estimate in estimates)


def test_hift_changes_one_group_a_step(derived_bundle: Path) -> None:
    model = load(derived_bundle, threads=1)
    made = make("hift-adamw", model.arena, 0, {})
    loss = BatchLoss(model, batch_of(OBJECTIVES["tokens"]))
    groups = layer_groups(model.arena.parameters)
    assert sorted(itertools.chain(*groups)) == sorted(model.arena.views)
    assert [len(group) for group in groups] == [1, 9, 9, 1]
    for number in range(1, 6):
        before = {name: view.copy() for name, view in model.arena.views.items()}
        made.step(number, loss, np.float32(1e-3 * number))
        changed = [n for n, old in before.items() if not np.array_equal(old, model.arena.views[n])]
        assert changed == list(groups[(number - 1) % 4])
    down = make("hift-adamw", model.arena, 0, {"order": "top-down", "layers": 2})
    assert isinstance(down, Hift)
    assert down.names(1) == groups[3]  # what is before and after the layers is no layer
    assert down.names(2) == (*groups[1], *groups[2])


def test_hifts_rate_waits_for_the_next_cycle(derived_bundle: Path) -> None:
    model = load(derived_bundle, threads=1)
    made = make("hift-lion", model.arena, 0, {})
    loss = BatchLoss(model, batch_of(OBJECTIVES["tokens"]))
    for number, expected in ((1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.25)):
        rate = np.float32(0.5 if number == 1 else 0.25)
        before = {name: view.copy() for name, view in model.arena.views.items()}
        made.step(number, loss, rate)
        moved = max(np.abs(model.arena.views[n] - old).max() for n, old in before.items())
        assert moved == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "full", "head", "norm", "lora", "prefix"),
    [
        ("adamw", 2e-5, 1e-4, 5e-4, 1e-3, 3e-3),
        ("hift-adamw", 1e-4, 1e-4, 5e-4, 1e-3, 3e-3),
        ("lion", 1e-5, 5e-5, 2.5e-4, 5e-4, 1.5e-3),
        ("ip-sgd", 3e-3, 3e-3, 3e-3, 0.095, 0.49),
        ("addax", 3e-3, 3e-3, 3e-3, 0.095, 0.49),
        ("adalomo", 5e-4, 5e-4, 5e-4, 5e-4, 5e-4),
    ],
)
def test_the_rate_suits_what_is_tuned(
    method: str, full: float, head: float, norm: float, lora: float, prefix: float
) -> None:
    weights = Parameter("layers.0.weight", (4, 4), "float32", "linear")
    expected = {"norm": norm, "bias": norm, "lora": lora, "prompt": lora, "prefix": prefix}
    light = [Parameter(f"layers.0.{kind}", (4,), "float32", kind) for kind in expected]
    for parameter in light:
        arenas = Arena([parameter]), Arena([weights, parameter])
        rates = [make(method, arena, 0, {}).lr for arena in arenas]
        assert rates == [expected[parameter.kind], full]
    last = Parameter("lm_head.weight", (4, 4), "float32", "linear")
    rates = [make(method, Arena(each), 0, {}).lr for each in ([last], [*light, last], light)]
    assert rates == [head, head, norm]


@pytest.mark.parametrize(("name", "kind"), [("grad.onnx", "gradient"), ("tangent.onnx", "tangent")])
def test_quantised_and_halved_weights_have_no_graph(tmp_path: Path, name: str, kind: str) -> None:
    weights = (
        Parameter("norm.weight", (4,), "float32", "norm"),
        Parameter("layers.0.weight_packed", (4, 4), "uint8", "quantized"),
    )
    half = Parameter("layers.0.weight", (4, 4), "float16", "linear")
    for parameters, why in (
        (weights, f"has no {kind}s: tune it with qzo"),
        ((half,), f"is float16, and {kind}s are those of float32 models"),
        (weights[:1], f"edgezo export .* --{kind}s --out NEW"),
    ):
        with pytest.raises(InputError, match=why):
            check_graph(Bundle(tmp_path, Manifest(parameters, (), (), 64)), CpuDevice(1), name)


def train(derived_bundle: Path, data: Path, out: Path, *flags: object) -> None:
    files = ("--data", data / "train.jsonl", "--out", out, "--steps", 12, "--batch-size", 4)
    done = called("train", derived_bundle, *files, "--lr", 1e-3, "--threads", 1, *flags)
    assert done.status == 0, done.err


@pytest.mark.parametrize("method", ["adamw", "hift-adamw", "addax", "hybrid"])
def test_a_broken_run_goes_on_to_the_same_bytes(
    derived_bundle: Path, data: Path, tmp_path: Path, method: str
) -> None:
    whole = tmp_path / "whole"
    flags = ("--method", method, "--snapshot-every", 5)
    train(derived_bundle, data, whole, *flags)
    header = read(whole / "journal.ezj").header
    assert header["replay"] is False
    for kept in (2, 1, 0):  # snapshots that are left: of steps 5 and 10, of 5, none
        broken = tmp_path / f"broken{kept}"
        shutil.copytree(whole, broken)
        (broken / "model.safetensors").unlink()
        notes = sorted((broken / "snapshots").glob("step-*.json"))
        assert len(notes) == 2
        for note in notes[kept:]:
            note.unlink()
        done = called("resume", broken)
        assert done.status == 0, done.err
        assert result_of(broken) == result_of(whole)


def test_a_run_on_the_card_is_the_cpu_s_within_rounding(
    derived_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the card; also where the frozen layers are read from a file."""
    cuda_stand_in.install(monkeypatch)
    upper = ("--tune", "model.layers.1.*", "--prefix-cache", "float32")
    for method, flags in (("hift-adamw", ()), ("addax-wa", upper)):
        runs = [tmp_path / f"{method}-{device}" for device in ("cpu", "cuda")]
        for run in runs:
            device = run.name.rpartition("-")[2]
            chosen = ("--method", method, "--device", device, "--snapshot-every", 8, *flags)
            train(derived_bundle, data, run, *chosen)
        ours, theirs = (load_file(run / "model.safetensors") for run in runs)
        for name, weights in theirs.items():
            np.testing.assert_allclose(ours[name], weights, rtol=1e-4, atol=1e-5)
        whole = result_of(runs[1])
        (runs[1] / "model.safetensors").unlink()
        assert called("resume", runs[1]).status == 0
        assert result_of(runs[1]) == whole


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self._left = steps

    def should_stop(self) -> bool:
        self._left -= 1
        return self._left == 0


def test_a_stop_keeps_all_that_was_done(derived_bundle: Path, data: Path, tmp_path: Path) -> None:
    files = {"bundle": str(derived_bundle), "data": str(data / "train.jsonl")}
    given = {**files, "method": "lion", "steps": 8, "batch_size": 4, "lr": 1e-3, "threads": 1}
    for name, stop in (("whole", None), ("stopped", 5)):
        settings = Settings.from_dict({**given, "out": str(tmp_path / name)}, "test")
        result = run_training(settings, StopAfter(stop or 100))
    assert (result.steps, result.finished) == (5, False)
    assert (tmp_path / "stopped" / "snapshots" / "state-00000005.safetensors").is_file()
    assert resume(tmp_path / "stopped").steps == 8
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")


def test_a_damaged_state_is_not_used(derived_bundle: Path, data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(derived_bundle, data, whole, "--method", "sgd", "--snapshot-every", 6)
    shutil.copytree(whole, broken)
    state = max((broken / "snapshots").glob("state-*.safetensors"))
    damaged = bytearray(state.read_bytes())
    damaged[-3] ^= 1
    state.write_bytes(damaged)
    assert called("resume", broken).status == 0
    assert result_of(broken) == result_of(whole)


def test_what_is_refused(
    derived_bundle: Path, tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    train(derived_bundle, data, tmp_path / "run", "--method", "ip-sgd")
    replay = called("replay", tmp_path / "run", "--base", derived_bundle, "--out", tmp_path / "out")
    refused(replay, 2, "true gradients (ip-sgd)", "model.safetensors")
    files = ("--data", data / "train.jsonl", "--out", tmp_path / "none")
    lacking = called("train", tiny_bundle, *files, "--method", "adamw")
    refused(lacking, 2, "has no gradient graph", f"edgezo export {tiny_bundle} --gradients --out")
    batch = batch_of(OBJECTIVES["tokens"])
    with pytest.raises(InputError, match="no gradient by 'nothing'"):
        load(derived_bundle, threads=1).descend(batch, ["nothing"], lambda n, g: None, False)


def test_every_method_is_listed() -> None:
    wanted = {"ip-sgd", "sgd", "adamw", "adagrad", "rmsprop", "lion", "lomo", "adalomo"}
    assert wanted <= METHODS.keys()
    assert {"hift-adamw", "hift-lion", "hybrid"} <= METHODS.keys()
