"""The report: whole, self-contained, the same each time, and safe to open."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgezo import report_charts
from edgezo.finite_json import finite_json
from edgezo.report import Comparison, write_report
from edgezo.run_folder import MetricsFile, RunFolder
from edgezo_runtime.errors import InputError
from edgezo_runtime.journal import SKIPPED, JournalWriter, Record

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "br", "path", "use"}


def make_run(
    folder: Path, steps: int = 40, metric: str | None = "accuracy", skip: int | None = None
) -> RunFolder:
    """A run folder with metrics that improve; step `skip` was skipped."""
    run = RunFolder.create(folder)
    header = {"method": "mezo", "seed": 3, "base": "ab" * 32, "scalars": 1, "schema": 1}
    journal = JournalWriter(run.journal, header)
    metrics = MetricsFile(run)
    for step in range(1, steps + 1):
        skipped = step == skip
        flags = SKIPPED if skipped else 0
        journal.append(Record((np.float32(0.5),), np.float32(1e-5), flags))
        metrics.write(
            step=step,
            loss=math.nan if skipped else 2 / step,
            projected_grad=0.0 if skipped else (-1) ** step * 3 / step,
            lr=1e-5,
            skipped=skipped,
            seconds=0.5,
        )
        if metric and step % 10 == 0:
            value = 90 / step if metric == "perplexity" else step / steps
            metrics.write(step=step, eval={"examples": 30, "loss": 1.0, metric: value})
    journal.close()
    metrics.close()
    run.write_settings({"bundle": "/secret/folder/b.edgezo", "steps": steps, "template": HOSTILE})
    return run


def page_of(run: RunFolder, extra: Comparison | None = None) -> str:
    path = write_report(run, extra)
    assert path is not None
    assert path == run.path / "report.html"
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def tags_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags.seen


def test_shows_every_chart_and_figure(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", skip=7))
    for text in (
        "Loss of each batch",
        "Held-out accuracy, %",
        "Learning rate",
        "Size of the projected gradient",
        "1 skipped",
        "40 of 40",
        "25.0 % → 100.0 %",
        "20.0 s, 2.00 steps/s",
    ):
        assert text in page
    assert page.count("<svg") == 4
    assert (tmp_path / "run" / "report.html").stat().st_size < 400_000


def test_shows_what_the_objective_is_judged_by(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", metric="f1"))
    for text in ("Held-out F1, %", "held-out F1 after step 40", "25.0 % → 100.0 %"):
        assert text in page


def test_shows_perplexity_where_nothing_is_predicted(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", metric="perplexity"))
    assert "Held-out perplexity" in page
    assert "accuracy" not in page


def test_needs_no_other_file(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    seen = tags_of(page)
    assert not {tag for tag, _ in seen} & {"script", "link", "img", "iframe", "object", "base"}
    for _, attributes in seen:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "xlink:href", "src"):
                assert value and value.startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_ids_are_unique_and_every_reference_has_one(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_draws_in_the_colours_of_the_page(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", skip=3))
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "var(--ink)" in svg or "var(--muted)" in svg
        assert not re.search(r"(?:fill|stroke): #", svg)
    assert "prefers-color-scheme: dark" in page


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert page_of(run) == page_of(run)


def test_escapes_what_it_was_given(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a & <b>")
    example = {"text": HOSTILE, HOSTILE: HOSTILE, "label": "x", "before": HOSTILE, "after": "x"}
    page = page_of(run, Comparison([(HOSTILE, HOSTILE, HOSTILE)], [example]))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 8
    assert "a &amp; &lt;b&gt;" in page
    tags_of(page)


def test_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert "b.edgezo" in page
    assert "secret" not in page
    assert str(tmp_path) not in page


def test_comparison_is_shown_and_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    examples = [{"text": "play jazz", "label": "music", "before": "weather", "after": "music"}]
    page = page_of(run, Comparison([("accuracy", "55 %", "79 %")], examples))
    assert "✗ weather" in page
    assert "✓ music" in page
    assert "79 %" in page
    assert page_of(run) == page
    (run.path / "comparison.json").write_text(json.dumps({"rows": [1]}))
    assert "✓ music" not in page_of(run)


def test_run_without_a_step(tmp_path: Path) -> None:
    assert "No step was taken yet" in page_of(make_run(tmp_path / "run", steps=0))


@pytest.mark.parametrize("steps", [1, 2])
def test_short_run(tmp_path: Path, steps: int) -> None:
    assert page_of(make_run(tmp_path / "run", steps=steps)).count("<svg") == 3


@pytest.mark.filterwarnings("error")
def test_run_whose_losses_are_not_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, metric=None, skip=1)
    line = {"step": 1, "eval": {"examples": 1, "loss": math.inf, "perplexity": math.inf}}
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    assert "1 skipped" in page_of(run)


def test_metrics_are_json_even_where_losses_are_not_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, skip=2)
    text = (run.path / "metrics.jsonl").read_text()
    assert "NaN" not in text and json.loads(text.splitlines()[1])["loss"] is None
    losses = [line["loss"] for line in run.read_metrics() if "loss" in line]
    np.testing.assert_array_equal(losses, [2.0, math.nan, 2 / 3])
    MetricsFile(run, 3).close()  # a resume writes what it keeps again
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()
    assert finite_json({"a": [1, math.inf], "b": {"c": -math.inf}, "d": True}) == (
        '{"a": [1, null], "b": {"c": null}, "d": true}'
    )


def test_long_run_is_thinned_out(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": 1.0, "lr": 1e-5, "projected_grad": 1.0} for i in range(1, 9000)]
    charts = report_charts.draw(lines, [])
    assert sum(len(svg) for _, svg in charts) < 1_000_000


def test_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    run = make_run(tmp_path / "run")
    plain = page_of(run)
    with matplotlib.rc_context({"font.size": 30, "text.color": "red"}):
        mine = dict(matplotlib.rcParams)
        assert page_of(run) == plain
        assert dict(matplotlib.rcParams) == mine
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_there_is_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert write_report(run) is None
    assert not (run.path / "report.html").exists()


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "settings.yaml").write_text("- a list\n")
    with pytest.raises(InputError, match=r"settings\.yaml"):
        write_report(run)


def test_smoothing() -> None:
    assert report_charts.smoothed([]) == []
    assert report_charts.smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    assert report_charts.smoothed([1.0, 2.0]) == [1.0, 2.0]
    values = report_charts.smoothed([math.nan, 1.0, math.inf, 2.0])
    assert math.isnan(values[0])
    assert values[1:] == [1.0, 1.0, 2.0]
