"""What a rehearsal finds of a run, and what follows from it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from edgezo_runs import command_line, run, words, write_rows

from edgezo.plan.measured import Needs, Peak, Rehearsed
from edgezo.plan.rehearsal import Rehearsal
from edgezo.settings import RunSettings
from edgezo_runtime.errors import InputError
from edgezo_runtime.prefix_cache import PrefixCache

MB = 1_000_000


def test_a_state_on_disk_comes_on_top_of_no_pass() -> None:
    found = Rehearsed(
        method="hift-adamw",
        needs=Needs(200 * MB, 20 * MB),
        peak=Peak(1000 * MB, 900 * MB),
        rows=11,
        cells=(11, 1),
        seconds=(1.0, 0.1),
        mean=11.0,
        load=1.0,
        evaluation=1.0,
        own={},
    )
    peaks = {200: 1000, 150: 950, 100: 900, 0: 900}
    for state, peak in peaks.items():
        assert found.peak_of(Needs(state * MB, 0)) == peak * MB
    least = Peak(720 * MB, 600 * MB)  # of the passes 32 MB a row, gradients of the parts included
    assert found.rows_within(Needs(0, 20 * MB), least, 700 * MB) == (4, 696 * MB)
    assert found.rows_within(Needs(0, 20 * MB), least, 590 * MB) == (0, 600 * MB)
    assert found.rows_within(Needs(200 * MB, 20 * MB), least, 800 * MB) == (3, 780 * MB)


def test_a_rehearsal_starts_from_frozen_layers_as_the_run_does(
    derived_bundle: Path, data: Path
) -> None:
    given = {"bundle": str(derived_bundle), "data": str(data / "train.jsonl"), "out": "o"}
    kept = {"tune": "upper-quarter", "prefix_cache": "float32", "batch_size": 8, "micro_batch": 3}
    settings = RunSettings(**given, **kept, method="adamw", threads=1)
    rehearsal = Rehearsal()
    opened = rehearsal.open(settings.to_dict(), ["adamw"])
    assert opened["trained"] < opened["weights"] / 2
    found: list[dict[str, Any]] = []

    def find(cache: PrefixCache, feeds: Any) -> dict[str, Any]:
        found.append(looked(cache, feeds))
        return found[-1]

    looked = PrefixCache.find
    with mock.patch.object(PrefixCache, "find", find):
        rehearsed = rehearsal.run("adamw", ["adamw"])
    assert found and all(found)
    assert rehearsed["rows"] == 8 and min(rehearsed["seconds"]) > 0
    assert rehearsed["peak"][1] == 0
    whole = dataclasses.replace(settings, tune="full")
    rehearsal = Rehearsal()
    rehearsal.open(whole.to_dict(), ["adamw"])
    with pytest.raises(InputError, match="no frozen layers lie below"):
        rehearsal.run("adamw", ["adamw"])


def test_the_rehearsal_of_a_state_on_disk_knows_its_passes(
    derived_bundle: Path, data: Path
) -> None:
    settings = RunSettings(
        bundle=str(derived_bundle),
        data=str(data / "train.jsonl"),
        out="o",
        method="hift-adamw",
        steps=8,
        threads=1,
    )
    rehearsal = Rehearsal()
    rehearsal.open(settings.to_dict(), ["hift-adamw"])
    peak, passes = rehearsal.run("hift-adamw", ["hift-adamw"])["peak"]
    assert 0 < passes <= peak


def test_a_run_keeps_its_limit_and_the_prediction(derived_bundle: Path, tmp_path: Path) -> None:
    """Batches of 512 rows, whose activations are several times what the process has else."""
    labels = ("negative", "positive")
    rows = ({"text": words(i, 20 + i % 21), "label": labels[i % 2]} for i in range(512))
    data = write_rows(tmp_path / "wide.jsonl", rows)
    flags = ("--method", "adamw", "--steps", 2, "--batch-size", 512, "--threads", 2, "--json")
    files = ("--data", data, "--out", tmp_path / "run")
    done = run(command_line("train", derived_bundle, *files, *flags, "--memory", "260MB"))
    assert done.status == 0, done.err
    peak = done.json["peak_rss_mb"]
    assert peak <= 260
    predicted = re.search(r"predicted peak memory: (\d+) MB of 260 MB", done.err)
    assert predicted and float(predicted[1]) == pytest.approx(peak, rel=0.15)
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert 1 < settings["micro_batch"] < 512
