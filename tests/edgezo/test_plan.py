"""The planner: memory and time predicted, limits kept, and batches in parts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from edgezo_runs import called, command_line, refused, result_of, run, words, write_rows
from foreign_files import classifier, save

from edgezo.callbacks import Callback
from edgezo.objectives import OBJECTIVES, parted
from edgezo.plan import limit as plan_limit
from edgezo.plan import planner
from edgezo.plan.amounts import parse_memory, parse_time
from edgezo.plan.measured import Needs, Opened, Rehearsed
from edgezo.plan.planner import Limits, families, make_plan
from edgezo.recipe import complete
from edgezo.settings import RunSettings, Settings
from edgezo.train import resume
from edgezo.train import train as run_training
from edgezo.training_data import prepare
from edgezo_export.gradients.bundle import add_to_bundle
from edgezo_export.onnx_file import onnx_to_bundle
from edgezo_runtime import memory
from edgezo_runtime.batch import CandidateLoss, OptionLoss, TokenLoss
from edgezo_runtime.bundle import GRADIENTS, TANGENTS, open_bundle
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.journal import read
from edgezo_runtime.methods import METHODS
from edgezo_runtime.model import Model, load
from edgezo_runtime.noise import Direction
from edgezo_runtime.parts import PartedBatch


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with its graphs of derivatives."""
    folder = tmp_path_factory.mktemp("derivatives")
    add_to_bundle(open_bundle(tiny_bundle), folder / "gradients.edgezo", GRADIENTS)
    add_to_bundle(open_bundle(folder / "gradients.edgezo"), folder / "tiny.edgezo", TANGENTS)
    return folder / "tiny.edgezo"


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(bundle, threads=1)


# Amounts


@pytest.mark.parametrize(
    ("text", "count"),
    [("700MB", 700e6), ("1.5GB", 1.5e9), ("2 GiB", 2**31), ("512mib", 2**29), (".5kb", 500)],
)
def test_sizes(text: str, count: float) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["700", "MB", "-1GB", "0MB", "7 pounds", "1e3MB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--memory is .* give a size such as 700MB"):
        parse_memory(text)
    with pytest.raises(InputError, match=r"--time is .* give a time such as 90s"):
        parse_time(text)


def test_auto_is_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.free_bytes()
    assert free is None or 0 < free < 1 << 50
    monkeypatch.setattr(memory, "_group_bytes", lambda: iter([12345]))
    assert free is None or parse_memory("auto") == 12345


def test_a_control_group_leaves_its_limit_less_what_it_cannot_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "fs" / "own"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("700\n")
    (group / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    (group.parent / "memory.max").write_text("max\n")
    (tmp_path / "cgroup").write_text("0::/own\n")
    places = {"/proc/self/cgroup": tmp_path / "cgroup", "/sys/fs/cgroup": tmp_path / "fs"}
    monkeypatch.setattr(memory, "Path", lambda path: places.get(str(path), Path(path)))
    assert list(memory._group_bytes()) == [550]


# Batches in parts


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("train", CandidateLoss),
        ("text", TokenLoss),
        ("completion", TokenLoss),
        ("shared", OptionLoss),
    ],
)
def test_parts_add_up_to_the_whole(
    model: Model, data: Path, tmp_path: Path, file: str, kind: type
) -> None:
    path = data / f"{file}.jsonl"
    if file == "shared":  # labels that share their first token are options of several tokens
        labels = ("good film", "good story", "good music band")
        rows = ({"text": words(i, 5), "label": labels[i % 3]} for i in range(20))
        path = write_rows(tmp_path / "shared.jsonl", rows)
    settings = RunSettings(bundle="", data=str(path), out="", batch_size=7)
    found = prepare(model, settings)
    indices = np.array([3, 14, 8, 9, 1, 12, 6])
    whole = found.batch(indices)
    parts = parted(found.batch, 3, "loss")(indices)
    assert isinstance(parts, PartedBatch) and len(parts.parts) == 3
    assert isinstance(whole.objective, kind)
    assert parts.loss(model) == pytest.approx(whole.loss(model), rel=1e-6)
    slopes = [model.derivative(batch, Direction(0, 1)) for batch in (parts, whole)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)
    names = list(model.arena.views)
    expected: dict[str, np.ndarray] = {}
    loss = model.descend(whole, names, expected.__setitem__, keep=0)
    for keep in (False, True):
        sums: dict[str, np.ndarray] = {}
        assert model.descend(parts, names, sums.__setitem__, keep) == pytest.approx(loss, rel=1e-6)
        assert sums.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(sums[name], gradient, atol=2e-5 * scale, err_msg=name)


def test_parts_of_arrays_add_up_too(tmp_path: Path) -> None:
    onnx_to_bundle(save(classifier(), tmp_path / "model.onnx"), tmp_path / "b.edgezo")
    arrays = load(tmp_path / "b.edgezo", threads=1)
    noise = np.random.default_rng(0).normal(size=(10, 2, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", image=noise, label=np.arange(10) % 3)
    found = prepare(arrays, RunSettings(bundle="", data=str(tmp_path / "d.npz"), out=""))
    indices = np.array([3, 9, 8, 0, 1, 2, 6])
    parts = parted(found.batch, 3, "loss")(indices)
    assert parts.loss(arrays) == pytest.approx(found.batch(indices).loss(arrays), rel=1e-6)


def test_a_batch_that_fits_is_not_cut(model: Model, data: Path) -> None:
    found = prepare(model, RunSettings(bundle="", data=str(data / "train.jsonl"), out=""))
    batch = parted(found.batch, 8, "loss")(np.arange(8))
    assert not isinstance(batch, PartedBatch)


def test_only_means_are_cut() -> None:
    for name in OBJECTIVES[2:]:
        with pytest.raises(InputError, match=f"objective {name} judges a batch as a whole"):
            parted(lambda indices: pytest.fail(), 3, name)


class _StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self._step = step
        self._done = 0

    def on_step(self, step: Any, seconds: float) -> None:
        self._done = step.number

    def should_stop(self) -> bool:
        return self._done >= self._step


@pytest.mark.parametrize("method", ["mezo", "adamw", "hift-adamw", "addax"])
def test_runs_in_parts(bundle: Path, data: Path, tmp_path: Path, method: str) -> None:
    """They find what runs at once find, and stop and go on to the same bytes."""
    settings = Settings(
        bundle=str(bundle),
        data=str(data / "train.jsonl"),
        eval_data=str(data / "dev.jsonl"),
        out=str(tmp_path / "whole"),
        method=method,
        steps=6,
        batch_size=8,
        lr=1e-4,
        threads=1,
    )
    parts = dataclasses.replace(settings, micro_batch=3, out=str(tmp_path / "parts"))
    whole, once = run_training(settings), run_training(parts)
    assert whole.metrics and once.metrics
    assert once.metrics.accuracy == whole.metrics.accuracy
    scalars = [
        np.array([record.scalars for record in read(result.run.journal).records])
        for result in (whole, once)
    ]
    assert read(once.run.journal).header["order"]["micro_batch"] == 3
    np.testing.assert_allclose(scalars[1], scalars[0], rtol=2e-2, atol=2e-3)
    stopped = dataclasses.replace(parts, out=str(tmp_path / "stopped"))
    assert not run_training(stopped, _StopAfter(3)).finished
    file = tmp_path / "stopped" / "settings.yaml"
    kept = file.read_text()
    file.write_text(kept.replace("micro_batch: 3", "micro_batch: 4"))
    with pytest.raises(InputError, match="order is not what it was"):
        resume(tmp_path / "stopped")
    file.write_text(kept)
    assert resume(tmp_path / "stopped").finished
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "parts")


# The planner, over rehearsals that are made up


MB = 1_000_000
WEIGHTS = 500 * MB
ONE_SLOT = ("sgd", "adagrad", "rmsprop", "lion")
STATE = {"adamw": 400 * MB, "zo-adam": 400 * MB} | dict.fromkeys(ONE_SLOT, 200 * MB)
#: Peak of each rehearsal on whole batches; half of what is above the weights goes with the rows.
PEAK = {"ip-sgd": 900, "adamw": 1500, "sgd": 1300, "hift-adamw": 700, "addax": 950, "mezo": 600}
PEAK |= {"fzoo": 580, "hybrid": 930, "forward-grad": 720}  # fzoo is the recipe


class FakeStage:
    """Stands for the process of a rehearsal.

    Attributes:
        runs: method and rows per pass of each rehearsal so far.
    """

    runs: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings

    def __enter__(self) -> FakeStage:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def open(self, methods: Sequence[str]) -> Opened:
        needs = {name: Needs(STATE.get(name, 0), 0) for name in methods if name != "qzo"}
        return Opened(WEIGHTS, WEIGHTS, needs, {n: "no scales" for n in methods if n == "qzo"})

    def run(self, method: str, others: Sequence[str] = ()) -> Rehearsed:
        self.runs.append((method, self._settings.rows))
        if method == "addax-wa":
            raise EdgezoError("the process ended")
        return Rehearsed(
            method=method,
            needs=Needs(STATE.get(method, 0), 0),
            peak=self.peak(method, self._settings.rows),
            rows=16,
            cells=(640, 40),
            seconds=(2.5, 0.7),
            mean=320.0,
            load=3.0,
            evaluation=1.0,
            own={name: (0.5, 1.0 + (name == "lomo")) for name in (method, *others)},
        )

    def least(self, method: str) -> int:
        return self.peak(method, 1)

    def peak(self, method: str, rows: int) -> int:
        above = (PEAK[method] * MB - WEIGHTS) / 2
        return round(WEIGHTS + above + above * rows / 16)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeStage]:
    for module in (planner, plan_limit):
        monkeypatch.setattr(module, "Stage", FakeStage)
    monkeypatch.setattr(planner, "free_bytes", lambda: None)
    monkeypatch.setattr(planner, "complete", completed)
    FakeStage.runs.clear()
    return FakeStage


GIVEN: dict[str, Any] = {"bundle": "b", "data": "d", "out": "o"}
RUN = RunSettings(**GIVEN)


def completed(asked: Settings) -> RunSettings:
    """Stands for the recipe of a bundle."""
    if asked.method is None:
        steps = asked.steps or 300
        asked = dataclasses.replace(asked, method="fzoo", tune="upper", steps=steps)
    return complete(asked)


def planned(megabytes: float, seconds: float | None = None) -> planner.Plan:
    limits = Limits(round(megabytes * MB), seconds)
    return make_plan(Settings(**GIVEN), limits, lambda line: None)


def test_every_method_is_planned_once() -> None:
    assert sorted(name for names in families() for name in names) == sorted(METHODS)
    assert all(names[0] in PEAK or len(names) == 1 for names in families())


def test_methods_differ_by_state_and_own_work(fake: type[FakeStage]) -> None:
    plan = planned(2000)
    titles = [each.title for each in plan.alternatives]
    assert titles[:6] == [*planner.GRADIENTS, "fzoo (recipe)", "mezo"]
    found = {each.run.method: each for each in plan.alternatives if not each.recipe}
    assert found.keys() | plan.unavailable.keys() == METHODS.keys()
    assert plan.unavailable == {"qzo": "no scales", "addax-wa": "the process ended"}
    peaks = {"adamw": 1500, "lion": 1300, "sgd": 1300, "lomo": 900, "mezo": 600, "zo-adam": 1000}
    for name, peak in peaks.items():
        assert found[name].peak == peak * MB
        assert found[name].fits and found[name].run.micro_batch is None
    # 0.003 s a cell and 0.08 s a pass; 100 steps of 320 cells, 0.5 s of its own, 4 s around them.
    assert found["adamw"].seconds == pytest.approx(4 + 100 * 1.54)
    assert found["lomo"].seconds == pytest.approx(4 + 100 * 2.58)
    assert found["mezo"].seconds == pytest.approx(4 + 1000 * 1.54)


@pytest.mark.parametrize(
    ("megabytes", "method", "rows"),
    [
        (1600, "adamw", None),
        (1400, "adamw", 10),
        (1000, "hift-adamw", None),
        (690, "hift-adamw", 8),
        (620, "fzoo", None),
        (590, "fzoo", 8),
        (560, None, None),
    ],
)
def test_the_pick_fits(
    fake: type[FakeStage], megabytes: int, method: str | None, rows: int | None
) -> None:
    pick = planned(megabytes).pick
    if pick is None:
        assert method is None
    else:
        assert (pick.run.method, pick.run.micro_batch) == (method, rows)
        most = plan_limit.SAFE * megabytes * MB
        assert pick.peak <= most
        if rows:
            stage = FakeStage(RUN)
            assert pick.peak == pytest.approx(stage.peak(pick.run.method, rows))
            assert stage.peak(pick.run.method, rows + 1) > most


def test_what_this_machine_has_no_room_for_is_not_rehearsed(
    fake: type[FakeStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "free_bytes", lambda: 750 * MB)
    found = {each.run.method: each for each in planned(750).alternatives}
    assert ("sgd", 16) in fake.runs and ("adamw", 16) not in fake.runs
    assert found["adamw"].peak == 1500 * MB and not found["adamw"].fits


@pytest.mark.parametrize(("seconds", "steps"), [(100, 62), (1000, 100), (60, 36)])
def test_time_chooses_the_steps(fake: type[FakeStage], seconds: float, steps: int) -> None:
    pick = planned(2000, seconds).pick
    assert pick and (pick.run.method, pick.run.steps) == ("adamw", steps)
    assert pick.seconds <= seconds < pick.seconds + 1.54 or steps == pick.usual


def test_a_method_that_hardly_starts_gives_way(
    fake: type[FakeStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "HIFT_STEPS", 20)
    pick = planned(2000, 60).pick
    assert pick and (pick.run.method, pick.run.steps) == ("hift-adamw", 20)


def choose(megabytes: float, **given: Any) -> RunSettings:
    asked = Settings(**GIVEN, **given)
    return planner.choose(asked, round(megabytes * MB), lambda line: None)


def test_the_plans_method_is_taken_where_none_is_named(fake: type[FakeStage]) -> None:
    chosen = choose(1000)
    assert (chosen.method, chosen.steps, chosen.micro_batch) == ("hift-adamw", 300, None)
    assert choose(1000, steps=7).steps == 7
    with pytest.raises(
        InputError, match=r"nothing fits in --memory 560 MB: fzoo .recipe. needs the least"
    ):
        choose(560)


def test_a_named_method_is_cut_until_it_fits(
    fake: type[FakeStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose(1400, method="adamw")
    assert (chosen.method, chosen.steps, chosen.micro_batch) == ("adamw", 1000, 10)
    assert fake.runs == [("adamw", 16), ("adamw", 10)]
    even = FakeStage.peak
    monkeypatch.setattr(FakeStage, "peak", lambda *a: even(*a) + 100 * MB * (a[2] == 10))
    assert choose(1400, method="adamw").micro_batch == 5
    assert choose(1600, method="adamw").micro_batch is None


@pytest.mark.parametrize(
    ("megabytes", "given", "sentence"),
    [
        (400, {"method": "mezo"}, "below the weights themselves, which take 500 MB"),
        (400, {}, "below the weights themselves, which take 500 MB"),
        (850, {"method": "adamw"}, "adamw holds 400 MB of state besides 500 MB of weights"),
        (1000, {"method": "adamw"}, "adamw needs 1,032 MB, however .* give --memory 1,086 MB"),
        (620, {"method": "mezo", "objective": "accuracy"}, "mezo needs 600 MB"),
        (2000, {"method": "qzo"}, "no scales"),
    ],
)
def test_what_cannot_fit_is_refused(
    fake: type[FakeStage], megabytes: float, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        choose(megabytes, **given)


def test_the_plan_on_the_command_line(fake: type[FakeStage]) -> None:
    words = ("plan", "b", "--data", "d", "--memory", "1.4GB", "--time", "10m")
    done = called(*words, "--json")
    assert done.status == 0, done.err
    found = done.json
    assert (found["method"], found["micro_batch"], found["steps"]) == ("adamw", 10, 100)
    assert found["predicted_peak_rss_mb"] == 1312.5
    assert found["predicted_seconds"] == pytest.approx(4 + 100 * 1.62)
    mezo = next(each for each in found["alternatives"] if each["method"] == "mezo")
    assert mezo == {
        "method": "mezo",
        "tune": "full",
        "recipe": False,
        "steps": 387,
        "predicted_peak_rss_mb": 600.0,
        "predicted_seconds": 600.0,
        "fits": True,
    }
    table = called(*words)
    assert re.search(r"^adamw +1312 +2:46 +100 +10 +yes$", table.out, re.M)
    assert "not qzo: no scales" in table.out and "take --method adamw and --steps 100" in table.out
    none = called("plan", "b", "--data", "d", "--memory", "510MB")
    assert none.status == 0 and "nothing fits in --memory 510 MB" in none.out
    refused(called("plan", "b", "--data", "d", "--memory", "510"), 2, "give a size such as 700MB")
    refused(called("plan", "b", "--data", "d", "--memory", "1MB"), 2, "below the weights")


def test_training_keeps_what_the_plan_chose(
    fake: type[FakeStage], bundle: Path, data: Path, tmp_path: Path
) -> None:
    files = ("--data", data / "train.jsonl", "--out", tmp_path / "run")
    done = called("train", bundle, *files, "--steps", 2, "--threads", 1, "--memory", "690MB")
    assert done.status == 0, done.err
    assert "the plan: hift-adamw, 2 steps" in done.err
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert (settings["method"], settings["micro_batch"]) == ("hift-adamw", 8)


# And over real ones


def test_a_run_keeps_its_limit_and_the_prediction(bundle: Path, tmp_path: Path) -> None:
    """Batches of 512 rows, whose activations are several times what the process has else."""
    labels = ("negative", "positive")
    rows = ({"text": words(i, 20 + i % 21), "label": labels[i % 2]} for i in range(512))
    data = write_rows(tmp_path / "wide.jsonl", rows)
    flags = ("--method", "adamw", "--steps", 2, "--batch-size", 512, "--threads", 2, "--json")
    files = ("--data", data, "--out", tmp_path / "run")
    done = run(command_line("train", bundle, *files, *flags, "--memory", "260MB"))
    assert done.status == 0, done.err
    peak = done.json["peak_rss_mb"]
    assert peak <= 260
    predicted = re.search(r"predicted peak memory: (\d+) MB of 260 MB", done.err)
    assert predicted and float(predicted[1]) == pytest.approx(peak, rel=0.15)
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert 1 < settings["micro_batch"] < 512
