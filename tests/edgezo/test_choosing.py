"""The charts of a comparison, and what docs/choosing.md shows of one."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgezo.callbacks import Callback
from edgezo.compare import Run, compare, plan
from edgezo.compare_charts import paint_curves, paint_memory
from edgezo.compare_lines import Line, lines_of, with_curves
from edgezo.compare_rows import RESULTS, read
from edgezo.run_folder import METRICS

pytest.importorskip("matplotlib")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW = {"steps": 4, "batch_size": 4, "threads": 1, "eval_every": 2, "eval_examples": 12}


def many_lines() -> list[Line]:
    """Twelve methods, most of them close together, and two baselines."""
    families = ["forward-only"] * 8 + ["hybrid"] * 2 + ["first-order"] * 2
    tuned = [
        Line(
            name=f"{family} $method$ {i}",
            family=family,
            score=84 + i / 4,
            memory=1.02 + 0.01 * i + 1.8 * (i == 11),
            curve=[(10 * t, (1 + i % 3) * t, 70 + (14 + i / 4) * t / 30) for t in range(1, 31)],
        )
        for i, family in enumerate(families)
    ]
    return [
        Line("zero-shot", "baseline", 80.0, 1.0, []),
        Line("linear-probe", "baseline", 84.1, 1.03, []),
        *tuned,
    ]


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("paint", [partial(paint_curves, axis=1), paint_memory])
def test_names_of_many_methods_can_be_read(paint: Any, scale: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text

    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale(scale)
    lines = many_lines()
    paint(lines, axes=axes)
    canvas.draw()
    texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
    assert sorted(text.get_text() for text in texts) == sorted(line.name for line in lines)
    # An annotation's own extent would count its line, too.
    extents = [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]
    for number, box in enumerate(extents):
        assert box.count_overlaps(extents[:number]) == 0, texts[number].get_text()
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1


@contextlib.contextmanager
def unseen(run: Run) -> Iterator[Callback]:
    yield Callback()


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison made in three calls, of which the last changed a line's settings.

    Of one line the runs are gone, and one run is not finished.
    """
    out = tmp_path_factory.mktemp("comparison") / "out"
    prompt = out.with_name("mine.yaml")
    prompt.write_text("template: '{text} is'\n")
    files = {"data": str(data / "train.jsonl"), "eval_data": str(data / "dev.jsonl")}
    task = {"mine": files | {"prompt": str(prompt)}}
    es: dict[str, Any] = {"method": "es", "samples": 3, "lr": 1e-3}
    for methods, ratio in (
        ({"mezo": {"lr": 1e-3}}, 1.25),
        ({"es few": es, "gone": {"method": "es", "lr": 1e-4}}, None),
        ({"es few": es | {"samples": 2, "steps": 6}}, 1.5),
    ):
        if ratio == 1.5:
            shutil.rmtree(out / "mine" / "es few")
        runs = plan(str(tiny_bundle), task, methods, [0, 1], FEW, out)
        list(compare(runs, out, unseen, memory=lambda run, ratio=ratio: ratio))
    shutil.rmtree(out / "mine" / "gone")
    stopped = out / "mine" / "stopped" / "seed-0"
    shutil.copytree(out / "mine" / "mezo" / "seed-0", stopped)
    lines = (stopped / METRICS).read_text().splitlines(keepends=True)
    (stopped / METRICS).write_text("".join(lines[:4]))  # two steps, an evaluation and a step
    with (out / RESULTS).open("a") as file:
        file.write('{"task": "torn')
    return out


def test_lines_are_means_over_seeds(folder: Path) -> None:
    rows = [row for row in read(folder) if row["method"] in ("zero-shot", "mezo")]
    zero, mezo = lines_of(with_curves(folder, rows))
    assert (zero.family, zero.memory, zero.curve) == ("baseline", 1.25, [])
    assert zero.score == 100 * rows[0]["accuracy"]
    scores = [100 * row["accuracy"] for row in rows[1:]]
    assert len(scores) == 2 and mezo.score == pytest.approx(statistics.fmean(scores))
    assert [point[0] for point in mezo.curve] == [4, 8]
    assert mezo.curve[-1][1] == pytest.approx(
        statistics.fmean(r["seconds"] for r in rows[1:]), abs=0.01
    )
    assert mezo.curve[-1][2] == pytest.approx(mezo.score)


def test_what_the_page_shows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    choosing = importlib.import_module("choosing")
    text = choosing.PAGE.read_text("utf-8")
    assert all(text.count(mark) == 1 for mark in choosing.MARKS)
    page, record = tmp_path / "choosing.md", tmp_path / "choosing.json"
    monkeypatch.setattr(choosing, "PAGE", page)
    monkeypatch.setattr(choosing, "RECORD", record)
    page.write_text("before\n{}old\n{}after\n".format(*choosing.MARKS))

    def shown(*words: str) -> str:
        done = CliRunner().invoke(choosing.main, words)
        assert done.exit_code == 0, done.output
        return done.output

    table = shown(str(folder), "--record")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [line[:8] for line in lines[4:8]] == [
        ["`zero-shot`", "baseline", "", "", "1", "0", "0", "1.25"],
        ["`mezo`", "forward-only", "0.001", "4", "2", "8", lines[5][6], "1.25"],
        ["`gone`", "forward-only", "0.0001", "4", "2", "32", lines[6][6], ""],
        ["`es few`", "forward-only", "0.001", "6", "2", "12", lines[7][6], "1.50"],
    ]
    assert "120 training rows, batches of 4, on " in table
    assert table.endswith("in the left figure alone: `stopped` after 3 of 4 steps.\n")
    figure = tmp_path / "choosing-mine.svg"
    svg = figure.read_text("utf-8")
    assert svg.count(">mezo</text>") == 2 and svg.count(">es few</text>") == 2
    assert svg.count(">stopped</text>") == 1
    assert "gone" not in svg  # it has neither a curve nor a memory
    assert len(svg) < 60_000
    assert str(folder.parent) not in record.read_text() and "mine.yaml" in record.read_text()
    made = [path.read_bytes() for path in (page, record, figure)]
    kept = page.read_text("utf-8")
    assert kept.startswith("before\n") and kept.endswith("after\n") and "old" not in kept
    assert table in kept and "(choosing-mine.svg)" in kept
    assert [row["seed"] for row in json.loads(record.read_text())] == [0, 0, 1, 0, 1, 0, 1, 0]
    # All of it can be made again from the record alone.
    figure.unlink()
    assert shown("--record") == table
    assert [path.read_bytes() for path in (page, record, figure)] == made
