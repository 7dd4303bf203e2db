"""The planner, over rehearsals that are made up: what it picks, and limits that are kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from edgezo_runs import called, refused

from edgezo.plan import candidates, planner
from edgezo.plan import limit as plan_limit
from edgezo.plan.candidates import GRADIENT_METHODS, families
from edgezo.plan.measured import Needs, Opened, Peak, Rehearsed
from edgezo.plan.planner import Limits, make_plan
from edgezo.recipe import complete
from edgezo.settings import RunSettings, Settings
from edgezo_runtime.bundle import Manifest, Parameter
from edgezo_runtime.errors import EdgezoError, InputError
from edgezo_runtime.methods import METHODS

MB = 1_000_000
WEIGHTS = 500 * MB
ONE_SLOT = ("sgd", "adagrad", "rmsprop", "lion")
STATE = {"adamw": 400 * MB, "zo-adam": 400 * MB} | dict.fromkeys(ONE_SLOT, 200 * MB)
#: Peak of each rehearsal on whole batches; half of what is above the weights goes with the rows.
PEAK = {"ip-sgd": 900, "adamw": 1500, "sgd": 1300, "hift-adamw": 700, "addax": 950, "mezo": 600}
PEAK |= {"fzoo": 580, "hybrid": 930, "forward-grad": 720}  # fzoo is the recipe
#: Of that above the weights.
SHARE = {"lora": 0.3, "upper-quarter": 0.25}


class FakeStage:
    """Stands for the process of a rehearsal.

    Attributes:
        runs: method and rows per pass of each rehearsal so far.
        broken: what cannot be tuned.
    """

    runs: ClassVar[list[tuple[str, int]]] = []
    broken: ClassVar[str] = ""

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
        if self._settings.tune == self.broken:
            raise EdgezoError(f"no {self.broken}")
        if method == "addax-wa":
            raise EdgezoError("the process ended")
        return Rehearsed(
            method=method,
            needs=Needs(STATE.get(method, 0), 0),
            peak=Peak(self.peak(method, self._settings.rows), 0),
            rows=16,
            cells=(640, 40),
            seconds=(2.5, 0.7),
            mean=320.0,
            load=3.0,
            evaluation=1.0,
            own={name: (0.5, 1.0 + (name == "lomo")) for name in (method, *others)},
        )

    def least(self, method: str) -> Peak:
        return Peak(self.peak(method, 1), 0)

    def peak(self, method: str, rows: int) -> int:
        above = (PEAK[method] * MB - WEIGHTS) / 2
        above *= SHARE.get(self._settings.tune, 1)
        return round(WEIGHTS + above + above * rows / 16)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeStage]:
    for module in (planner, plan_limit):
        monkeypatch.setattr(module, "Stage", FakeStage)
    monkeypatch.setattr(planner, "free_bytes", lambda: None)
    for module in (planner, candidates):
        monkeypatch.setattr(module, "complete", completed)
    monkeypatch.setattr(planner, "open_bundle", lambda folder: SimpleNamespace(manifest=PLAIN))
    FakeStage.runs.clear()
    return FakeStage


def manifest(*files: str) -> Manifest:
    """Returns that of a language model of one block."""
    weight = Parameter("layers.0.weight", (2, 2), "float32", "linear")
    digests = dict.fromkeys(files, "")
    return Manifest((weight,), (), (), 512, files=digests)


PLAIN, DERIVED = manifest(), manifest("grad.onnx")
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
    assert titles[:6] == [*GRADIENT_METHODS, "fzoo (recipe)", "mezo"]
    found = {each.run.method: each for each in plan.alternatives if not each.recipe}
    lacking = {each.method: each.why for each in plan.unavailable}
    assert found.keys() | lacking.keys() == METHODS.keys()
    assert lacking == {"qzo": "no scales", "addax-wa": "the process ended"}
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
    monkeypatch.setattr(candidates, "HIFT_STEPS", 20)
    pick = planned(2000, 60).pick
    assert pick and (pick.run.method, pick.run.steps) == ("hift-adamw", 20)


@pytest.fixture
def derived(fake: type[FakeStage], monkeypatch: pytest.MonkeyPatch) -> type[FakeStage]:
    """Of a bundle with a gradient graph."""
    monkeypatch.setattr(planner, "open_bundle", lambda folder: SimpleNamespace(manifest=DERIVED))
    return fake


@pytest.mark.parametrize(
    ("megabytes", "seconds", "method", "tune", "steps"),
    [
        (2000, None, "adamw", "lora", 300),
        (900, None, "adamw", "lora", 300),
        (2000, 100, "adamw", "full", 62),  # LoRA would take 3 times as many
        (800, None, "adamw", "upper-quarter", 100),
        (740, None, "hift-adamw", "full", 300),
    ],
)
def test_fewer_weights_are_tried_where_nothing_is_said(
    derived: type[FakeStage],
    megabytes: int,
    seconds: float | None,
    method: str,
    tune: str,
    steps: int,
) -> None:
    pick = planned(megabytes, seconds).pick
    assert pick and (pick.run.method, pick.run.tune, pick.run.steps) == (method, tune, steps)
    assert pick.run.prefix_cache == ("float32" if tune == "upper-quarter" else None)
    asked = Settings(**GIVEN, tune="full")
    plan = make_plan(asked, Limits(2000 * MB), lambda line: None)
    assert {each.run.tune for each in plan.alternatives if not each.recipe} == {"full"}


def test_what_cannot_be_tuned_is_no_failure(
    derived: type[FakeStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "broken", "lora")
    done = called("plan", "b", "--data", "d", "--memory", "2GB", "--json")
    assert (done.json["tune"], done.json["alternatives"][0]["method"]) == ("full", "adamw")
    lacking = {"method": "adamw", "tune": "lora", "why": "no lora"}
    assert lacking in done.json["unavailable"]


def choose(megabytes: float, **given: Any) -> RunSettings:
    asked = Settings(**GIVEN, **given)
    return planner.choose(asked, round(megabytes * MB), lambda line: None)


def test_the_plans_method_is_taken_where_none_is_named(fake: type[FakeStage]) -> None:
    chosen = choose(1000)
    assert (chosen.method, chosen.steps, chosen.micro_batch) == ("hift-adamw", 300, None)
    assert choose(1000, steps=7).steps == 7
    with pytest.raises(
        InputError, match=r"nothing fits in --memory 560 MB: fzoo .recipe. on upper needs the least"
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
        (1000, {"method": "adamw"}, "adamw needs 1,032 MB, however .* give --memory 1,108 MB"),
        (620, {"method": "mezo", "objective": "accuracy"}, "mezo needs 600 MB"),
        (2000, {"method": "qzo"}, "no scales"),
    ],
)
def test_what_cannot_fit_is_refused(
    fake: type[FakeStage], megabytes: float, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        choose(megabytes, **given)


def test_what_is_told_to_be_enough_is_hardly_more_than_the_least(
    fake: type[FakeStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of parts are added up, which may take more than the whole batch does."""
    even = FakeStage.peak
    monkeypatch.setattr(FakeStage, "peak", lambda *a: even(*a) + 200 * MB * (a[2] == 1))
    with pytest.raises(InputError, match=r"needs 700 MB, however .* give --memory 752 MB"):
        choose(690, method="hift-adamw")


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
    assert re.search(r"^adamw +1312 +2:46 +100 +10 +yes +full$", table.out, re.M)
    assert "not qzo on full: no scales" in table.out
    assert "take --method adamw --tune full and --steps 100" in table.out
    none = called("plan", "b", "--data", "d", "--memory", "510MB")
    assert none.status == 0 and "nothing fits in --memory 510 MB" in none.out
    refused(called("plan", "b", "--data", "d", "--memory", "510"), 2, "give a size such as 700MB")
    refused(called("plan", "b", "--data", "d", "--memory", "1MB"), 2, "below the weights")


def test_training_keeps_what_the_plan_chose(
    fake: type[FakeStage], derived_bundle: Path, data: Path, tmp_path: Path
) -> None:
    files = ("--data", data / "train.jsonl", "--out", tmp_path / "run")
    done = called(
        "train", derived_bundle, *files, "--steps", 2, "--threads", 1, "--memory", "690MB"
    )
    assert done.status == 0, done.err
    assert "the plan: hift-adamw, 2 steps" in done.err
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert (settings["method"], settings["micro_batch"]) == ("hift-adamw", 8)
