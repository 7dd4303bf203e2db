"""A comparison's page: its table, and accuracy against forward passes and against seconds."""

from __future__ import annotations

import html
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgezo import report_charts
from edgezo.compare import BASELINE, score_of, table
from edgezo.report import figures, grid, section, write_page
from edgezo.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = "comparison.html"
_FORWARDS, _SECONDS = "forward passes", "seconds"
_COLOURS = 10  # of matplotlib, before they come again
_STYLES = ("-", "--", ":", "-.")
#: A run's evaluations: its forward passes and seconds so far, and what it scored.
Curve = list[tuple[int, float, float]]


def write_comparison(out: Path, rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """Writes the page of the rows of a comparison in `out`, and returns its path.

    Returns:
        None if matplotlib is not installed.

    Raises:
        EdgezoError: the folder cannot be written.
    """
    if not report_charts.available():
        return None
    charts = []
    for number, task in enumerate(dict.fromkeys(row["task"] for row in rows)):
        of_task = [row for row in rows if row["task"] == task]
        name, _ = score_of(of_task[0])
        bases = _baselines(of_task)
        for axis, unit in enumerate((_FORWARDS, _SECONDS)):
            lines = _lines(out, of_task, axis)
            last = max((x for line in lines.values() for x, _ in line), default=1)
            drawn = report_charts.svg(
                f"t{number}{axis}",
                lambda axes, lines=lines, bases=bases: _paint(axes, lines, bases),
                last,
                unit,
            )
            charts.append((f"{task}: held-out {name} by {unit}", drawn))
    heading, *lines = table(rows)
    path = out / PAGE
    name = out.resolve().name
    parts = [
        f"<header><p>edgezo comparison</p><h1>{html.escape(name)}</h1></header>",
        section("Results: mean and standard deviation over seeds", grid(heading, lines)),
        figures(charts),
    ]
    write_page(path, name, parts)
    return path


def curve(run: RunFolder) -> Curve:
    """Returns the evaluations of a run."""
    found: Curve = []
    forwards, seconds = 0, 0.0
    for line in run.read_metrics():
        if "forwards" in line:
            forwards += line["forwards"]
            seconds += line["seconds"]
        elif "eval" in line:
            found.append((forwards, seconds, score_of(line["eval"])[1]))
    return found


def _baselines(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean score of each baseline."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["family"] == BASELINE:
            found.setdefault(row["method"], []).append(score_of(row)[1])
    return {name: statistics.fmean(scores) for name, scores in found.items()}


def _lines(
    out: Path, rows: Sequence[Mapping[str, Any]], axis: int
) -> dict[str, list[tuple[float, float]]]:
    """Returns a line for each method: the mean over seeds of each of its evaluations."""
    curves: dict[str, list[Curve]] = {}
    for row in rows:
        if row.get("run") and (out / row["run"]).exists():
            found = curve(RunFolder(out / row["run"]))
            curves.setdefault(row["method"], []).append(found)
    return {
        method: [
            (statistics.fmean(p[axis] for p in points), statistics.fmean(p[2] for p in points))
            for points in zip(*found, strict=False)
        ]
        for method, found in curves.items()
    }


def _paint(
    axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], bases: Mapping[str, float]
) -> None:
    for number, (method, points) in enumerate(lines.items()):
        style = _STYLES[number // _COLOURS % len(_STYLES)]
        kept = [(x, y) for x, y in points if math.isfinite(y)]
        xs, ys = [x for x, _ in kept], [y for _, y in kept]
        axes.plot(xs, ys, style, marker="o", ms=3, lw=1.6, label=method)
    for (name, score), style in zip(bases.items(), itertools.cycle(_STYLES[1:])):
        if math.isfinite(score):
            axes.axhline(score, color="gray", lw=1, ls=style, label=name)
    if lines or bases:
        axes.legend(frameon=False, fontsize=8)
